"""Sessions: chunking, isolation, replay; and batches, which are sessions side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from duplex.checkpoint import Speaker, load_speaker
from duplex.errors import UserError
from duplex.sampling import Sampling
from duplex.vocab import Vocab
from serve.batch import respond
from serve.rows import check_device
from serve.session import AgentFrame, Session


@pytest.fixture(scope="module")
def speaker(tiny_checkpoint: Path) -> Speaker:
    return load_speaker(str(tiny_checkpoint))


def speech(seconds: float, seed: int) -> np.ndarray:
    """Noise whose level jumps every quarter of a second."""
    rng = np.random.default_rng(seed)
    size = round(seconds * 16000)
    return (0.1 * rng.standard_normal(size) * np.repeat(rng.uniform(0, 2, -(-size // 4000)), 4000)[:size]).astype(np.float32)


def audio_of(frames: list[AgentFrame]) -> np.ndarray:
    return np.concatenate([frame.audio for frame in frames])


def assert_same(frames: list[AgentFrame], expected: list[AgentFrame]) -> None:
    keys = [[(f.index, f.token, f.text, f.codes, f.speaking, f.heard) for f in part] for part in (frames, expected)]
    assert keys[0] == keys[1]
    np.testing.assert_array_equal(audio_of(frames), audio_of(expected))


def test_frames_say_what_happened(speaker: Speaker) -> None:
    frames = Session(speaker).push(speech(4, 0))
    assert [f.index for f in frames] == list(range(50))
    assert all(f.audio.shape == (1920,) and f.audio.dtype == np.float32 and len(f.codes) == 4 for f in frames)
    assert all(f.text.lower() == speaker.vocab.piece(f.token).lower() for f in frames)
    assert "".join(f.text for f in frames).strip() == speaker.vocab.decode(f.token for f in frames)
    assert all(f.heard and len(f.heard) == 3 and abs(sum(f.heard) - 1) < 1e-5 for f in frames)
    assert any(f.text for f in frames) and len({f.codes for f in frames}) > 5, "the fixture has nothing to say"


@pytest.mark.parametrize("size", [1, 160, 1279, 1281, 5000])
def test_chunks_of_any_size_give_the_same_frames(speaker: Speaker, size: int) -> None:
    audio = speech(0.5 if size == 1 else 3.0, 1)
    session = Session(speaker)
    chunked = [frame for i in range(0, len(audio), size) for frame in session.push(audio[i : i + size])]
    assert len(chunked) == len(audio) // 1280
    assert_same(chunked, Session(speaker).push(audio))


def test_the_user_is_heard(speaker: Speaker) -> None:
    frames, others = Session(speaker).push(speech(3, 1)), Session(speaker).push(speech(3, 2))
    assert [f.codes for f in frames] != [f.codes for f in others]


def test_interleaved_sessions_equal_each_alone(speaker: Speaker) -> None:
    audios = [speech(2, 3), speech(2, 4)]
    sessions = [Session(speaker), Session(speaker)]
    frames: list[list[AgentFrame]] = [[], []]
    for i in range(0, len(audios[0]), 1000):
        for row in (0, 1):
            frames[row] += sessions[row].push(audios[row][i : i + 1000])
    for row in (0, 1):
        assert_same(frames[row], Session(speaker).push(audios[row]))


def test_sampling_replays_from_its_seed_and_reset_starts_it_again(speaker: Speaker) -> None:
    sampling, audio = Sampling(text_temperature=1.5, code_temperature=1.0), speech(2, 5)
    session = Session(speaker, 7, sampling)
    first = session.push(audio)
    session.push(audio[:700])
    session.reset()
    assert_same(session.push(audio), first)
    assert_same(Session(speaker, 7, sampling).push(audio), first)
    assert [f.codes for f in Session(speaker, 8, sampling).push(audio)] != [f.codes for f in first]


def test_speaking_spans_bos_to_eos(speaker: Speaker, monkeypatch: pytest.MonkeyPatch) -> None:
    script = [Vocab.sil, Vocab.eos, Vocab.bos, 5, Vocab.sil, Vocab.eos, Vocab.sil, 6, Vocab.eos, Vocab.bos]
    step = type(speaker.model).step
    tokens = iter(script)

    def scripted(self, audio, state, sampling, uniforms, heard):
        return step(self, audio, state, sampling, forced_text=audio.new_full((1,), next(tokens)).long())

    monkeypatch.setattr(type(speaker.model), "step", scripted)
    frames = Session(speaker).push(np.zeros(1280 * len(script), np.float32))
    assert [f.token for f in frames] == script
    assert "".join("x" if f.speaking else "." for f in frames) == "..xxxx.xxx"
    assert all(f.text == "" for f in frames if f.token <= Vocab.eos)


@pytest.mark.parametrize(
    ("pcm", "message"),
    [
        (np.array([0.0, np.nan], np.float32), "NaN"),
        (np.array([0.0, -np.inf], np.float32), "infinite"),
        (np.zeros((2, 8), np.float32), r"float32 \[2, 8\]"),
        (np.zeros(8, np.float64), r"float64 \[8\]"),
        (np.zeros(8, np.int16), r"int16 \[8\]"),
        ([0.0, 0.0], "list"),
    ],
)
def test_bad_samples_are_refused_and_change_nothing(speaker: Speaker, pcm, message: str) -> None:
    session, audio = Session(speaker), speech(1, 6)
    frames = session.push(audio[:2000])
    with pytest.raises(UserError, match=message):
        session.push(pcm)
    assert_same(frames + session.push(audio[2000:]), Session(speaker).push(audio))


def test_a_batch_row_is_a_session(speaker: Speaker) -> None:
    audios = [speech(2.0, 7), speech(1.13, 8), np.zeros(0, np.float32), speech(0.01, 9)]
    replies = respond(speaker, audios, seed=0)
    for audio, reply in zip(audios, replies, strict=True):
        padded = np.pad(audio, (0, -len(audio) % 1280))
        frames = Session(speaker).push(padded)
        assert reply.text_events == [(f.index, f.text) for f in frames if f.text]
        assert len(reply.audio) == len(audio) * 3 // 2 and reply.audio.dtype == np.float32
        if frames:
            np.testing.assert_allclose(reply.audio, audio_of(frames)[: len(reply.audio)], atol=1e-4)
    assert replies[0].text_events
    assert respond(speaker, [], 0) == []
    assert len(respond(speaker, [np.zeros(0, np.float32)], 0)[0].audio) == 0


@pytest.mark.parametrize("name", ["tpu", "cuda:x", "cpu:0", ""])
def test_an_unknown_device_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="use cpu, cuda or cuda:N"):
        check_device(name)


def test_a_gpu_that_is_not_here_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(UserError, match="torch sees 0 CUDA devices"):
        check_device("cuda")
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    assert check_device("cuda:0") == "cuda:0"
    with pytest.raises(UserError, match="torch sees 1 CUDA devices"):
        check_device("cuda:1")
