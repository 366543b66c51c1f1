"""Run a suite: conversations through a system, judged by ear (VAD and ASR), summed up as figures."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from eval import metrics, scenarios
from eval.metrics import Segment
from eval.scenarios import Scenario, Turn
from eval.systems import AGENT_HZ, Reply, System, batches
from eval.text import is_correct, word_errors
from train.bank import USER_HZ, Utterance

TEXT_LEAD_S = 0.5  # the text channel runs at most this much ahead of its sound
LONG_CHARACTERS = 60  # such an answer goes on for a second and more from its middle


@dataclass(frozen=True)
class Judge:
    """The ears: `vad` gives speech segments, `asr` gives text, both from float32 audio at 16 kHz."""

    vad: Callable[[np.ndarray], list[Segment]]
    asr: Callable[[np.ndarray], str]


def default_judge() -> Judge:
    """silero-vad and whisper-tiny.en."""
    from eval.asr import WhisperAsr
    from eval.vad import SileroVad

    return Judge(SileroVad(), WhisperAsr())


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


@dataclass(frozen=True)
class Conversation:
    """A scenario, what the system did, where it spoke, and the verdict on each turn."""

    scenario: Scenario
    reply: Reply
    agent: tuple[Segment, ...]
    outcomes: tuple[TurnOutcome, ...]


@dataclass(frozen=True)
class Figure:
    """Samples of one figure, the last axis counts them: `rate`, `percentiles`, or `ratio` ([2, n] counts and sizes)."""

    samples: np.ndarray
    kind: str = "rate"


@dataclass(frozen=True)
class SuiteRun:
    """`result` is the JSON line; `conversations` is what it was computed from."""

    result: dict
    conversations: tuple[Conversation, ...]


def run_suite(
    suite: str, system: System, pool: Sequence[Utterance], judge: Judge, n: int, seed: int,
    batch: int = 16, progress: Callable[[int], None] = lambda done: None,
) -> SuiteRun:  # fmt: skip
    """Build a suite's scenarios from `pool`, run `system` on them and judge it; `progress` gets the number judged after each batch."""
    built = scenarios.build(suite, pool, n, seed)
    judged: dict[int, Conversation] = {}
    for indices in batches(built, batch):
        replies = system.respond([built[i] for i in indices])
        for i, reply in zip(indices, replies, strict=True):
            judged[i] = judge_conversation(built[i], reply, judge)
        progress(len(judged))
    conversations = tuple(judged[i] for i in range(len(built)))
    outcomes = [outcome for conversation in conversations for outcome in conversation.outcomes]
    result = {"suite": suite, "system": system.name, "n": len(built), "seed": seed, **summarize(FIGURES[suite](outcomes), seed)}
    if suite in ("answers", "listening"):
        result["accuracy_by_skill"] = _grouped(outcomes, lambda turn: turn.skill)
        result["accuracy_by_voice"] = _grouped(outcomes, lambda turn: turn.voice)
    return SuiteRun(result, conversations)


def judge_conversation(scenario: Scenario, reply: Reply, judge: Judge) -> Conversation:
    """Listen to a reply and judge every turn."""
    import soxr

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


def _rate(values) -> Figure:
    return Figure(np.array([float(v) for v in values]))


def _times(values) -> Figure:
    return Figure(np.array([v for v in values if v is not None], dtype=float), "percentiles")


def _agent_wer(outcomes: Sequence[TurnOutcome]) -> Figure:
    """Spoken answers of agents that have a text channel."""
    pairs = [word_errors(o.own_text, o.heard) for o in outcomes if o.own_text and o.heard is not None]
    return Figure(np.array(pairs, dtype=float).reshape(-1, 2).T, "ratio")


def _answers_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    scored = [o for o in outcomes if o.correct is not None]
    return {
        "accuracy": _rate(o.correct for o in scored),
        # two words and more: combinations
        "repeat_accuracy": _rate(o.correct for o in scored if o.turn.skill == "repeat" and len(o.turn.answer.split()) > 1),
        "agent_wer": _agent_wer(scored),
        "no_answer_rate": _rate(o.response_s is None for o in outcomes),
        "response_s": _times(o.response_s for o in outcomes),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
    }


def _turns_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    return {
        "response_s": _times(o.response_s for o in outcomes),
        "turn_takeover_rate": _rate(o.response_s is not None for o in outcomes),
        "pause_takeover_rate": _rate(taken for o in outcomes for taken in o.takeovers),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
    }


