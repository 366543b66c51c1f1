"""Properties of composed conversations, over many seeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from duplex.vocab import Vocab
from train import world
from train.augment import AugmentConfig
from train.bank import Utterance, Word
from train.composer import (
    Cast,
    ComposerConfig,
    compose,
    insert_pause,
    render_agent,
    render_user,
    rest_of,
    unfinished_splits,
)
from train.layout import lay_channels, token_frames
from train.timeline import Timeline, UserTurn

FRAME = 1280
LONG = "One, two, three, four, five, six, seven, eight, nine, ten, eleven, twelve."
ASKED = [
    ("plus", "what is two plus two", "Two plus two is four.", "four"),
    ("capital", "what is the capital of France", "The capital of France is Paris.", "Paris"),
    ("repeat", "say apple, river, stone", "Apple, river, stone.", "apple, river, stone"),
    ("name_tell", "my name is Anna", "Nice to meet you, Anna.", "Anna"),
    ("name_tell", "call me Ben", "Nice to meet you, Ben.", "Ben"),
    ("like_tell", "I like the color red", "I will remember that you like red.", "red"),
    ("name_ask", "what is my name", None, ""),
    ("like_ask", "which color do I like", None, ""),
    ("again", "say that again", None, ""),
    ("long", "count to twelve", LONG, "count"),
    ("unknown", "is it raining", "Sorry, I don't know that.", ""),
]
CONFIG = ComposerConfig(num_frames=320, pause_probability=0.6, interruption_probability=0.4)
PLAIN = AugmentConfig(speed=(1.0, 1.0), gain_db=(0.0, 0.0), tilt=(0.0, 0.0))
SEEDS = range(60)


def speech(name: str, text: str, rate_hz: int, codes: bool, **more) -> Utterance:
    """0.3 s of noise a word."""
    size = rate_hz * 3 // 10
    words = tuple(Word(w, i * size, (i + 1) * size) for i, w in enumerate(text.split()))
    audio = np.random.default_rng(len(text)).integers(5000, 9000, size * len(words)).astype(np.int16)
    frames = -(-len(audio) // 1920) + 1
    made = np.full((frames, 2), 1, np.int16) if codes else None
    return Utterance(name, text, "tone:a", audio, rate_hz, words, made, **more)


def everything() -> Cast:
    questions = [speech(f"q{i}", q, 16000, False, skill=s, answer=a, value=v) for i, (s, q, a, v) in enumerate(ASKED)]
    texts = {a for _, _, a, _ in ASKED if a} | set(world.memory_answers())
    return Cast(questions, {t: speech(t, t, 24000, True) for t in sorted(texts)})


@pytest.fixture(scope="module")
def cast() -> Cast:
    return everything()


@pytest.fixture(scope="module")
def timelines(cast: Cast) -> list[Timeline]:
    made = [compose(cast, CONFIG, AugmentConfig() if seed % 2 else PLAIN, np.random.default_rng(seed)) for seed in SEEDS]
    assert sum(len(t.agent) for t in made) > 150
    return made


def followed(timeline: Timeline, index: int) -> UserTurn | None:
    return timeline.user[index + 1] if index + 1 < len(timeline.user) else None


def test_every_turn_is_answered_after_it_has_ended(timelines: list[Timeline]) -> None:
    gaps = set()
    for timeline in timelines:
        assert [a.answers for a in timeline.agent] == list(range(len(timeline.user))) and timeline.user
        for agent in timeline.agent:
            user = timeline.user[agent.answers]
            assert agent.start_frame * FRAME >= user.end_sample
            gaps.add(agent.start_frame - user.end_frame)
            assert agent.start_frame + 6 <= timeline.num_frames
    assert gaps == {4, 5}


def test_some_answers_come_late(cast: Cast) -> None:
    config = dataclasses.replace(CONFIG, late_probability=0.3, late_frames=(7, 9))
    made = [compose(cast, config, PLAIN, np.random.default_rng(seed)) for seed in SEEDS]
    gaps = [a.start_frame - t.user[a.answers].end_frame for t in made for a in t.agent]
    assert set(gaps) == {4, 5, 7, 8, 9} and 0.2 < sum(gap > 5 for gap in gaps) / len(gaps) < 0.4


def test_nobody_overlaps_himself(timelines: list[Timeline]) -> None:
    for timeline in timelines:
        assert all(a.end_sample <= b.start_sample for a, b in zip(timeline.user, timeline.user[1:], strict=False))
        assert all(a.cut_frame <= b.start_frame for a, b in zip(timeline.agent, timeline.agent[1:], strict=False))


def test_the_user_waits_or_interrupts(timelines: list[Timeline]) -> None:
    stops, silences = set(), []
    for timeline in timelines:
        assert timeline.user[0].kind == "question"
        for i, agent in enumerate(timeline.agent):
            end = agent.start_frame + len(agent.utterance.codes)
            after = followed(timeline, i)
            if after is None or after.kind == "question":
                assert agent.cut_frame == end and not agent.interrupted
                if after:
                    silences.append(after.start_sample / FRAME - end)
                continue
            assert agent.start_frame * FRAME + 5 * FRAME <= after.start_sample < end * FRAME
            stop = agent.cut_frame - after.start_sample // FRAME
            assert stop in (2, 3, 4) or agent.cut_frame == end
            stops.add(stop)
    assert {2, 3, 4} <= stops and len(silences) > 50
    assert min(silences) >= 4 and max(silences) <= 24


def test_long_answers_are_interrupted_more(timelines: list[Timeline]) -> None:
    rate = {}
    for is_long in (False, True):
        kinds = [u.kind for t in timelines for a, u in zip(t.agent, t.user[1:], strict=False) if (a.utterance.text == LONG) == is_long]
        rate[is_long] = kinds.count("interruption") / len(kinds)
    assert 0.25 < rate[False] < 0.55 < rate[True]
    never = dataclasses.replace(CONFIG, interruption_probability=0.0, long_interruption_probability=0.0)
    assert rate != compose_kinds(never) == {"question"}


def compose_kinds(config: ComposerConfig) -> set[str]:
    questions = [speech("q", "what is two plus two", 16000, False, skill="plus", answer="Two plus two is four.", value="four")]
    answers = {"Two plus two is four.": speech("a", "Two plus two is four.", 24000, True)}
    return {u.kind for seed in range(10) for u in compose(Cast(questions, answers), config, PLAIN, np.random.default_rng(seed)).user}


def test_the_agent_may_say_that_it_listens_into_a_pause() -> None:
    """user    [ what is two plus ......pause...... two ]
    agent                             [Okay.]              gap [ Two plus two is four. ]
    """
    questions = [speech("q", "what is two plus two", 16000, False, skill="plus", answer="Two plus two is four.", value="four")]
    answers = {text: speech(text, text, 24000, True) for text in ("Two plus two is four.", "Okay.", "I see.")}
    config = dataclasses.replace(
        CONFIG, pause_probability=1.0, pause_s=(0.4, 1.5), interruption_probability=0.0, agent_backchannel_probability=0.7
    )
    said, silent = [], 0
    for seed in SEEDS:
        timeline = compose(Cast(questions, answers), config, PLAIN, np.random.default_rng(seed))
        for index, user in enumerate(timeline.user):
            (start, end), turns = user.pauses[0], [a for a in timeline.agent if a.answers == index]
            assert turns[-1].utterance.text == "Two plus two is four."
            for turn in turns[:-1]:
                assert start + 4 * FRAME <= turn.start_frame * FRAME <= start + 7 * FRAME and not turn.interrupted
                assert turn.cut_frame * FRAME <= end
                said.append(turn.utterance.text)
            silent += len(turns) == 1
    assert set(said) == {"Okay.", "I see."} and silent > 20  # short pauses, and chance
    off = dataclasses.replace(config, agent_backchannel_probability=0.0)
    assert all(
        len(t.agent) == len(t.user) for t in (compose(Cast(questions, answers), off, PLAIN, np.random.default_rng(s)) for s in SEEDS)
    )


def test_pauses_lie_inside_an_unfinished_turn(timelines: list[Timeline]) -> None:
    count = 0
    for timeline in timelines:
        for turn in timeline.user:
            for start, end in turn.pauses:
                count += 1
                assert turn.start_sample < start < end < turn.end_sample
                assert 0.3 * 16000 - 1 <= end - start <= 1.5 * 16000
                a, b = start - turn.start_sample, end - turn.start_sample
                assert not turn.utterance.audio[a:b].any()
                after = [i for i, w in enumerate(turn.utterance.words) if w.start_sample >= b]
                assert after and after[0] in unfinished_splits(turn.utterance)
                assert turn.utterance.skill in ("plus", "capital", "repeat", "name_tell", "like_tell", "long")
    assert count > 30


@pytest.mark.parametrize(
    ("text", "splits"),
    [
        ("what is two plus two", [2, 3, 4]),
        ("what is the capital of France", [3, 4, 5]),
        ("say apple, river, stone", [1]),
        ("my name is Anna", [1, 2, 3]),
        ("is it raining", []),
        ("count to twelve", [1, 2]),
        ("say that again", []),
    ],
)
def test_splits_are_where_more_must_come(text: str, splits: list[int]) -> None:
    skill, _, answer, value = next(a for a in ASKED if a[1] == text)
    assert unfinished_splits(speech("q", text, 16000, False, skill=skill, answer=answer, value=value)) == splits


def test_a_pause_moves_the_rest() -> None:
    question = speech("q", "my name is Anna", 16000, False)
    longer, (a, b) = insert_pause(question, 3, 8000)
    assert (a, b) == (3 * 4800, 3 * 4800 + 8000) and longer.num_samples == question.num_samples + 8000
    assert np.array_equal(np.delete(longer.audio, np.s_[a:b]), question.audio)
    assert [w.start_sample for w in longer.words] == [0, 4800, 9600, 22400]


def test_answers_follow_from_what_was_told_and_said(timelines: list[Timeline]) -> None:
    seen = set()
    for timeline in timelines:
        told: dict[str, str] = {}
        complete: str | None = None
        for i, (user, agent) in enumerate(zip(timeline.user, timeline.agent, strict=True)):
            question = user.utterance
            kind = question.skill.split("_")[0]
            if question.skill in ("name_ask", "like_ask"):
                assert agent.utterance.text == world.memory_answer(question.skill, told.get(kind))
                seen.add((question.skill, kind in told))
            elif question.skill == "again":
                assert agent.utterance.text == complete is not None
                seen.add("again")
            else:
                assert agent.utterance.text == question.answer
            if question.skill in ("name_tell", "like_tell"):
                told[kind] = question.value
            after = followed(timeline, i)
            complete = agent.utterance.text if after and after.kind == "question" else None
    assert seen == {"again", *((s, known) for s in ("name_ask", "like_ask") for known in (False, True))}


def test_the_rest_of_an_answer_starts_with_the_word_that_was_cut() -> None:
    answer = speech("a", "One, two, three, four, five.", 24000, True)  # 7200 samples, 3.75 frames a word
    assert rest_of(answer, 9).text == "three, four, five."
    rest = rest_of(answer, 7)
    assert rest is not None and (rest.text, rest.id) == ("two, three, four, five.", "a+3")
    assert [w.start_sample for w in rest.words] == [7200 - 3 * 1920 + i * 7200 for i in range(4)]
    assert len(rest.codes) == len(answer.codes) - 3 and rest.num_samples == answer.num_samples - 3 * 1920
    assert rest_of(answer, 12) is None


def test_who_said_stop_may_ask_for_the_rest(cast: Cast) -> None:
    stop = speech("stop", "stop", 16000, False, skill="talk", answer="Okay.", value="stop")
    go_on = speech("go", "go on", 16000, False, skill="go_on", answer=None)
    long = next(q for q in cast.by_skill["long"])
    able = Cast([long, stop, go_on], {**cast.answers, "Okay.": speech("ok", "Okay.", 24000, True)})
    config = dataclasses.replace(CONFIG, stop_probability=0.7, go_on_probability=0.7, pause_probability=0.0)
    told, other = 0, 0
    for seed in range(40):
        timeline = compose(able, config, PLAIN, np.random.default_rng(seed))
        for i, (user, agent) in enumerate(zip(timeline.user, timeline.agent, strict=True)):
            if user.utterance.skill != "go_on":
                other += i > 0
                continue
            told += 1
            first, okay = timeline.agent[i - 2], timeline.agent[i - 1]
            assert okay.utterance.text == "Okay." and first.interrupted and timeline.user[i - 1].kind == "interruption"
            rest = rest_of(first.utterance, first.cut_frame - first.start_frame)
            assert rest is not None and agent.utterance.text == rest.text
            assert len(agent.utterance.codes) == len(rest.codes) and LONG.endswith(agent.utterance.text)
    assert told > 10 and other > 10


def test_channels_of_conversations(cast: Cast, timelines: list[Timeline]) -> None:
    vocab = Vocab.train(list(cast.answers), 220)
    tokens = {u.id: token_frames(u, vocab) for u in cast.answers.values()}
    whole = 0
    for timeline in timelines:
        channels = lay_channels(timeline, tokens, np.array([7, 7]), 2)
        assert channels.text.shape == (timeline.num_frames + 1,) and channels.codes.shape == (timeline.num_frames, 2)
        marks = [(t, int(x)) for t, x in enumerate(channels.text) if x in (Vocab.bos, Vocab.eos)]
        expected = [m for a in timeline.agent for m in ((a.start_frame - 3, Vocab.bos), (a.cut_frame, Vocab.eos))]
        assert marks == [m for m in expected if m[0] <= timeline.num_frames]
        spoken = np.zeros(timeline.num_frames, bool)
        for agent in timeline.agent:
            spoken[agent.start_frame : agent.cut_frame] = True
            span = channels.text[agent.start_frame - 2 : agent.cut_frame]
            if agent.cut_frame <= timeline.num_frames and not agent.interrupted:
                whole += 1
                assert vocab.decode(span.tolist()) == agent.utterance.text
                assert vocab.decode(channels.text[agent.start_frame - 2 : agent.cut_frame - 2].tolist()) == agent.utterance.text
        assert np.array_equal(channels.speaking, spoken) and np.array_equal((channels.codes == 1).all(1), spoken)
    assert whole > 80


def test_the_user_is_heard_where_the_timeline_says(timelines: list[Timeline]) -> None:
    timeline = timelines[0]
    audio = render_user(timeline, None, np.random.default_rng(0))
    assert audio.shape == (timeline.num_frames * FRAME,) and audio.dtype == np.float32
    loud = np.zeros(len(audio), bool)
    for turn in timeline.user:
        loud[turn.start_sample : turn.end_sample] = True
        for start, end in turn.pauses:
            loud[start:end] = False
    assert np.abs(audio[loud]).min() > 0.05 > 0.001 > np.abs(audio[~loud]).max()
    assert np.abs(render_user(timeline, AugmentConfig(), np.random.default_rng(0))).max() <= 1.0


def test_skills_may_be_asked_more_often(cast: Cast) -> None:
    questions = [q for pool in cast.by_skill.values() for q in pool]
    drawn = [Cast(questions, cast.answers, {"repeat": 1e6, "plus": 0.0}).draw(np.random.default_rng(i)).skill for i in range(20)]
    assert set(drawn) == {"repeat"}


def test_who_interrupts_may_ask_other_things(cast: Cast) -> None:
    config = dataclasses.replace(
        CONFIG,
        interruption_weights={skill: 0.0 for skill in cast.skills if skill != "unknown"},
        stop_probability=0.0,
        recall_probability=0.0,
    )
    turns = [turn for seed in SEEDS for turn in compose(cast, config, PLAIN, np.random.default_rng(seed)).user]
    skills = {kind: {turn.utterance.skill for turn in turns if turn.kind == kind} for kind in ("interruption", "question")}
    assert skills["interruption"] == {"unknown"} < skills["question"] and len(skills["question"]) > 4


def test_the_same_seed_composes_the_same(cast: Cast) -> None:
    a, b, c = (compose(cast, CONFIG, AugmentConfig(), np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert [(u.start_sample, u.utterance.id) for u in a.user] == [(u.start_sample, u.utterance.id) for u in b.user]
    assert [u.start_sample for u in a.user] != [u.start_sample for u in c.user]
    assert all(np.array_equal(x.utterance.audio, y.utterance.audio) for x, y in zip(a.user, b.user, strict=True))


def test_questions_without_an_answer_in_the_bank_are_left_out(cast: Cast) -> None:
    questions = [speech("a", "what is two plus two", 16000, False, skill="plus", answer="Nobody recorded this."), *cast.by_skill["capital"]]
    assert list(Cast(questions, cast.answers).by_skill) == ["capital"]


def test_the_agent_comes_back_where_it_speaks_and_nowhere_else(cast: Cast, timelines: list[Timeline]) -> None:
    for seed, timeline in enumerate(timelines[:10]):
        agent = render_agent(timeline)
        speaking = np.zeros(timeline.num_frames, bool)
        for turn in timeline.agent:
            speaking[turn.start_frame : turn.cut_frame] = True
        loud = np.abs(agent).reshape(-1, FRAME).max(1) > 0.02
        assert len(agent) == timeline.num_frames * FRAME and not loud[~speaking].any() and loud.any()
        assert loud[speaking].mean() > 0.6  # the made-up speech has a silent frame at its end
        quiet = dataclasses.replace(PLAIN, noise_probability=0.0, room_probability=0.0, floor_db=(-90.0, -90.0))
        echo = dataclasses.replace(quiet, echo_probability=1.0, echo_db=(-20.0, -20.0), echo_delay_s=(0.16, 0.16))
        plain, echoing = (render_user(timeline, a, np.random.default_rng(seed)) for a in (quiet, echo))
        change = np.abs(echoing - plain).reshape(-1, FRAME).max(1) > 0.005
        first = timeline.agent[0].start_frame
        assert not change[: first + 2].any() and change[first + 2 : first + 4].any()
