import numpy as np
import pytest

from eval import metrics


# user    [1.0 ---- 2.0]          agent starts at ...
@pytest.mark.parametrize(
    ("agent", "next_s", "expected"),
    [
        ([(2.3, 4.0)], 9.0, 0.3),
        ([(0.0, 0.8), (2.5, 3.0)], 9.0, 0.5),  # an earlier answer is none
        ([(1.95, 3.0)], 9.0, -0.05),  # a little early is on time
        ([(1.8, 3.0)], 9.0, None),  # over the user, and it just goes on
        ([(1.8, 1.9), (2.4, 3.0)], 9.0, 0.4),
        ([(4.9, 6.0)], 9.0, 2.9),
        ([(5.0, 6.0)], 9.0, None),  # too late
        ([(2.6, 3.0)], 2.6, None),  # the user speaks again at that moment
        ([], 9.0, None),
    ],
)
def test_response_gap(agent, next_s, expected):
    assert metrics.response_gap_s(agent, 2.0, next_s) == (None if expected is None else pytest.approx(expected))


# the user interrupts   [5.0 ---- 6.0]
@pytest.mark.parametrize(
    ("agent", "expected"),
    [
        ([(3.0, 5.4)], 0.4),
        ([(3.0, 5.4), (6.3, 7.0)], 0.4),  # the new answer is no part of the old one
        ([(3.0, 5.1), (5.4, 6.9)], 1.9),  # a comma, then on over the user
        ([(3.0, 5.1), (5.8, 6.9)], 0.1),  # stopped, then started anew: a false alarm, not a slow stop
        ([(3.0, 4.9), (5.2, 5.6)], 0.6),  # the user began in the comma
        ([(3.0, 9.0)], 4.0),
        ([(3.0, 4.9)], None),  # it had finished
        ([(5.2, 6.0)], None),  # it was silent
        ([], None),
    ],
)
def test_stop_latency(agent, expected):
    assert metrics.stop_latency_s(agent, 5.0, 6.0) == (None if expected is None else pytest.approx(expected))


def test_a_quick_new_answer_after_a_short_interruption_is_not_a_slow_stop():
    # user [5.0 - 5.4] "stop"; agent stops at 5.3 and says "okay" at 5.6
    agent = [(3.0, 5.3), (5.6, 6.0)]
    assert metrics.stop_latency_s(agent, 5.0, 5.4) == pytest.approx(0.3)
    assert metrics.response_gap_s(agent, 5.4) == pytest.approx(0.2)


# user    [1.0 ---- 4.0], silent in 2.0 .. 3.0
@pytest.mark.parametrize(
    ("agent", "alarm", "takeover"),
    [
        ([(4.3, 5.0)], False, False),
        ([(1.5, 2.5)], True, False),
        ([(3.95, 5.0)], False, False),  # the user ends within 0.1 s
        ([(3.85, 5.0)], True, False),
        ([(2.4, 2.8)], False, True),
        ([(3.1, 3.3)], False, True),  # its cause was the pause
        ([(3.3, 3.5)], True, False),
        ([(0.2, 1.4)], False, False),  # an old answer that stops late
        ([(0.2, 1.2), (1.5, 1.8)], False, False),  # ... with a comma
        ([(0.2, 1.0), (1.6, 1.8)], True, False),
        ([(2.3, 2.6), (3.5, 3.7)], True, True),
        ([], False, False),
    ],
)
def test_false_alarm_and_pause_takeover(agent, alarm, takeover):
    pause = (2.0, 3.0)
    assert metrics.is_false_alarm(agent, 1.0, 4.0, [pause]) is alarm
    assert metrics.is_pause_takeover(agent, pause) is takeover


def test_merge_joins_only_gaps_that_are_shorter():
    assert metrics.merge([(0, 1), (1.5, 2), (2.25, 3)], 0.5) == [(0, 1), (1.5, 3)]
    assert metrics.merge([], 0.5) == []


def test_statistics():
    assert metrics.mean(np.array([1.0, 0.0, 1.0, 1.0])) == 0.75
    assert metrics.percentile(50)(np.array([1.0, 2.0, 9.0])) == 2.0
    assert metrics.change(np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 1.0]])) == -0.25
    assert metrics.growth(np.array([[10.0, 20.0, 90.0], [11.0, 22.0, 900.0]])) == pytest.approx(0.1)
    many = np.array([[1.0, 3.0], [2.0, 6.0]])[:, np.zeros((5, 2), int)]  # five resamples
    assert metrics.growth(many).tolist() == [1.0] * 5 and metrics.change(many).tolist() == [1.0] * 5
    assert metrics.ratio(np.array([[1.0, 3.0], [10.0, 10.0]])) == 0.2


def test_bootstrap_covers_the_value_narrows_with_n_and_repeats():
    few, many = np.array([1.0, 0.0] * 10), np.array([1.0, 0.0] * 500)
    low, high = metrics.bootstrap_ci95(few, metrics.mean, seed=1)
    assert low < 0.5 < high and high - low == pytest.approx(0.44, abs=0.08)  # 2 * 1.96 * sqrt(.25 / 20)
    assert np.subtract(*metrics.bootstrap_ci95(many, metrics.mean, 1)[::-1]) < 0.08
    assert metrics.bootstrap_ci95(few, metrics.mean, 1) == (low, high)
    assert metrics.bootstrap_ci95(np.ones(30), metrics.mean, 1) == (1.0, 1.0)
    low, high = metrics.bootstrap_ci95(np.array([[0.0, 2.0] * 20, [4.0, 4.0] * 20]), metrics.ratio, 1)
    assert 0.1 < low < 0.25 < high < 0.4


def test_an_agent_goes_on_or_stops_and_resumes():
    assert metrics.goes_on([(1.0, 4.0)], 2.0) is True
    assert metrics.goes_on([(1.0, 2.4)], 2.0) is False and not metrics.resumes([(1.0, 2.4)], 2.0)
    assert metrics.goes_on([(1.0, 2.4), (2.7, 5.0)], 2.0) is True  # a comma
    assert metrics.goes_on([(1.0, 2.4), (4.0, 6.0)], 2.0) is False and metrics.resumes([(1.0, 2.4), (4.0, 6.0)], 2.0)
    assert metrics.goes_on([(3.0, 4.0)], 2.0) is None


def test_an_agent_that_hears_itself_breaks_off_or_speaks_again():
    alone = metrics.stretches([(0.5, 1.0), (3.0, 4.0), (4.8, 6.0), (9.0, 9.5)], 2.5, 8.0)
    assert alone == ((3.0, 6.0),)  # a full stop inside
    assert metrics.is_self_interruption(((3.0, 5.9),), alone) is False
    assert metrics.is_self_interruption(((3.0, 4.9),), alone) is True
    assert metrics.is_self_interruption((), alone) is True
    assert metrics.is_self_interruption(((3.0, 6.0), (7.2, 8.0)), alone) is True
    assert metrics.is_self_interruption(((3.0, 4.0),), ()) is None
