"""From a timeline to the token channels the model is trained on.

Word alignment, lead 2 (text leads its sound; BOS one frame before the first token; EOS on the first silent frame):

    frame    7    8    9   10   11   12   13   14
    text    BOS  it   is  four<sil><sil><sil> EOS
    codes   sil  sil  sil  c    c    c    c   sil
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.random import Generator

from duplex.errors import UserError
from duplex.model import Presence
from duplex.vocab import MARKS, Vocab
from train.bank import Utterance
from train.timeline import USER_FRAME_SAMPLES, AgentTurn, Timeline

AGENT_FRAME_SAMPLES = 1920
NOISE_RMS = 0.002  # a frame of the user below it is silent: -54 dB of full scale


@dataclass(frozen=True)
class Channels:
    """Token channels of one timeline.

    Attributes:
        text: [T + 1] token of every frame; the model reads text[t] and predicts text[t + 1].
        codes: [T, K] codes of every frame.
        speaking: [T] whether the agent's speech is in `codes`.
    """

    text: np.ndarray
    codes: np.ndarray
    speaking: np.ndarray


def token_frames(utterance: Utterance, vocab: Vocab, by_word: bool = True) -> list[tuple[int, int]]:
    """(frame, token) of every token of an utterance, one a frame, at the token's own sound; frames count from the first code.

    With `by_word` False, and in an utterance without word times, tokens follow each other from frame 0.

    Raises:
        UserError: the text does not fit into its speech.
    """
    assert utterance.codes is not None
    placed: list[tuple[int, int]] = []
    words = vocab.encode_words(utterance.text)
    for i, ids in enumerate(words):
        if by_word and utterance.words:
            start, end = utterance.words[i].start_sample, utterance.words[i].end_sample
        else:
            start = end = 0
        lengths = [max(len(vocab.piece(token).strip()), 1) for token in ids]
        for j, token in enumerate(ids):
            sample = start + (end - start) * sum(lengths[:j]) / sum(lengths)
            frame = int(sample) // AGENT_FRAME_SAMPLES
            placed.append((max(frame, placed[-1][0] + 1 if placed else 0), token))
    latest = len(utterance.codes)
    for i in range(len(placed) - 1, -1, -1):  # a long last word starts earlier rather than running past the end of speech
        latest = min(placed[i][0], latest - 1)
        placed[i] = (latest, placed[i][1])
    if placed and placed[0][0] < 0:
        raise UserError(f"the text {utterance.text!r} has {len(placed)} tokens, too many for its {len(utterance.codes)} frames of speech")
    return placed


def shift_tokens(placed: list[tuple[int, int]], num_frames: int, share: float, rng: Generator) -> list[tuple[int, int]]:
    """Move a share of the tokens of `token_frames` a frame earlier or later, in their order and within the speech's frames.

    Who writes freely is now and then a frame early or late; who has only ever read words at their very moment then writes one twice, or
    leaves one out.
    """
    frames = [frame + int(rng.choice((-1, 1))) * (rng.random() < share) for frame, _ in placed]
    for i in range(len(frames)):
        frames[i] = max(frames[i], frames[i - 1] + 1 if i else 0)
    for i in reversed(range(len(frames))):
        frames[i] = min(frames[i], num_frames - len(frames) + i)
    return [(frame, token) for frame, (_, token) in zip(frames, placed, strict=True)]


def lay_channels(
    timeline: Timeline, tokens: dict[str, list[tuple[int, int]]], silence: np.ndarray, lead: int, num_codebooks: int = 4
) -> Channels:
    """Write the agent's turns into channels.

    Args:
        timeline: The conversation.
        tokens: `token_frames` of every agent utterance, by id.
        silence: [K] the codec's silence codes.
        lead: Frames by which a token precedes its sound.
        num_codebooks: K.
    """
    count = timeline.num_frames
    text = np.full(count + 1, Vocab.sil, np.int64)
    codes = np.tile(silence.astype(np.int64), (count, 1))
    speaking = np.zeros(count, bool)
    for turn in timeline.agent:
        _lay_turn(turn, tokens[turn.utterance.id], text, codes, speaking, lead)
    return Channels(text, codes, speaking)


def _lay_turn(turn: AgentTurn, tokens, text: np.ndarray, codes: np.ndarray, speaking: np.ndarray, lead: int) -> None:
    assert turn.utterance.codes is not None
    begin, stop = turn.start_frame, min(turn.cut_frame, len(codes))
    if begin < stop:
        codes[begin:stop] = turn.utterance.codes[: stop - begin]
        speaking[begin:stop] = True
    for frame, token in [(-1, Vocab.bos), *tokens]:
        at = begin - lead + frame
        if 0 <= at < min(turn.cut_frame, len(text)):
            text[at] = token
    if turn.cut_frame < len(text):
        text[turn.cut_frame] = Vocab.eos


def lay_heard(timeline: Timeline, vocab: Vocab) -> np.ndarray:
    """What the user said, as tokens [T] to be recognized: each word's tokens one a frame from the frame after its end.

    `sil` where no word has just ended; -100 from the start of a turn whose word times are not known to a second after its end.
    """
    heard = np.full(timeline.num_frames, Vocab.sil, np.int64)
    for turn in timeline.user:
        if not turn.utterance.words:
            heard[turn.start_sample // USER_FRAME_SAMPLES : turn.end_frame + 12] = -100
            continue
        free = 0
        for word in turn.utterance.words:
            after = (turn.start_sample + word.end_sample) // USER_FRAME_SAMPLES + 1
            for ids in vocab.encode_words(word.text.strip(MARKS)):
                for token in ids:
                    at = max(after, free)
                    free = at + 1
                    if at < len(heard):
                        heard[at] = token
    return heard


def lay_presence(timeline: Timeline, audio: np.ndarray) -> np.ndarray:
    """What the frames of the user's channel hold [T], as `Presence`.

    Speech where a turn covers half of the frame, pauses apart; else noise where it is audible (NOISE_RMS), or nothing.

    Args:
        timeline: Whose turns they are.
        audio: The channel as it is heard, float32 [T * 1280].
    """
    spoken = np.zeros(timeline.num_frames * USER_FRAME_SAMPLES, bool)
    for turn in timeline.user:
        spoken[turn.start_sample : turn.end_sample] = True
        for start, end in turn.pauses:
            spoken[start:end] = False
    frames = audio.reshape(timeline.num_frames, USER_FRAME_SAMPLES)
    audible = np.sqrt((frames**2).mean(1)) > NOISE_RMS
    held = np.where(audible, Presence.NOISE, Presence.NOTHING)
    return np.where(spoken.reshape(frames.shape).mean(1) >= 0.5, Presence.SPEECH, held).astype(np.int64)
