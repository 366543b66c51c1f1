"""The arena: rows that join, leave and rest beside others are the calls they would have been alone."""

from __future__ import annotations

import dataclasses
import random
from pathlib import Path

import pytest
import torch
from torch import Tensor

from duplex.attention import RingState
from duplex.checkpoint import Speaker, load_speaker
from duplex.config import WhisperConfig
from duplex.model import DuplexModel
from duplex.sampling import Sampling
from serve.arena import Arena, map_tensors
from serve.graphs import buckets
from serve.rows import Rows, RowsOutput

DRAWING = Sampling(text_temperature=1.5, code_temperature=1.0)
FRAMES = 30  # three times round the ring of the tiny checkpoint


@pytest.fixture(scope="module", params=["fastconformer", "whisper"])
def speaker(tiny_checkpoint: Path, request: pytest.FixtureRequest) -> Speaker:
    tiny = load_speaker(str(tiny_checkpoint))
    if request.param == "fastconformer":
        return tiny
    torch.manual_seed(0)
    encoder = WhisperConfig(num_mels=16, token_width=16, num_layers=2, num_heads=2, ff_width=32, window_tokens=16, width=16)
    model = DuplexModel(dataclasses.replace(tiny.model.config, encoder=encoder)).eval()
    model.load_state_dict({k: v for k, v in tiny.model.state_dict().items() if k.split(".")[0] not in ("encoder", "adapter")}, strict=False)
    torch.nn.init.normal_(model.adapter.proj.weight, std=0.15)
    return dataclasses.replace(tiny, model=model)


def users(num_rows: int, num_frames: int = FRAMES, seed: int = 0) -> Tensor:
    """[rows, frames, 1280] of noise whose level jumps."""
    generator = torch.Generator().manual_seed(seed)
    levels = 0.2 * torch.rand(num_rows, num_frames, 1, generator=generator)
    return levels * torch.randn(num_rows, num_frames, 1280, generator=generator)


def alone(speaker: Speaker, audio: Tensor, seed: int = 0, sampling: Sampling = Sampling()) -> list[RowsOutput]:  # noqa: B008
    """Every frame of one call, [frames, 1280], by itself."""
    rows = Rows(speaker, 1, seed, sampling)
    return [rows.step(frame[None]) for frame in audio]


def assert_same(actual: list[RowsOutput], expected: list[RowsOutput], tolerance: float = 0.0) -> None:
    for name in ("text", "codes"):
        a, b = (torch.cat([getattr(out, name) for out in outs]) for outs in (actual, expected))
        assert torch.equal(a, b), name
    for name in ("audio", "presence"):
        a, b = (torch.cat([getattr(out, name) for out in outs]) for outs in (actual, expected))
        assert a.shape == b.shape and float((a - b).abs().max()) <= tolerance, name


def row_of(out: RowsOutput, i: int) -> RowsOutput:
    return out.select(torch.tensor([i], device=out.text.device))


def rings(arena: Arena) -> list[RingState]:
    """Every ring of the arena, the encoder's and the recognizer's included."""
    found = [*arena.state.model.recognizer.layers, *arena.state.model.backbone.layers]
    for layer in getattr(arena.state.model.encoder, "layers", []):
        found += [layer.attention] if hasattr(layer, "attention") else []
    return found


def snapshot(arena: Arena) -> list[Tensor]:
    """Copies of every tensor of the state."""
    copies: list[Tensor] = []
    map_tensors(arena.state, lambda t: copies.append(t.clone()) or t)  # type: ignore[func-returns-value]
    return copies


def test_one_row_is_rows_to_the_bit(speaker: Speaker) -> None:
    audio = users(1)[0]
    expected = alone(speaker, audio)
    assert len({int(out.text) for out in expected}) > 2, "the fixture has nothing to say"
    arena = Arena(speaker, 3)
    for row in (0, 2):
        assert_same([arena.step([row], frame[None]) for frame in audio], expected)


@pytest.mark.parametrize("seed", range(3))
def test_any_rows_take_part_and_each_is_the_call_it_would_be_alone(speaker: Speaker, seed: int) -> None:
    audio, chance = users(4, seed=seed), random.Random(seed)
    arena, outputs = Arena(speaker, 4), [[] for _ in range(4)]  # type: tuple[Arena, list[list[RowsOutput]]]
    while any(len(out) < FRAMES for out in outputs):
        rows = [row for row in range(4) if len(outputs[row]) < FRAMES and chance.random() < 0.6]
        chance.shuffle(rows)
        if rows:
            out = arena.step(rows, torch.stack([audio[row, len(outputs[row])] for row in rows]))
            for i, row in enumerate(rows):
                outputs[row].append(row_of(out, i))
    for row in range(4):
        assert_same(outputs[row], alone(speaker, audio[row]), 1e-4)


