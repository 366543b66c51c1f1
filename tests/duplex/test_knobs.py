"""The knobs on hand-drawn frames, and the proofs of streaming with them on."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from duplex.knobs import AUDIBLE_RMS, init_knobs, note_written, turn_knobs
from duplex.model import DuplexModel, ModelState
from duplex.sampling import Sampling
from duplex.vocab import Vocab
from tests.duplex.test_streaming import TINY, hearing, noise
from tests.streaming import check_past_ring, check_rows

WORD = Vocab.eos + 1
ON = Sampling(eagerness=0.15, yielding=0.3)


def frames(levels: list[float]) -> Tensor:
    """A frame of constant level each, [T, 1, 1280]."""
    return torch.tensor(levels)[:, None, None].expand(-1, 1, 1280)


def biases(written: list[int], levels: list[float]) -> list[tuple[float, float]]:
    """What BOS and EOS get at each frame, before the frame's token is written."""
    state, found = init_knobs(1, torch.device("cpu")), []
    for token, audio in zip(written, frames(levels), strict=True):
        logits = torch.zeros(1, 6)
        out = turn_knobs(logits, audio, state, eagerness=2.0, yielding=3.0)
        assert not logits.any() and not out[0, [Vocab.sil, *range(WORD, 6)]].any()
        found.append((float(out[0, Vocab.bos]), float(out[0, Vocab.eos])))
        note_written(torch.tensor([token]), state)
    return found


def test_eagerness_is_for_the_turn_that_is_not_taken_and_yielding_for_the_user_over_it() -> None:
    quiet, loud = 0.0, 0.1
    written = [Vocab.sil, Vocab.bos, WORD, Vocab.sil, Vocab.eos, Vocab.sil, Vocab.bos]
    levels = [loud, quiet, quiet, loud, loud, loud, quiet]
    assert biases(written, levels) == [(2, 0), (2, 0), (0, 0), (0, 3), (0, 3), (2, 0), (2, 0)]


def test_a_turn_may_begin_without_bos_as_sessions_count_it() -> None:
    assert biases([WORD, Vocab.sil, Vocab.eos, Vocab.sil], [0.1] * 4) == [(2, 0), (0, 3), (0, 3), (2, 0)]


def test_steady_noise_stops_counting_as_the_user_and_the_user_over_it_counts() -> None:
    hum = 2 * AUDIBLE_RMS
    heard = [eos == 3 for _, eos in biases([WORD] * 204, [0.0, *[hum] * 200, 4 * hum, hum, AUDIBLE_RMS / 2])]
    assert heard[1] and not heard[100] and not heard[200]  # 2.5 times the noise after 70 frames
    assert heard[201] and not heard[202] and not heard[203]


def test_a_long_sentence_does_not_become_noise() -> None:
    words = [0.1] * 8 + [0.001]  # somebody speaks for half a minute, with gaps between the words
    spoken = [eos == 3 for _, eos in biases([WORD] * 361, [0.0, *words * 40])[1:]]
    assert spoken == ([True] * 8 + [False]) * 40


class FreeRunning:
    """The model by its own tokens as a streaming part: [B, T * 1280] -> text logits and the token written, [B, T, V + 1]."""

    def __init__(self, model: DuplexModel, sampling: Sampling) -> None:
        self.model, self.sampling, self.init_state = model, sampling, model.init_state

    def step(self, x: Tensor, state: ModelState) -> Tensor:
        outputs = []
        for audio in x.split(1280, 1):
            out = self.model.step(audio, state, self.sampling)
            outputs.append(torch.cat([out.logits.text, out.text[:, None, None].float()], -1))
        return torch.cat(outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.step(x, self.init_state(len(x)))


@pytest.fixture
def model() -> DuplexModel:
    """Tiny, and so that turns begin, go on for a while and end."""
    torch.manual_seed(0)
    model = hearing(DuplexModel(TINY))
    with torch.no_grad():
        model.heads.text.weight[: Vocab.eos + 1] *= 3
    return model


def bursts(num_frames: int) -> Tensor:
    """Two users who speak at different times, [2, T * 1280]."""
    on = torch.tensor([[0.02, 1.0][t // 5 % 2] for t in range(num_frames)])
    return (0.2 * noise(2, num_frames, 1280) * torch.stack([on, on.roll(3)])[..., None]).flatten(1)


def test_streaming_is_proven_with_the_knobs_on(model: DuplexModel) -> None:
    part, x = FreeRunning(model, ON), bursts(29)
    check_rows(part, x, frame_size=1280)
    check_past_ring(part, x, 9, frame_size=1280)
    assert not torch.equal(part.forward(x)[..., -1], FreeRunning(model, Sampling()).forward(x)[..., -1]), "the knobs changed nothing"


def test_off_they_do_nothing_at_all(model: DuplexModel) -> None:
    state = model.init_state(2)
    before = state.knobs.has_turn.clone(), state.knobs.noise.clone()
    FreeRunning(model, Sampling()).step(bursts(9), state)
    assert torch.equal(state.knobs.has_turn, before[0]) and torch.equal(state.knobs.noise, before[1])
