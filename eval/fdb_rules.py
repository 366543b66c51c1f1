"""The rules of Full-Duplex-Bench v1 (arXiv 2503.04721) and v1.5 (arXiv 2507.23159), as pure functions.

v1 scores words with times (`output.json`) and, for backchannels, speech segments; v1.5 speech segments of both sides.
Its judgements by a language model (relevance, behaviour) are not here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from eval.metrics import Segment, merge
from train.asr import TimedWord

TURN_S, TURN_WORDS = 1.0, 3  # speech of a second, or of more words, takes the turn
FORMAL_S = 3.0  # a longer segment is no backchannel, whatever it says
SHORT_WORDS = 2  # a backchannel has no more
BIN_S = 0.2
EPSILON = 1e-10
USER_GAP_S, AGENT_GAP_S = 0.6, 0.5  # shorter silences do not split, in v1.5


def takes_turn(words: Sequence[TimedWord]) -> bool:
    """TOR of one sample: whether what was said lasts TURN_S or has more than TURN_WORDS words."""
    return bool(words) and (words[-1].end_s - words[0].start_s >= TURN_S or len(words) > TURN_WORDS)


def latency_s(words: Sequence[TimedWord], user_end_s: float) -> float | None:
    """From the user's end to the first word, 0 when that came before; None where the turn was not taken."""
    return max(words[0].start_s - user_end_s, 0.0) if takes_turn(words) else None


@dataclass(frozen=True)
class Backchannels:
    """Of one sample: whether the turn was taken, backchannels a second, and how far their timing is from people's (0 .. 0.83, 1: none)."""

    takes_turn: bool
    per_second: float
    jsd: float


def backchannels(segments: Sequence[Segment], words: Sequence[TimedWord], duration_s: float, truth: Sequence[float]) -> Backchannels:
    """Score an agent that listens to a long turn.

    Args:
        segments: Where it speaks.
        words: What it says.
        duration_s: Length of the sample.
        truth: How likely a backchannel is over the sample, any number of bins.

    As in the benchmark: a segment that takes the turn clears the backchannels before it, a short one after it takes the verdict back,
    and one of more than FORMAL_S ends the search.
    """
    taken, found = False, list[Segment]()
    for start, end in segments:
        if end - start > FORMAL_S:
            taken = True
            break
        inside = [w for w in words if w.start_s <= end and (w.end_s > start or w.start_s >= start)]
        taken = end - start >= TURN_S or len(inside) > SHORT_WORDS
        found = [] if taken else [*found, (start, end)]
    return Backchannels(taken, len(found) / duration_s, timing_distance(found, duration_s, truth) if found else 1.0)


def timing_distance(found: Sequence[Segment], duration_s: float, truth: Sequence[float]) -> float:
    """Jensen-Shannon distance (base e) between where segments lie, in bins of BIN_S, and the truth, stretched to as many bins."""
    from scipy.spatial.distance import jensenshannon

    bins = np.zeros(int(duration_s / BIN_S) + 1)
    for start, end in found:
        bins[int(start / BIN_S) : int(end / BIN_S) + 1] += 1
    bins = (bins + EPSILON) / (bins + EPSILON).sum()
    stretched = np.interp(np.linspace(0, 1, len(bins)), np.linspace(0, 1, len(truth)), truth)
    return float(jensenshannon(bins, stretched))


@dataclass(frozen=True)
class Overlaps:
    """v1.5: where both speak, and from each end of the user's speech to the agent's next start."""

    stops: tuple[Segment, ...]
    responses: tuple[Segment, ...]


def overlaps(user: Sequence[Segment], agent: Sequence[Segment]) -> Overlaps:
    """Intervals whose lengths are the stop and the response latencies, from speech segments of both."""
    user, agent = _joined(user, USER_GAP_S), _joined(agent, AGENT_GAP_S)
    both = [(max(u[0], a[0]), min(u[1], a[1])) for u in user for a in agent if min(u[1], a[1]) > max(u[0], a[0])]
    stops: dict[int, Segment] = {}
    for start, end in both:  # of those that end together the shortest
        key = round(end * 1000)
        stops[key] = max(stops.get(key, (start, end)), (start, end))
    responses: dict[int, Segment] = {}
    for _, end in user:  # of those that lead to one start the shortest
        for start in [begin for begin, _ in agent if begin > end][:1]:
            key = round(start * 1000)
            responses[key] = max(responses.get(key, (end, start)), (end, start))
    return Overlaps(tuple(sorted(stops.values(), key=lambda s: s[1])), tuple(sorted(responses.values(), key=lambda s: s[1])))


def _joined(segments: Sequence[Segment], gap_s: float) -> list[Segment]:
    return merge(sorted(segments), float(np.nextafter(gap_s, 1.0)))  # the benchmark joins over a gap of exactly that, too


def of_event(found: Overlaps, event: Segment) -> tuple[float | None, float | None]:
    """Stop latency, of the overlap that touches the event, and response latency, from the event on; None where there is none."""
    stop = next((end - start for start, end in found.stops if start < event[1] and end > event[0]), None)
    response = next((end - start for start, end in found.responses if start >= event[0]), None)
    return stop, response
