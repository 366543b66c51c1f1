"""Calls with NVIDIA's encoder and NanoCodec: any of them step together, at odd and even times, and each says what it would alone."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from codec.config import NanoConfig
from duplex.checkpoint import Speaker
from duplex.clock import FrameClock
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from serve.arena import Arena
from tests.codec.test_nano import random_codec
from tests.duplex.test_cache_aware import SMALL
from tests.duplex.test_streaming import TINY, hearing, noise

FRAMES, CALLS = 24, 3


def speaker(audio: Tensor) -> Speaker:
    """A random one whose codes follow what is heard of `audio`."""
    torch.manual_seed(0)
    vocab = Vocab.train(["It is four."], 64)
    codec = random_codec(NanoConfig(encoder_width=2, decoder_width=64, num_codebooks=2, levels=(4, 3)))
    model = hearing(DuplexModel(dataclasses.replace(TINY, encoder=SMALL, vocab_size=vocab.size)))
    with torch.no_grad():
        torch.nn.init.normal_(model.adapter.proj.weight, std=1.0)
        heard = model.adapter(model.encoder(audio.flatten(1))[:, 1:])
        model.adapter.proj.weight.div_(heard.std((0, 1))[:, None])
        model.adapter.proj.bias.sub_(heard.mean((0, 1))).div_(heard.std((0, 1)))
    return Speaker("random", model, vocab, codec, FrameClock(output_hz=codec.config.sample_rate_hz))


def test_any_calls_step_together() -> None:
    loudness = torch.rand(CALLS, FRAMES, 1, generator=torch.Generator().manual_seed(2)) ** 4
    pitch = 0.02 + 2 * torch.rand(CALLS, FRAMES, 1, generator=torch.Generator().manual_seed(3))
    audio = loudness * torch.sin(pitch * torch.arange(1280)) + 1e-3 * noise(CALLS, FRAMES, 1280)
    one = speaker(audio)
    alone = []
    for call in range(CALLS):
        arena = Arena(one, 1)
        alone.append([arena.step([0], audio[call : call + 1, t]) for t in range(FRAMES)])
    assert len({tuple(frame.codes[0].tolist()) for call in alone for frame in call}) > 5
    arena, heard, generator = Arena(one, CALLS), [0] * CALLS, torch.Generator().manual_seed(1)
    while min(heard) < FRAMES:
        rows = [row for row in range(CALLS) if heard[row] < FRAMES and torch.rand(1, generator=generator) < 0.6]
        if not rows:
            continue
        out = arena.step(rows, torch.stack([audio[row, heard[row]] for row in rows]))
        for i, row in enumerate(rows):
            expected = alone[row][heard[row]]
            assert out.text[i] == expected.text[0] and torch.equal(out.codes[i], expected.codes[0])
            assert torch.allclose(out.audio[i], expected.audio[0], atol=1e-4)
            heard[row] += 1
