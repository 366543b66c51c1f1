"""What stops the agent and what does not: asides, the word that tells, stops that come late."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from tests.train.test_composer import CONFIG, FRAME, PLAIN, everything, followed, speech
from train import world
from train.augment import AugmentConfig
from train.composer import Cast, compose, telling_word


@pytest.fixture(scope="module")
def cast() -> Cast:
    return everything()


@pytest.mark.parametrize("interruptions", [0.0, 0.7])
def test_a_backchannel_lies_inside_an_answer_and_gets_none(cast: Cast, interruptions: float) -> None:
    asides = [speech("b0", "uh huh", 16000, False, skill="backchannel"), speech("b1", "right", 16000, False, skill="backchannel")]
    questions = [q for group in cast.by_skill.values() for q in group]
    rich = Cast([*questions, *asides], dict(cast.answers))
    config = dataclasses.replace(
        CONFIG, backchannel_probability=1.0, interruption_probability=interruptions, long_interruption_probability=interruptions
    )
    count = before_interruptions = 0
    for seed in range(40):
        timeline = compose(rich, config, AugmentConfig(), np.random.default_rng(seed))
        answered = [timeline.user[a.answers] for a in timeline.agent]
        assert answered == [u for u in timeline.user if u.kind != "backchannel"]
        starts = [u.start_sample for u in timeline.user]
        assert starts == sorted(starts)
        for turn in timeline.user:
            if turn.kind == "backchannel":
                count += 1
                (over,) = [a for a in timeline.agent if a.start_frame * FRAME <= turn.start_sample < a.cut_frame * FRAME]
                before_interruptions += over.interrupted
                assert turn.answer is None and turn.utterance.skill == "backchannel"
                assert (over.start_frame + 4) * FRAME <= turn.start_sample and turn.end_sample <= (over.cut_frame - 2) * FRAME
    assert count > 20
    assert bool(before_interruptions) == bool(interruptions)
    never = dataclasses.replace(CONFIG, backchannel_probability=0.0)
    assert all(u.kind != "backchannel" for seed in range(9) for u in compose(rich, never, PLAIN, np.random.default_rng(seed)).user)


def test_a_word_tells_a_turn_from_a_backchannel() -> None:
    beginnings = {("i",), ("i", "see"), ("right",)}
    told = {text: telling_word(speech("q", text, 16000, False), beginnings) for text in ("I see", "I need it", "what is it", "Right. Stop")}
    assert told["I see"] is None and [told[t].text for t in ("I need it", "what is it", "Right. Stop")] == ["need", "what", "Stop"]


def test_a_filler_is_no_turn_yet(cast: Cast) -> None:
    told = {text: telling_word(speech("q", text, 16000, False), cast.aside_beginnings) for text in ("Alright", "Alright, what is it")}
    assert told["Alright"] is None and told["Alright, what is it"].text == "what"
    assert set(world.skills()["fillers"]) <= set(world.skills()["prefixes"])


def test_the_agent_stops_once_the_words_tell(cast: Cast) -> None:
    asides = [speech("b0", "what is that", 16000, False, skill="backchannel")]
    rich = Cast([q for group in cast.by_skill.values() for q in group] + asides, dict(cast.answers))
    config = dataclasses.replace(
        CONFIG,
        long_interruption_probability=1.0,
        stop_frames=(3, 9),
        stop_after_word=(0, 1),
        stop_probability=0.0,
        pause_probability=0.0,
        backchannel_probability=0.0,
    )
    seen = set()
    for seed in range(60):
        timeline = compose(rich, config, PLAIN, np.random.default_rng(seed))
        for agent in timeline.agent:
            after = followed(timeline, agent.answers)
            if agent.interrupted and after is not None:
                words = 3 if after.utterance.text.startswith("what is") else 1
                told = -(-(after.start_sample + words * 4800) // FRAME)
                onset = after.start_sample // FRAME
                late = agent.cut_frame - told
                assert (
                    late in (0, 1) or agent.cut_frame - onset in (3, 9) or agent.cut_frame == agent.start_frame + len(agent.utterance.codes)
                )
                seen.add((words, late))
    assert {(1, 0), (1, 1)} <= seen and any(words == 3 for words, _ in seen)


def test_some_stops_come_late(cast: Cast) -> None:
    config = dataclasses.replace(
        CONFIG, long_interruption_probability=1.0, stop_frames=(3, 3), stop_probability=0.0, backchannel_probability=0.0
    )
    lateness: dict[float, list[int]] = {0.0: [], 0.5: []}
    for chance, found in lateness.items():
        for seed in range(60):
            timeline = compose(cast, dataclasses.replace(config, late_stop_probability=chance), PLAIN, np.random.default_rng(seed))
            for agent in timeline.agent:
                after = followed(timeline, agent.answers)
                if agent.interrupted and after is not None and agent.cut_frame < agent.start_frame + len(agent.utterance.codes):
                    found.append(agent.cut_frame - after.start_sample // FRAME - 3)
    assert set(lateness[0.0]) == {0} and {0, 1, 2, 3} <= set(lateness[0.5])
    assert 0.35 < np.mean(np.array(lateness[0.5]) > 0) < 0.65
