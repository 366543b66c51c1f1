"""Recorded conversations on two channels: what is known of one, and how a stretch of it becomes a `Timeline`.

user    [ so how was ]     [ no really? ]            channel of its own, 16 kHz
agent              [ it was great, we w ]   [ yes ]  channel of its own; overlaps are kept
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.random import Generator

from codec.plain import one_line, shown
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from duplex.vocab import Vocab
from train.bank import AGENT_HZ, USER_HZ, Utterance, Word
from train.layout import token_frames
from train.timeline import USER_FRAME_SAMPLES, AgentTurn, Timeline, UserTurn
from train.voices.base import WordTime

FRAME_S = FRAME_MS / 1000
MERGE_S = 0.4  # an agent that goes on within this time has not ended its turn
YIELD_S = 1.5  # an agent that stops within this time of the user's onset was interrupted


@dataclass(frozen=True)
class Spoken:
    """One stretch of one speaker.

    Attributes:
        role: `user` or `agent`.
        start_s, end_s: Where it is in the conversation.
        text: What is said; empty where nobody knows.
        words: Its words and when they sound, in seconds of the conversation; empty where nobody knows.
    """

    role: str
    start_s: float
    end_s: float
    text: str
    words: tuple[WordTime, ...] = ()


@dataclass(frozen=True)
class Conversation:
    """Two voices of equal length.

    Attributes:
        id: Its name.
        user: float32 [num_samples] at 16 kHz, -1..1.
        agent: float32 at 24 kHz; empty where only its codes are kept.
        spoken: Who says what when, in order of start.
        codes: int16 [num_frames, K] of the agent's channel, None before they are made.
    """

    id: str
    user: np.ndarray
    agent: np.ndarray
    spoken: tuple[Spoken, ...]
    codes: np.ndarray | None = None

    @property
    def num_frames(self) -> int:
        """Frames that hold all of it."""
        return -(-len(self.user) // USER_FRAME_SAMPLES)

    def of(self, role: str) -> list[Spoken]:
        """What one speaker says."""
        return [spoken for spoken in self.spoken if spoken.role == role]


def check_conversation(conversation: Conversation, vocab: Vocab | None = None) -> None:
    """Check that what is said of a conversation can be.

    Raises:
        UserError: speech outside the audio, speech of one speaker that overlaps, no agent, or a text longer than its speech.
    """
    name, duration_s = conversation.id, len(conversation.user) / USER_HZ
    if not conversation.of("agent"):
        raise UserError(f"{name}: the agent says nothing; name its role `agent` or `assistant`, or make the other channel the agent")
    for role in ("user", "agent"):
        spoken = conversation.of(role)
        for one in spoken:
            if not 0 <= one.start_s < one.end_s <= duration_s + FRAME_S:
                raise UserError(
                    f"{name}: {shown(one.text)} of the {role} is at {one.start_s:.2f} to {one.end_s:.2f} s of {duration_s:.2f} s of audio; "
                    "correct its start and duration"
                )
        for one, other in pairwise(spoken):
            if other.start_s < one.end_s - 1e-3:
                raise UserError(
                    f"{name}: {shown(other.text)} of the {role} begins at {other.start_s:.2f} s, "
                    f"before {shown(one.text)} of the same speaker ends at {one.end_s:.2f} s; "
                    "put each speaker on a channel of its own, or join the two"
                )
    if vocab is not None:
        for turn in agent_turns(conversation):
            try:
                token_frames(turn.utterance, vocab)
            except UserError as error:
                at_s = turn.start_frame * FRAME_S
                raise UserError(f"{name} at {at_s:.2f} s: {one_line(error)}; correct the text or the duration") from error


def agent_turns(conversation: Conversation) -> list[AgentTurn]:
    """The agent's turns, what follows within MERGE_S joined; codes of unknown conversations count as -1."""
    joined: list[Spoken] = []
    for spoken in conversation.of("agent"):
        if joined and spoken.start_s - joined[-1].end_s < MERGE_S:
            last = joined.pop()
            both = last.words + spoken.words if last.words and spoken.words else ()
            spoken = replace(spoken, start_s=last.start_s, text=f"{last.text} {spoken.text}".strip(), words=both)
        joined.append(spoken)
    codes = conversation.codes
    if codes is None:
        codes = np.full((conversation.num_frames, 1), -1, np.int16)
    users = conversation.of("user")
    turns: list[AgentTurn] = []
    for i, spoken in enumerate(joined):
        start = int(spoken.start_s / FRAME_S)
        end = min(math.ceil(spoken.end_s / FRAME_S), len(codes))
        known = spoken.words if len(spoken.words) == len(spoken.text.split()) else ()
        words = _samples(known, start * FRAME_S, AGENT_HZ)
        said = codes[start : max(end, start + 1)]
        utterance = Utterance(f"{conversation.id}/{i}", spoken.text, "", np.zeros(0, np.int16), AGENT_HZ, words, said)
        answers = max((j for j, user in enumerate(users) if user.start_s <= spoken.start_s), default=-1)
        turns.append(AgentTurn(utterance, start, start + len(said), answers))
    return turns


