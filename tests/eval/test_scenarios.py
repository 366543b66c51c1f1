import numpy as np
import pytest

from duplex.errors import UserError
from eval import scenarios, stimuli
from tests.eval.conftest import make_utterance
from train.bank import USER_HZ


def level(scenario, start_s, end_s):
    return float(np.sqrt((scenario.audio[round(start_s * USER_HZ) : round(end_s * USER_HZ)] ** 2).mean()))


@pytest.mark.parametrize("suite", sorted(set(scenarios.BUILDERS) - {"noise", "echo"}))
def test_truth_matches_the_audio(pool, suite):
    for scenario in scenarios.build(suite, pool, 8, seed=3):
        assert scenario.audio.dtype == np.float32 and len(scenario.audio) % 1280 == 0
        edges = [0.0, *[edge for turn in scenario.turns for edge in (turn.start_s, turn.end_s)], scenario.duration_s]
        for quiet in zip(edges[::2], edges[1::2], strict=True):
            assert 1e-4 < level(scenario, *quiet) < 1e-3  # the noise floor, never digital zero
        for turn in scenario.turns:
            assert level(scenario, turn.start_s, turn.start_s + 0.1) > 0.05
            assert level(scenario, turn.end_s - 0.1, turn.end_s) > 0.05 or turn.text == scenarios.COUGH
            for pause in turn.pauses:
                assert turn.start_s < pause[0] < pause[1] < turn.end_s and 0.3 <= pause[1] - pause[0] <= 1.5
                assert level(scenario, *pause) < 1e-3


@pytest.mark.parametrize("suite", scenarios.BUILDERS)
def test_seed_decides_and_n_only_cuts(pool, suite):
    few, many, other = scenarios.build(suite, pool, 3, 1), scenarios.build(suite, pool, 6, 1), scenarios.build(suite, pool, 3, 2)
    assert all(a.turns == b.turns and np.array_equal(a.audio, b.audio) for a, b in zip(few, many, strict=False))
    assert any(not np.array_equal(a.audio, b.audio) for a, b in zip(few, other, strict=True))
    assert len({s.id for s in many}) == 6


def test_answers_use_every_utterance_once_and_keep_memory(pool):
    asked = [u for u in pool if u.skill != "backchannel"]
    built = scenarios.build("answers", pool, len(asked), 1)
    assert sorted((s.turns[-1].text, s.turns[-1].voice) for s in built) == sorted((u.text, u.voice) for u in asked)
    by_skill = {s.turns[-1].skill: s.turns for s in built}
    tell, ask = by_skill["name_ask"]
    assert (tell.skill, tell.voice, ask.answer, ask.key) == ("name_tell", ask.voice, "Your name is Anna.", "Anna")
    before, again = by_skill["again"]
    assert (again.answer, again.key, again.exact) == (before.answer, before.key, before.exact)
    assert by_skill["repeat"][-1].exact and not by_skill["plus"][-1].exact
    assert by_skill["long"][-1].key == "" and by_skill["plus"][-1].key == "four"
    assert all(s.duration_s - s.turns[-1].end_s >= 4.5 for s in built)


def test_memory_needs_the_same_voice(pool):
    kept = [u for u in pool if not (u.skill == "name_tell" and u.voice == "flite:rms")]
    built = scenarios.build("answers", kept, len(kept) - 3, 1)  # without the asides and what asks for a name
    assert [s.turns[-1].voice for s in built if s.turns[-1].skill == "name_ask"] == ["kokoro:am_adam"]


def test_noise_is_as_loud_as_it_says_and_the_turns_stay(pool):
    built = scenarios.build("noise", pool, 2 * len(scenarios.NOISE_DB), 1)
    for k in range(2):
        clean, *noisy = built[k * len(scenarios.NOISE_DB) : (k + 1) * len(scenarios.NOISE_DB)]
        assert clean.id == f"noise-000{k}-clean" and [s.id[-4:] for s in noisy] == ["20db", "10db", "05db", "00db"]
        turn = clean.turns[0]
        speech = level(clean, turn.start_s, turn.end_s)
        for scenario in noisy:
            (snr_db,) = {t.snr_db for t in scenario.turns}
            assert [t.text for t in scenario.turns] == [t.text for t in clean.turns]
            assert 20 * np.log10(speech / level(scenario, turn.end_s, clean.duration_s)) == pytest.approx(snr_db, abs=2.0)
            assert np.abs(scenario.audio).max() <= 1.0


