"""What is measured, as pure functions on the times at which somebody speaks.

    user    [ what is two plus two ]              [ stop ]
    agent                           [ two plus ........ ]      [ okay ]
                                  ->|  |<- response  ->|  |<- stop latency

Times are seconds from the start of the conversation. `agent` is always the speech segments of the agent's audio as a VAD hears
them: sorted (start_s, end_s) that do not overlap.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Segment = tuple[float, float]

EARLY_S = 0.1  # an answer may begin this much before the user's last sample: nobody hears that as talking over
ANSWER_S = 3.0  # an answer that has not begun by then is none
BRIDGE_S = 0.5  # silences inside one answer (commas, full stops) are shorter
STOP_S = 1.5  # an interrupted agent is silent by then
SENTENCE_S = 1.0  # so are those between the sentences of one answer
BROKEN = 0.7  # an answer shorter than this share of itself was broken off
RESUME_S = 0.2  # a start this soon after a pause was triggered by the pause


def merge(segments: Sequence[Segment], gap_s: float) -> list[Segment]:
    """Join neighbours whose gap is shorter than `gap_s`."""
    merged: list[Segment] = []
    for start, end in segments:
        if merged and start - merged[-1][1] < gap_s:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def response_gap_s(agent: Sequence[Segment], turn_end_s: float, next_start_s: float = float("inf")) -> float | None:
    """From the end of a user's turn to the first start of agent speech; None without one.

    A start counts from EARLY_S before the end, for ANSWER_S, and only before the user speaks again. An agent that
    began earlier and just goes on has not responded.
    """
    until_s = min(next_start_s, turn_end_s + ANSWER_S)
    return next((start - turn_end_s for start, _ in agent if turn_end_s - EARLY_S <= start < until_s), None)


def is_speaking(agent: Sequence[Segment], time_s: float) -> bool:
    """Whether the agent is inside an answer at `time_s`, its short silences included."""
    return any(start < time_s < end for start, end in merge(agent, BRIDGE_S))


def stop_latency_s(agent: Sequence[Segment], onset_s: float, user_end_s: float) -> float | None:
    """From a user's onset over a speaking agent until the agent is silent; None when it was not speaking.

    A short silence does not end the answer if the agent goes on while the user still speaks. Speech that starts
    after the user's end is a new answer.
    """
    if not is_speaking(agent, onset_s):
        return None
    silent_s = onset_s
    for start, end in agent:
        continues = start <= onset_s or (start < user_end_s + EARLY_S and start - silent_s < BRIDGE_S)
        if end > silent_s and continues:
            silent_s = end
    return silent_s - onset_s


def is_false_alarm(agent: Sequence[Segment], start_s: float, end_s: float, pauses: Sequence[Segment] = ()) -> bool:
    """Whether the agent starts while the user speaks.

    Not counted: overlaps which the user ends within EARLY_S, an answer that goes on after a short silence (that is a slow stop),
    and starts inside the user's pauses (`is_pause_takeover` counts them).
    """
    onsets = [start for start, _ in merge(agent, BRIDGE_S) if start_s <= start < end_s - EARLY_S]
    return any(not any(is_pause_takeover([(onset, onset)], pause) for pause in pauses) for onset in onsets)


def is_pause_takeover(agent: Sequence[Segment], pause: Segment) -> bool:
    """Whether the agent starts inside a pause of the user's turn, or so soon after (RESUME_S) that the pause caused it."""
    return any(pause[0] <= start < pause[1] + RESUME_S for start, _ in merge(agent, BRIDGE_S))


def goes_on(agent: Sequence[Segment], onset_s: float) -> bool | None:
    """Whether an agent that was speaking when the user said something short is still speaking STOP_S later; None: it was not speaking."""
    if not is_speaking(agent, onset_s):
        return None
    return is_speaking(agent, onset_s + STOP_S)


def resumes(agent: Sequence[Segment], onset_s: float) -> bool:
    """Whether an agent that did not go on begins again within ANSWER_S of the onset."""
    return any(onset_s < start < onset_s + ANSWER_S for start, _ in merge(agent, BRIDGE_S))


def stretches(agent: Sequence[Segment], start_s: float, end_s: float) -> tuple[Segment, ...]:
    """The answers that begin in a span, silences inside them (SENTENCE_S) bridged."""
    return tuple(s for s in merge(agent, SENTENCE_S) if start_s <= s[0] < end_s)


def is_self_interruption(said: Sequence[Segment], undisturbed: Sequence[Segment]) -> bool | None:
    """Whether an agent that hears itself broke off, or spoke again unasked; None where it has nothing to say undisturbed either.

    Judged against what it says without the echo: broken off is less than BROKEN of its length.
    """
    if not undisturbed:
        return None
    length, whole = (sum(end - start for start, end in spans) for spans in (said, undisturbed))
    return len(said) > len(undisturbed) or length < BROKEN * whole


Statistic = Callable[[np.ndarray], np.ndarray]


def mean(samples: np.ndarray) -> np.ndarray:
    """Mean over the last axis; a rate when the samples are 0 and 1."""
    return samples.mean(axis=-1)


def percentile(q: float) -> Statistic:
    """The q-th percentile over the last axis."""
    return lambda samples: np.percentile(samples, q, axis=-1)


def ratio(samples: np.ndarray) -> np.ndarray:
    """[2, ..., n] counts and sizes -> sum of counts over sum of sizes, as in a corpus's word error rate."""
    return samples[0].sum(axis=-1) / np.maximum(samples[1].sum(axis=-1), 1)


def change(samples: np.ndarray) -> np.ndarray:
    """[2, ..., n] before and after -> difference of the means."""
    return samples[1].mean(axis=-1) - samples[0].mean(axis=-1)


def growth(samples: np.ndarray) -> np.ndarray:
    """[2, ..., n] before and after -> by how much of itself the median has grown."""
    before, after = np.median(samples, axis=-1)
    return after / before - 1


def bootstrap_ci95(samples: np.ndarray, statistic: Statistic, seed: int, num_resamples: int = 1000) -> tuple[float, float]:
    """95 % percentile bootstrap interval of `statistic` over the last axis of `samples`, n >= 1."""
    n = samples.shape[-1]
    assert n, "an interval needs samples"
    picks = np.random.default_rng(seed).integers(0, n, (num_resamples, n))
    values = statistic(samples[..., picks])  # [..., n] -> [..., R, n] -> [R]
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