def _impatient_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    interruptions = [o for o in outcomes if o.turn.interrupts]
    stops = [o.stop_s for o in interruptions if o.stop_s is not None]
    long_stops = [o.stop_s for o in interruptions if o.stop_s is not None and len(o.turn.over) >= LONG_CHARACTERS]
    return {
        "barge_in_success": _rate(stop <= metrics.STOP_S for stop in stops),
        # without the answers that would soon have ended anyway
        "barge_in_success_long": _rate(stop <= metrics.STOP_S for stop in long_stops),
        "stop_latency_s": _times(stops),
        "false_alarm_rate": _rate(o.false_alarm for o in outcomes),
        "first_response_s": _times(o.response_s for o in outcomes),
        "accuracy": _rate(o.correct for o in interruptions if o.correct is not None),
        # how many of the planned interruptions met a speaking agent
        "interrupted_rate": _rate(o.stop_s is not None for o in interruptions),
    }


def _backchannel_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    asides = [o for o in outcomes if o.turn.backchannel]
    return {
        "false_stop_rate": _rate(not o.went_on for o in asides if o.went_on is not None),
        "resume_rate": _rate(o.resumed for o in asides if o.resumed is not None),
        # how many of the planned ones met a speaking agent
        "overlap_rate": _rate(o.went_on is not None for o in asides),
    }


def _noise_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    levels = {level: [o for o in outcomes if o.turn.snr_db == level] for level in scenarios.NOISE_DB}
    right = {level: np.array([o.correct for o in group], dtype=float) for level, group in levels.items()}
    pairs = min(len(right[10]), len(right[None]))  # the same turns at both levels, in order
    figures = {f"accuracy_{_level(level)}": Figure(values) for level, values in right.items()}
    figures["relative_10db"] = Figure(np.stack([right[10][:pairs], right[None][:pairs]]), "ratio")
    figures |= {f"false_alarm_rate_{_level(level)}": _rate(o.false_alarm for o in group) for level, group in levels.items()}
    return figures


def _echo_figures(outcomes: Sequence[TurnOutcome]) -> dict[str, Figure]:
    levels = {level: [o for o in outcomes if o.turn.echo_db == level] for level in scenarios.ECHO_DB}
    figures = {f"accuracy_{_level(level)}": _rate(o.correct for o in group if o.correct is not None) for level, group in levels.items()}
    for level, group in levels.items():
        if level is not None:  # the same turns at both levels, in order
            verdicts = [metrics.is_self_interruption(o.said, alone.said) for o, alone in zip(group, levels[None], strict=False)]
            figures[f"self_interruption_rate_{_level(level)}"] = _rate(v for v in verdicts if v is not None)
    return figures


def _level(level_db: int | None) -> str:
    return "clean" if level_db is None else f"{level_db}db"


FIGURES: dict[str, Callable[[Sequence[TurnOutcome]], dict[str, Figure]]] = {
    "answers": _answers_figures, "listening": _answers_figures, "turns": _turns_figures, "impatient": _impatient_figures,
    "noise": _noise_figures, "backchannel": _backchannel_figures, "echo": _echo_figures,
}  # fmt: skip


def summarize(figures: dict[str, Figure], seed: int) -> dict:
    """Values, `ci95` (of a latency: its median's) and `counts` (samples behind each figure); a figure without samples is null."""
    values: dict = {}
    intervals: dict = {}
    for name, figure in figures.items():
        if figure.samples.shape[-1] == 0:
            values[name] = intervals[name] = None
            continue
        main = {"rate": metrics.mean, "ratio": metrics.ratio, "percentiles": metrics.percentile(50)}[figure.kind]
        values[name] = round(float(main(figure.samples)), 4)
        if figure.kind == "percentiles":
            values[name] = {"p50": values[name], "p90": round(float(metrics.percentile(90)(figure.samples)), 4)}
        intervals[name] = [round(edge, 4) for edge in metrics.bootstrap_ci95(figure.samples, main, seed)]
    return {**values, "ci95": intervals, "counts": {name: figure.samples.shape[-1] for name, figure in figures.items()}}


def _grouped(outcomes: Sequence[TurnOutcome], key: Callable[[Turn], str]) -> dict[str, float]:
    groups: dict[str, list[bool]] = {}
    for outcome in outcomes:
        if outcome.correct is not None:
            groups.setdefault(key(outcome.turn), []).append(outcome.correct)
    return {name: round(sum(group) / len(group), 4) for name, group in sorted(groups.items())}
