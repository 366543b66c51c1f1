"""The verdict on every turn of a conversation, by ear: VAD and ASR of the agent's audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval import metrics
from eval.draft import Scenario, Turn
from eval.metrics import Segment
from eval.systems import AGENT_HZ, Reply
from eval.text import is_correct
from train.asr import TimedWord
from train.bank import USER_HZ

TEXT_LEAD_S = 0.5  # the text channel runs at most this much ahead of its sound


@dataclass(frozen=True)
class Judge:
    """The ears, all from float32 audio at 16 kHz.

    Attributes:
        vad: Speech segments.
        asr: Text.
        words: Words and when they sound, for suite `fdb`.
        coarse_vad: Speech segments as that benchmark takes them: of silero-vad as it comes, edges not refined.
    """

    vad: Callable[[np.ndarray], list[Segment]]
    asr: Callable[[np.ndarray], str]
    words: Callable[[np.ndarray], list[TimedWord]] | None = None
    coarse_vad: Callable[[np.ndarray], list[Segment]] | None = None


def default_judge() -> Judge:
    """silero-vad and whisper-tiny.en."""
    from eval.vad import CoarseVad, SileroVad
    from train.asr import WhisperAsr

    asr = WhisperAsr()
    return Judge(SileroVad(), asr, asr.words, CoarseVad())


@dataclass(frozen=True)
class TurnOutcome:
    """How the agent treated one user turn. None: does not apply, or did not happen.

    Attributes:
        response_s: From the turn's end to the agent's start.
        stop_s: From an interruption's onset to the agent's silence; None when the agent was not speaking.
        false_alarm: It started over the user.
        takeovers: For each pause, whether the agent took the turn in it.
        said: Where the agent spoke between this turn and the next, as `metrics.stretches`.
        went_on, resumed: After a backchannel, whether the agent kept speaking; if not, whether it soon spoke again.
        heard, own_text: Transcript of the answer's audio and the agent's own text for it, on scored turns.
        correct: Whether `heard` is the right answer.
        failed: The system gave no reply that can be judged: everything that can go wrong in the turn did.
    """

    turn: Turn
    response_s: float | None
    stop_s: float | None
    false_alarm: bool
    takeovers: tuple[bool, ...]
    said: tuple[Segment, ...] = ()
    heard: str | None = None
    own_text: str | None = None
    correct: bool | None = None
    went_on: bool | None = None
    resumed: bool | None = None
    failed: bool = False


@dataclass(frozen=True)
class Conversation:
    """A scenario, what the system did, where it spoke, and the verdict on each turn."""

    scenario: Scenario
    reply: Reply
    agent: tuple[Segment, ...]
    outcomes: tuple[TurnOutcome, ...]


def judge_conversation(scenario: Scenario, reply: Reply, judge: Judge) -> Conversation:
    """Listen to a reply and judge every turn."""
    import soxr

    if reply.failed:
        return Conversation(scenario, reply, (), tuple(judge_failure(turn) for turn in scenario.turns))
    audio = soxr.resample(reply.audio, AGENT_HZ, USER_HZ).astype(np.float32)
    agent = judge.vad(audio)
    outcomes = []
    for i, turn in enumerate(scenario.turns):
        next_s = scenario.turns[i + 1].start_s if i + 1 < len(scenario.turns) else scenario.duration_s
        outcome = judge_timing(turn, next_s, agent)
        if turn.scored:
            outcome = _judge_words(outcome, next_s, agent, audio, reply, judge)
        outcomes.append(outcome)
    return Conversation(scenario, reply, tuple(agent), tuple(outcomes))


def judge_timing(turn: Turn, next_s: float, agent: Sequence[Segment]) -> TurnOutcome:
    """Everything about a turn that needs no words."""
    if turn.backchannel:
        went_on = metrics.goes_on(agent, turn.start_s)
        resumed = metrics.resumes(agent, turn.start_s) if went_on is False else None
        return TurnOutcome(turn, None, None, False, (), went_on=went_on, resumed=resumed)
    return TurnOutcome(
        turn,
        response_s=metrics.response_gap_s(agent, turn.end_s, next_s),
        stop_s=metrics.stop_latency_s(agent, turn.start_s, turn.end_s) if turn.interrupts else None,
        false_alarm=metrics.is_false_alarm(agent, turn.start_s, turn.end_s, turn.pauses),
        takeovers=tuple(metrics.is_pause_takeover(agent, pause) for pause in turn.pauses),
        said=metrics.stretches(agent, turn.end_s - metrics.EARLY_S, next_s),
    )


def judge_failure(turn: Turn) -> TurnOutcome:
    """A turn of a conversation in which the system failed."""
    if turn.backchannel:
        return TurnOutcome(turn, None, None, False, (), went_on=False, resumed=False, failed=True)
    correct = False if turn.scored else None
    return TurnOutcome(turn, None, None, True, tuple(True for _ in turn.pauses), correct=correct, failed=True)


def _judge_words(
    outcome: TurnOutcome, next_s: float, agent: Sequence[Segment], audio: np.ndarray, reply: Reply, judge: Judge
) -> TurnOutcome:
    """Transcribe what sounds between the turn's end and the next turn, whole segments, and compare."""
    turn = outcome.turn
    spoken = [s for s in agent if s[1] > turn.end_s - metrics.EARLY_S and s[0] < next_s]
    heard = ""
    begin_s = turn.end_s
    if spoken:
        begin_s = max(spoken[0][0], turn.start_s)
        span = slice(max(round((begin_s - 0.1) * USER_HZ), 0), round(min(spoken[-1][1] + 0.2, next_s) * USER_HZ))
        heard = judge.asr(audio[span])
    own = "".join(piece for time_s, piece in reply.text_events if begin_s - TEXT_LEAD_S <= time_s < next_s).strip()
    correct = is_correct(heard, turn.answer, turn.key, turn.exact)
    return replace(outcome, heard=heard, own_text=own, correct=correct)