def test_a_resting_row_keeps_every_bit_but_the_slots_it_writes_next(speaker: Speaker) -> None:
    audio, arena = users(3), Arena(speaker, 3)
    for t in range(FRAMES - 1):
        arena.step([0, 1, 2], audio[:, t])
        before = snapshot(arena)
        position = [(ring.position[1].item(), ring.keys.shape[2]) for ring in rings(arena)]
        arena.step([2, 0], audio[[2, 0], t])
        written = 0
        for old, new in zip(before, snapshot(arena), strict=True):
            changed = (old[1] != new[1]).nonzero()
            if changed.numel():
                assert old.dim() == 4, "more than a ring has changed"
                written += 1
                slots = set(changed[:, 1].tolist())
                assert slots in [{_slot(ring, at)} for ring, (at, _) in zip(rings(arena), position, strict=True)]
        assert written == 2 * len(rings(arena))


def _slot(ring: RingState, position: int) -> int:
    """Where the frame at `position` is written; the tiny backbone has a sink of 2, its encoder none."""
    sink = 2 if ring.keys.shape[2] == 10 else 0
    return position if position < sink else sink + (position - sink) % (ring.keys.shape[2] - sink)


@torch.inference_mode()
def test_the_slots_that_a_resting_row_writes_are_never_read(speaker: Speaker) -> None:
    audio = users(1)[0]
    arena, expected = Arena(speaker, 1), alone(speaker, audio)
    outputs = []
    for frame in audio:
        for ring in rings(arena):
            slot = _slot(ring, int(ring.position[0]))
            ring.keys[0, :, slot], ring.values[0, :, slot] = 1e4, -1e4
        outputs.append(arena.step([0], frame[None]))
    assert_same(outputs, expected)


def test_a_reset_row_starts_afresh_beside_others(speaker: Speaker) -> None:
    audio, arena = users(3), Arena(speaker, 3)
    for t in range(12):
        arena.step([0, 1, 2], audio[:, t])
    before = snapshot(arena)
    arena.reset(1)
    assert all(torch.equal(old[[0, 2]], new[[0, 2]]) for old, new in zip(before, snapshot(arena), strict=True))
    assert_same([arena.step([1], frame[None]) for frame in audio[1]], alone(speaker, audio[1]))


def test_draws_are_a_calls_own(speaker: Speaker) -> None:
    audio, arena = users(3), Arena(speaker, 3, DRAWING)
    for row in range(3):
        arena.reset(row, seed=10 + row)
    outputs: list[list[RowsOutput]] = [[], [], []]
    for t in range(FRAMES):
        rows = [0, 1, 2] if t < 10 else [2, 0]
        out = arena.step(rows, audio[rows, t])
        for i, row in enumerate(rows):
            outputs[row].append(row_of(out, i))
    for row in range(3):
        assert_same(outputs[row], alone(speaker, audio[row, : len(outputs[row])], 10 + row, DRAWING), 1e-4)
    assert any(int(a.text) != int(b.text) for a, b in zip(outputs[0], alone(speaker, audio[0], 11, DRAWING), strict=True))


def test_memory_is_known_in_advance(speaker: Speaker) -> None:
    one, many = Arena(speaker, 1), Arena(speaker, 5)
    assert one.bytes_per_row == many.bytes_per_row == sum(t[0].numel() * t.element_size() for t in snapshot(one))


@pytest.mark.parametrize("rows", [[], [0, 0], [-1], [2], [0, 1]])
def test_wrong_rows_are_a_bug(speaker: Speaker, rows: list[int]) -> None:
    with pytest.raises(AssertionError, match="rows"):
        Arena(speaker, 2).step(rows, torch.zeros(2 if len(rows) == 2 and rows[0] == rows[1] else 1, 1280))


def test_buckets_are_powers_of_two_and_all_rows() -> None:
    assert [buckets(n) for n in (1, 2, 3, 8, 12)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8], [1, 2, 4, 8, 12]]
