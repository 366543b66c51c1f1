"""One conversation: samples in, frames of the agent out. Pure: no files, no devices, no clock on the wall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from duplex.checkpoint import Speaker
from duplex.errors import UserError
from duplex.sampling import Sampling
from duplex.vocab import TextWriter, Vocab
from serve.rows import Rows


@dataclass(frozen=True, eq=False)
class AgentFrame:
    """80 ms of the agent.

    Attributes:
        index: Frames since the session began; the frame spans index * 80 ms to (index + 1) * 80 ms of the user's audio.
        token: Token written at this frame.
        text: Its text with the leading space; empty for `<sil>`, `<bos>` and `<eos>`.
        codes: K codes of this frame.
        audio: float32 [output_samples], -1..1; it lags the codes by the codec's delay.
        speaking: The agent has the turn: from the frame that writes BOS to the one that writes EOS, both included.
        heard: How likely the user's audio of this frame holds nothing, noise or speech (`duplex.model.Presence`): where speech is unlikely,
            an answer is a guess. None with a checkpoint that cannot tell.
    """

    index: int
    token: int
    text: str
    codes: tuple[int, ...]
    audio: np.ndarray
    speaking: bool
    heard: tuple[float, ...] | None = None


def check_pcm(pcm: np.ndarray) -> None:
    """Refuse what is no audio.

    Raises:
        UserError: it is not float32 [N], or not finite.
    """
    if not isinstance(pcm, np.ndarray) or pcm.ndim != 1 or pcm.dtype != np.float32:
        given = f"{pcm.dtype} {list(pcm.shape)}" if isinstance(pcm, np.ndarray) else type(pcm).__name__
        raise UserError(f"a session was given {given} as audio; push float32 samples [N] at 16 kHz, mono")
    if not np.isfinite(pcm).all():
        raise UserError("a session was given samples that are NaN or infinite; push finite samples, -1 to 1")


class Dialogue:
    """Makes frames of what a row gave: counts them, spells tokens and knows who has the turn.

    Attributes:
        speaking: The agent has the turn after the last frame.
    """

    def __init__(self, vocab: Vocab) -> None:
        self._writer = TextWriter(vocab)
        self._index, self.speaking = 0, False

    def frame(self, token: int, codes: Sequence[int], audio: np.ndarray, heard: Sequence[float] | None = None) -> AgentFrame:
        """The next frame."""
        speaking = self.speaking or token not in (Vocab.sil, Vocab.eos)
        self.speaking = speaking and token != Vocab.eos
        self._index += 1
        known = None if heard is None else tuple(heard)
        return AgentFrame(self._index - 1, token, self._writer.write(token), tuple(codes), audio, speaking, known)


class Session:
    """A conversation with a speaker. Sessions share the speaker and nothing else.

    Args:
        speaker: From `duplex.checkpoint.load_speaker`.
        seed: Of the draws; the same seed and audio give the same frames.
        sampling: How tokens are chosen; greedy by default.
    """

    def __init__(self, speaker: Speaker, seed: int = 0, sampling: Sampling = Sampling()) -> None:  # noqa: B008 - frozen
        self._vocab, self._frame_samples = speaker.vocab, speaker.clock.input_samples
        self._rows = Rows(speaker, 1, seed, sampling)
        self._pending: np.ndarray
        self._clear()

    def push(self, pcm: np.ndarray) -> list[AgentFrame]:
        """Hear any number of samples and return the frames that they complete; the rest is kept for the next push.

        Args:
            pcm: float32 [N] at 16 kHz, -1..1.

        Raises:
            UserError: the samples are not float32 [N], or not finite. The session is as it was before.
        """
        check_pcm(pcm)
        pending = np.concatenate([self._pending, pcm])
        whole = len(pending) // self._frame_samples * self._frame_samples
        self._pending = pending[whole:].copy()
        return [self._step(frame) for frame in pending[:whole].reshape(-1, self._frame_samples)]

    def reset(self) -> None:
        """Forget everything, as if the session had just begun."""
        self._rows.reset()
        self._clear()

    def _clear(self) -> None:
        self._pending = np.zeros(0, np.float32)
        self._dialogue = Dialogue(self._vocab)

    def _step(self, pcm: np.ndarray) -> AgentFrame:
        out = self._rows.step(torch.from_numpy(pcm[None]))
        heard = None if out.presence is None else out.presence[0].tolist()
        return self._dialogue.frame(int(out.text[0]), out.codes[0].tolist(), out.audio[0].cpu().numpy(), heard)