def _samples(words: tuple[WordTime, ...], offset_s: float, rate_hz: int) -> tuple[Word, ...]:
    return tuple(
        Word(w.word, max(round((w.start_s - offset_s) * rate_hz), 0), max(round((w.end_s - offset_s) * rate_hz), 1)) for w in words
    )


def quiet_frames(conversation: Conversation, lead_frames: int) -> np.ndarray:
    """Frames at which a session may begin: the agent is silent, and has not begun to write what it will say."""
    quiet = np.ones(max(conversation.num_frames, 1), bool)
    for turn in agent_turns(conversation):
        quiet[max(turn.start_frame - lead_frames - 1, 0) : turn.cut_frame + 1] = False
    quiet[0] = True
    return np.flatnonzero(quiet)


def draw_window(conversation: Conversation, num_frames: int, lead_frames: int, rng: Generator) -> Timeline:
    """A stretch of `num_frames` frames that begins where the agent is silent; silence follows the conversation's end."""
    begins = quiet_frames(conversation, lead_frames)
    last = max(conversation.num_frames - num_frames, 0)
    begins = begins[begins <= last] if (begins <= last).any() else begins[:1]
    return window(conversation, int(begins[rng.integers(len(begins))]), num_frames)


def window(conversation: Conversation, first_frame: int, num_frames: int) -> Timeline:
    """The frames from `first_frame` on as a `Timeline` whose user is the recorded channel."""
    first = first_frame * USER_FRAME_SAMPLES
    piece = conversation.user[first : first + num_frames * USER_FRAME_SAMPLES]
    audio = np.zeros(num_frames * USER_FRAME_SAMPLES, np.float32)
    audio[: len(piece)] = piece
    agents = agent_turns(conversation)
    users = [turn for turn in (_user_turn(conversation, spoken, first, len(audio), agents) for spoken in conversation.of("user")) if turn]
    if not conversation.of("user"):  # nobody wrote down what the user says
        users = [UserTurn(Utterance(conversation.id, "", "", audio, USER_HZ), 0)]
    shown = [
        replace(turn, start_frame=turn.start_frame - first_frame, cut_frame=turn.cut_frame - first_frame)
        for turn in agents
        if first_frame <= turn.start_frame < first_frame + num_frames
    ]
    return Timeline(num_frames, tuple(users), tuple(shown), audio)


def _user_turn(conversation: Conversation, spoken: Spoken, first: int, length: int, agents: list[AgentTurn]) -> UserTurn | None:
    """What of a user's turn is in the `length` samples from `first` on; a text without word times only when it is there whole."""
    start, end = round(spoken.start_s * USER_HZ) - first, round(spoken.end_s * USER_HZ) - first
    if end <= 0 or start >= length:
        return None
    whole, begin = start >= 0 and end <= length, max(start, 0)
    words = tuple(
        w for w in _samples(spoken.words, (first + begin) / USER_HZ, USER_HZ) if w.end_sample > 1 and begin + w.end_sample <= length
    )
    text = spoken.text if whole else " ".join(w.text for w in words)
    audio = conversation.user[first + begin : first + min(end, length)]
    return UserTurn(Utterance(conversation.id, text, "", audio, USER_HZ, words), begin, _kind(spoken, agents))


def _kind(spoken: Spoken, agents: list[AgentTurn]) -> str:
    for turn in agents:
        if turn.start_frame * FRAME_S < spoken.start_s < turn.cut_frame * FRAME_S:
            return "interruption" if turn.cut_frame * FRAME_S - spoken.start_s <= YIELD_S else "backchannel"
    return "question"
