"""Whole recordings answered together, as evaluation does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from duplex.checkpoint import Speaker
from duplex.sampling import Sampling
from duplex.vocab import TextWriter
from serve.rows import Rows


@dataclass(frozen=True, eq=False)
class BatchReply:
    """What the agent said in one recording.

    Attributes:
        audio: float32 at the codec's rate (24 kHz), aligned with the recording and as long.
        text_events: (frame, piece) of every text token: the 80 ms frame at which it was written, and its text with the leading space.
    """

    audio: np.ndarray
    text_events: list[tuple[int, str]]


def respond(
    speaker: Speaker,
    audios: list[np.ndarray],
    seed: int,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    microphones: Callable[[np.ndarray], np.ndarray] | None = None,
    heard: torch.Tensor | None = None,
) -> list[BatchReply]:
    """Let the speaker hear every recording, float32 [N_i] at 16 kHz; shorter ones are followed by silence.

    With greedy sampling a row is what a `Session` of its own would have given.

    Args:
        speaker: Who answers.
        audios: The recordings.
        seed: Of the draws, where `sampling` draws.
        sampling: How tokens are chosen.
        microphones: From the agents' frame just played, [B, output_samples], to what comes back of it into the users' next frame,
            [B, input_samples].
        heard: [B, T, V] how likely each word has just been said, in place of what the speaker recognizes; T covers the longest recording.
    """
    if not audios:
        return []
    clock = speaker.clock
    num_frames = clock.frames_of_input(max(len(audio) for audio in audios))
    users = np.zeros((len(audios), num_frames * clock.input_samples), np.float32)
    for row, audio in enumerate(audios):
        users[row, : len(audio)] = audio
    rows = Rows(speaker, len(audios), seed, sampling)
    if not num_frames:
        return [BatchReply(np.zeros(0, np.float32), []) for _ in audios]
    frames, back = [], None
    for t, user in enumerate(np.split(users, num_frames, 1)):
        said = None if heard is None else heard[:, t]
        frames.append(rows.step(torch.from_numpy(user if back is None else (user + back).clip(-1, 1)), said))
        back = microphones(frames[-1].audio.cpu().numpy()) if microphones else None
    text = torch.stack([frame.text for frame in frames], 1).tolist()  # B lists of T tokens
    agents = torch.cat([frame.audio for frame in frames], 1).cpu().numpy()  # [B, T * output_samples]
    return [_reply(speaker, agents[row], text[row], len(audio)) for row, audio in enumerate(audios)]


def _reply(speaker: Speaker, agent: np.ndarray, text: list[int], num_input_samples: int) -> BatchReply:
    clock, writer = speaker.clock, TextWriter(speaker.vocab)
    pieces = [(frame, writer.write(token)) for frame, token in enumerate(text[: clock.frames_of_input(num_input_samples)])]
    num_samples = num_input_samples * clock.output_hz // clock.input_hz
    return BatchReply(agent[:num_samples].copy(), [(frame, piece) for frame, piece in pieces if piece])
