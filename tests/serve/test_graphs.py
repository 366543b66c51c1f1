"""On a GPU: CUDA graphs are the eager step, and bfloat16 is float32 within a tolerance. Run with `pytest -m gpu`."""

from __future__ import annotations

import random

import pytest
import torch

from codec.linear import pack_layers
from duplex.checkpoint import Speaker
from duplex.presets import cast_weights, random_speaker
from duplex.sampling import Sampling
from serve.arena import Arena
from serve.rows import Rows

pytestmark = pytest.mark.gpu
CAPACITY, FRAMES = 5, 40


@pytest.fixture(scope="module", autouse=True)
def exact() -> None:
    """Float32 products as float32."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False


def lively(name: str, dtype: torch.dtype, device: str = "cuda") -> Speaker:
    """Random weights that say different things for what they hear."""
    torch.manual_seed(0)
    speaker = random_speaker(name, "cpu", torch.float32, window_frames=16)
    torch.nn.init.normal_(speaker.model.adapter.proj.weight, std=0.15)
    speaker.model.to(device)
    speaker.codec.to(device)
    cast_weights(speaker.model, dtype)
    pack_layers(speaker.model)
    return speaker


@pytest.mark.parametrize("name", ["test", "pocket"])
def test_graphs_are_the_eager_step(name: str) -> None:
    speaker, chance = lively(name, torch.float32), random.Random(0)
    audio = 0.1 * torch.randn(CAPACITY, FRAMES, 1280)
    arena = Arena(speaker, CAPACITY)
    heard, codes, sound = [0] * CAPACITY, [[] for _ in range(CAPACITY)], [[] for _ in range(CAPACITY)]
    while min(heard) < FRAMES:
        rows = [row for row in range(CAPACITY) if heard[row] < FRAMES and chance.random() < 0.6]
        chance.shuffle(rows)
        if not rows:
            continue
        out = arena.step(rows, torch.stack([audio[row, heard[row]] for row in rows]))
        for i, row in enumerate(rows):
            heard[row] += 1
            codes[row].append(torch.cat([out.text[i : i + 1], out.codes[i]]))
            sound[row].append(out.audio[i])
    for row in range(CAPACITY):
        alone = Rows(speaker, 1)
        expected = [alone.step(frame[None]) for frame in audio[row]]
        assert torch.equal(torch.stack(codes[row]), torch.stack([torch.cat([out.text, out.codes[0]]) for out in expected]))
        assert torch.allclose(torch.stack(sound[row]), torch.cat([out.audio for out in expected]), atol=1e-4)
    assert len(torch.stack(codes[0]).unique(dim=0)) > 3


def test_graphs_draw_as_the_eager_step() -> None:
    speaker, sampling = lively("test", torch.float32), Sampling(text_temperature=1.0, text_top_p=0.9, code_temperature=1.0)
    audio, arena = 0.1 * torch.randn(3, FRAMES, 1280), Arena(speaker, 3, sampling)
    for row in range(3):
        arena.reset(row, seed=row)
    outputs = [arena.step([2, 0, 1], audio[[2, 0, 1], t]) for t in range(FRAMES)]
    for place, row in enumerate([2, 0, 1]):
        alone = Rows(speaker, 1, row, sampling)
        for t, out in enumerate(outputs):
            expected = alone.step(audio[row : row + 1, t])
            assert torch.equal(out.text[place], expected.text[0]) and torch.equal(out.codes[place], expected.codes[0])


def test_a_row_reset_between_graphs_starts_afresh() -> None:
    speaker = lively("test", torch.float32)
    audio, arena = 0.1 * torch.randn(2, 10, 1280), Arena(speaker, 2)
    first = [arena.step([0, 1], audio[:, t]) for t in range(10)]
    arena.reset(1)
    again = [arena.step([1], audio[1:, t]) for t in range(10)]
    for a, b in zip(first, again, strict=True):
        assert torch.equal(a.codes[1], b.codes[0]) and torch.allclose(a.audio[1], b.audio[0], atol=1e-4)


@pytest.mark.parametrize("name", ["pocket", "small"])
def test_bfloat16_says_nearly_the_same(name: str) -> None:
    """Logits of 40 teacher-forced frames differ by less than 5 % of their spread."""
    models = [lively(name, dtype).model for dtype in (torch.float32, torch.bfloat16)]
    states = [model.init_state(2) for model in models]
    generator = torch.Generator().manual_seed(0)
    errors = []
    for _ in range(FRAMES):
        audio = 0.1 * torch.randn(2, 1280, generator=generator)
        text, codes = torch.randint(0, 64, (2,), generator=generator), torch.randint(0, 1000, (2, 4), generator=generator)
        forced = {"forced_text": text.cuda(), "forced_codes": codes.cuda()}
        exact, rough = (model.step(audio.cuda(), state, **forced).logits.text.float() for model, state in zip(models, states, strict=True))
        errors.append(float((exact - rough).std() / exact.std()))
    assert max(errors) < 0.05, max(errors)