def test_echo_sweeps_the_level_of_one_path_over_the_same_conversation(pool):
    built = scenarios.build("echo", pool, 2 * len(scenarios.ECHO_DB), 1)
    assert [s.id for s in built[:4]] == ["echo-0000-clean", "echo-0000-30db", "echo-0000-20db", "echo-0000-10db"]
    clean, *echoing = built[:4]
    assert clean.echo is None and [s.echo.level_db for s in echoing] == [-30, -20, -10]
    assert len({(s.echo.delay_s, s.echo.reverb_s, s.echo.seed) for s in echoing}) == 1 and built[5].echo.seed != echoing[0].echo.seed
    assert all(s.audio is clean.audio and {t.echo_db for t in s.turns} == {s.echo.level_db} for s in echoing)
    assert all(len(s.turns[-1].answer) >= scenarios.ECHO_CHARACTERS for s in built)


def test_a_backchannel_leaves_the_agent_time_to_go_on(pool):
    for scenario in scenarios.build("backchannel", pool, 12, 1):
        asked, aside = scenario.turns
        assert aside.backchannel and not aside.interrupts and not asked.backchannel and aside.voice == asked.voice
        assert (asked.skill, aside.answer) == ("long", "") and aside.text in ("oh I see", scenarios.COUGH)
        expected_s = len(asked.answer) / scenarios.SPEECH_CHARACTERS_S
        assert 0.2 * expected_s <= aside.start_s - asked.end_s - scenarios.RESPONSE_S <= 0.4 * expected_s + 0.01
        assert not scenarios.build("turns", pool, 1, 1)[0].turns[0].backchannel
    assert [s.turns[1].text for s in scenarios.build("backchannel", pool, 10, 1)].count(scenarios.COUGH) == 2
    with pytest.raises(UserError, match="backchannel"):
        scenarios.build("backchannel", [u for u in pool if u.skill != "backchannel"], 1, 1)


def test_half_of_the_turns_pause(pool):
    turns = [turn for s in scenarios.build("turns", pool, 40, 1) for turn in s.turns]
    assert 0.4 < np.mean([bool(turn.pauses) for turn in turns]) < 0.6
    assert all(len(s.turns) in (2, 3) and len({t.voice for t in s.turns}) == 1 for s in scenarios.build("turns", pool, 9, 1))


def test_impatient_asks_halfway_through_the_answer(pool):
    built = scenarios.build("impatient", pool, 20, 1)
    for scenario in built:
        assert [turn.interrupts for turn in scenario.turns] == [False] + [True] * (len(scenario.turns) - 1)
        assert [turn.scored for turn in scenario.turns] == [False] * (len(scenario.turns) - 1) + [True]
        for turn, after in zip(scenario.turns, scenario.turns[1:], strict=False):
            assert 0.999 <= after.start_s - turn.end_s < 0.5 + len(turn.answer) / 18
            assert after.over == turn.answer
    assert len(built[0].turns) in (3, 4)


@pytest.mark.parametrize(
    ("skill", "text", "value", "said_before"),
    [
        ("capital", "which is the capital city of France", "Paris", 6),
        ("color", "can you tell me what color the sky is", "blue", 7),
        ("plus", "how much do two plus three come to", "five", 5),
        ("repeat", "would you say apple, river", "apple, river", 3),
        ("unknown", "how far is Boston from here", "", None),
        ("plus", "two plus two", "four", None),
    ],
)
def test_a_pause_leaves_the_sentence_unfinished(skill, text, value, said_before):
    utterance = make_utterance(0, "v", skill, text, "x", value)
    assert stimuli.pause_sample(utterance) == (None if said_before is None else said_before * USER_HZ // 5)


def test_noise_keeps_the_envelope_and_loses_the_signal():
    generator = np.random.default_rng(0)
    time = np.arange(USER_HZ) / USER_HZ
    speech = (generator.normal(0, 0.1, USER_HZ) * (np.sin(2 * np.pi * 3 * time) > 0)).astype(np.float32)
    noise = stimuli.speech_shaped_noise(speech, generator)
    loudness = [np.sqrt((x[: len(x) // 320 * 320].reshape(-1, 320) ** 2).mean(1)) for x in (speech, noise)]
    assert np.corrcoef(*loudness)[0, 1] > 0.95
    assert abs(np.corrcoef(speech, noise)[0, 1]) < 0.1
    assert not np.allclose(noise, stimuli.speech_shaped_noise(speech, generator))


def test_an_unusable_pool_says_so(pool):
    with pytest.raises(UserError, match="suite 'nonsense' is unknown"):
        scenarios.build("nonsense", pool, 1, 1)
    with pytest.raises(UserError, match="impatient"):
        scenarios.build("impatient", [u for u in pool if u.answer is None], 1, 1)
