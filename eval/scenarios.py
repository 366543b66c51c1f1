"""Test conversations with an exact truth, built from a held-out part of the utterance bank.

A scenario is data: the user's audio and when each turn begins, pauses and ends. It depends only on the utterances, the
suite, its index and the seed, so a run with more conversations begins with those of a shorter run.
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np

from duplex.errors import UserError
from eval.draft import Draft, Scenario
from eval.echo import Echo
from eval.stimuli import KEYED, pause_sample, speech_shaped_noise
from train.augment import babble, colored_noise, cough
from train.bank import USER_HZ, Utterance, read_part
from train.world import memory_answer

TAIL_S = 4.5
CHARACTER_S = 0.09
SPEECH_CHARACTERS_S = 18.0  # pace of the agent's voice
RESPONSE_S = 0.5
NOISE_DB = (None, 20, 10, 5, 0)  # speech to noise; None: the faint floor alone
ECHO_DB = (None, -30, -20, -10)  # the agent's own voice, as it comes back, to the voice as played
ECHO_DELAY_S = (0.12, 0.3)
ECHO_CHARACTERS = 20  # shorter answers are over before much of them is back
BABBLE_VOICES = 4
COUGH, COUGH_EVERY = "(cough)", 5  # how suite backchannel writes one, and how often it has one in place of words
LENGTHY_CHARACTERS = 70  # such an answer takes about four seconds

_Found = TypeVar("_Found", dict[str, list[Utterance]], list[Utterance])

_MEMORY = {"name_ask": "name_tell", "like_ask": "like_tell"}


def load_pool(bank: Path, split: str, needed: bool = True) -> list[Utterance]:
    """Utterances of the bank's `user-test` or `user-val` part; none where it is missing and not `needed`.

    Raises:
        UserError: the part is missing, half built, or the split has none.
    """
    if split not in ("test", "val"):
        raise UserError(f"split {split!r} cannot be evaluated; use test or val")
    part = bank / f"user-{split}"
    if not (part / "plan.json").exists():
        if not needed:
            return []
        raise UserError(
            f"there are no utterances to evaluate with at {part}; "
            f"run `duplex synth --config train/configs/pocket-synth.yaml --part user-{split}`, or name another bank with --bank"
        )
    aside = bank / f"user-{split}-aside"
    parts = [part, aside] if (aside / "plan.json").exists() else [part]
    pool = [u for folder in parts for u in read_part(folder, fields=("recording",)) if u.skill not in ("", "sentence")]
    if not pool:
        raise UserError(f"the bank part {part} holds no questions; build it with `duplex synth --config train/configs/pocket-synth.yaml`")
    return pool


def build(suite: str, pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """The first `n` conversations of a suite.

    Raises:
        UserError: the suite is unknown, or the pool has no utterance that it can use.
    """
    if suite not in BUILDERS:
        raise UserError(f"suite {suite!r} is unknown; use one of {', '.join(BUILDERS)}")
    if suite != "backchannel":
        pool = without_asides(pool)
    return BUILDERS[suite](pool, n, seed)


def without_asides(pool: Sequence[Utterance]) -> list[Utterance]:
    """What wants an answer."""
    return [u for u in pool if u.skill != "backchannel"]


def rng_of(suite: str, seed: int, index: int | str) -> random.Random:
    """Of one conversation, whatever the others are."""
    return random.Random(f"{suite}/{seed}/{index}")


def key_of(utterance: Utterance) -> str:
    """The words that carry its answer, "" when no single word does."""
    return utterance.value if utterance.skill in KEYED else ""


def tail_s(answer: str) -> float:
    """Silence after a turn, long enough to hear the answer whole."""
    return TAIL_S + CHARACTER_S * len(answer)


def _partner(utterance: Utterance, pool: Sequence[Utterance], rng: random.Random) -> Utterance | None:
    """What the same voice says before a turn that only makes sense after another; None when the pool has nothing."""
    wanted = _MEMORY.get(utterance.skill)
    if wanted:
        fits = [u for u in pool if u.voice == utterance.voice and u.skill == wanted]
    else:
        fits = [u for u in pool if u.voice == utterance.voice and (u.skill in KEYED or u.skill == "repeat") and u.answer]
    return rng.choice(fits) if fits else None


def _answers(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`answers`: one question and a long silence; what asks back for something follows the turn that told it."""
    order = list(pool)
    rng_of("answers", seed, "order").shuffle(order)
    voices = {skill: {u.voice for u in pool if u.skill == skill} for skill in _MEMORY.values()}
    order = [u for u in order if u.answer is not None or u.voice in voices.get(_MEMORY.get(u.skill, ""), {u.voice})]
    scenarios = []
    for i in range(n):
        rng, main = rng_of("answers", seed, i), order[i % len(order)]
        draft = Draft(0)
        draft.wait(rng.uniform(0.5, 1.0))
        answer, key, exact = main.answer, key_of(main), main.skill == "repeat"
        if answer is None:
            before = _partner(main, pool, rng)
            if before is None:
                raise UserError(f"voice {main.voice} asks {main.text!r} but says nothing to refer to; build a larger test part of the bank")
            assert before.answer
            draft.say(before, before.answer, key_of(before))
            draft.wait(tail_s(before.answer))
            if main.skill in _MEMORY:
                answer, key = memory_answer(main.skill, before.value), before.value
            else:  # say that again
                answer, key, exact = before.answer, key_of(before), before.skill == "repeat"
        draft.say(main, answer, key, exact=exact)
        draft.wait(tail_s(answer))
        scenarios.append(draft.finish(f"answers-{i:04d}", seed))
    return scenarios


def _listening(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`listening`: `answers` with every turn replaced by noise of the same spectrum and envelope."""
    scenarios = []
    for scenario in _answers(pool, n, seed):
        audio, noise = scenario.audio.copy(), np.random.default_rng([seed, zlib.crc32(scenario.id.encode()), 1])
        for turn in scenario.turns:
            span = slice(round(turn.start_s * USER_HZ), round(turn.end_s * USER_HZ))
            audio[span] = speech_shaped_noise(audio[span], noise)
        scenarios.append(replace(scenario, id=scenario.id.replace("answers", "listening"), audio=audio, words=()))
    return scenarios


def _noise(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`noise`: each conversation of `answers` at every level of NOISE_DB, in turn over babble of other voices and coloured noise."""
    scenarios = []
    for i, scenario in enumerate(_answers(pool, -(-n // len(NOISE_DB)), seed)):
        generator = np.random.default_rng([seed, zlib.crc32(scenario.id.encode()), 2])
        others = [u.audio / np.float32(32767.0) for u in pool if u.voice != scenario.turns[0].voice]
        if i % 2 == 0 and others:
            picks = generator.choice(len(others), BABBLE_VOICES)
            noise = babble([others[k] for k in picks], len(scenario.audio), generator)
        else:
            noise = colored_noise(len(scenario.audio), generator.uniform(0, 2), generator)
        for snr_db in NOISE_DB:
            name = scenario.id.replace("answers", "noise") + ("-clean" if snr_db is None else f"-{snr_db:02d}db")
            scenarios.append(replace(over_noise(scenario, noise, snr_db), id=name))
    return scenarios[:n]


def over_noise(scenario: Scenario, noise: np.ndarray, snr_db: int | None) -> Scenario:
    """The scenario with `noise`, of its length and level 1, so far below the speech; None leaves it out."""
    spans = [scenario.audio[round(t.start_s * USER_HZ) : round(t.end_s * USER_HZ)] for t in scenario.turns]
    level = float(np.sqrt((np.concatenate(spans) ** 2).mean()))
    audio = scenario.audio if snr_db is None else scenario.audio + level * 10 ** (-snr_db / 20) * noise
    audio = (audio / max(float(np.abs(audio).max()), 1.0)).astype(np.float32)
    return replace(scenario, audio=audio, turns=tuple(replace(turn, snr_db=snr_db) for turn in scenario.turns))


def _echo(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`echo`: each conversation of `answers` that asks for more than a word or two, at every level of ECHO_DB through the same room."""
    chatty = [u for u in pool if u.answer is None or len(u.answer) >= ECHO_CHARACTERS]
    scenarios = []
    for i, scenario in enumerate(_answers(need(chatty, "echo"), -(-n // len(ECHO_DB)), seed)):
        rng = rng_of("echo", seed, i)
        delay_s, reverb_s = rng.uniform(*ECHO_DELAY_S), rng.uniform(0.1, 0.4)
        for level in ECHO_DB:
            name = scenario.id.replace("answers", "echo") + ("-clean" if level is None else f"-{-level:02d}db")
            echo = None if level is None else Echo(level, delay_s, reverb_s, seed * 10007 + i)
            scenarios.append(replace(scenario, id=name, turns=tuple(replace(t, echo_db=level) for t in scenario.turns), echo=echo))
    return scenarios[:n]


def by_voice(pool: Sequence[Utterance], accept: Callable[[Utterance], bool]) -> dict[str, list[Utterance]]:
    """Utterances with an answer that are accepted, by voice."""
    groups: dict[str, list[Utterance]] = {}
    for utterance in pool:
        if utterance.answer and accept(utterance):
            groups.setdefault(utterance.voice, []).append(utterance)
    return groups


def need(found: _Found, suite: str) -> _Found:
    """What was found, where anything was.

    Raises:
        UserError: nothing was.
    """
    if not found:
        raise UserError(f"the test utterances have none that suite {suite} can use; build a larger part of the bank")
    return found


def _pick(rng: random.Random, choices: Sequence[Utterance], taken: Sequence[Utterance]) -> Utterance:
    return rng.choice([u for u in choices if all(u is not t for t in taken)] or choices)


def _turns(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`turns`: 2-3 questions by one voice, every other turn with a pause where the sentence is unfinished."""
    plain = need(by_voice(pool, lambda u: True), "turns")
    splittable = by_voice(pool, lambda u: pause_sample(u) is not None)
    scenarios = []
    for i in range(n):
        rng = rng_of("turns", seed, i)
        voice = rng.choice(sorted(plain))
        draft = Draft(0)
        taken: list[Utterance] = []
        draft.wait(rng.uniform(0.5, 1.0))
        first = rng.randint(0, 1)
        for j in range(rng.randint(2, 3)):
            paused = (first + j) % 2 == 0 and voice in splittable
            said = _pick(rng, splittable[voice] if paused else plain[voice], taken)
            taken.append(said)
            at = pause_sample(said) if paused else None
            pauses = [(at, round(rng.uniform(0.3, 1.5) * USER_HZ))] if at is not None else []
            assert said.answer
            draft.say(said, said.answer, key_of(said), pauses, scored=False)
            draft.wait(tail_s(said.answer) + rng.uniform(0.0, 0.5))
        scenarios.append(draft.finish(f"turns-{i:04d}", seed))
    return scenarios


def _impatient(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`impatient`: 3-4 questions by one voice, each asked about halfway through the answer before it."""
    anything = by_voice(pool, lambda u: True)
    lengthy = need(by_voice(pool, lambda u: len(u.answer or "") >= 20), "impatient")
    prefer = by_voice(pool, _is_long)
    scenarios = []
    for i in range(n):
        rng = rng_of("impatient", seed, i)
        voice = rng.choice(sorted(lengthy))
        draft = Draft(0)
        taken: list[Utterance] = []
        draft.wait(rng.uniform(0.5, 1.0))
        num_turns = rng.randint(3, 4)
        for j in range(num_turns):
            last = j == num_turns - 1
            choices = anything[voice] if last else prefer[voice] if voice in prefer and rng.random() < 0.7 else lengthy[voice]
            said = _pick(rng, choices, taken)
            taken.append(said)
            assert said.answer
            draft.say(said, said.answer, key_of(said), over=taken[j - 1].answer or "" if j else "", scored=last)
            draft.wait(tail_s(said.answer) if last else max(1.0, (RESPONSE_S + len(said.answer) / SPEECH_CHARACTERS_S) / 2))
        scenarios.append(draft.finish(f"impatient-{i:04d}", seed))
    return scenarios


def _backchannel(pool: Sequence[Utterance], n: int, seed: int) -> list[Scenario]:
    """`backchannel`: a long answer, into which the same voice says something short, or coughs, with time left for the agent to go on."""
    asides: dict[str, list[Utterance]] = {}
    for utterance in pool:
        if utterance.skill == "backchannel":
            asides.setdefault(utterance.voice, []).append(utterance)
    lengthy = by_voice(pool, lambda u: len(u.answer or "") >= LENGTHY_CHARACTERS and u.voice in asides)
    need(lengthy, "backchannel")
    scenarios = []
    for i in range(n):
        rng = rng_of("backchannel", seed, i)
        voice = rng.choice(sorted(lengthy))
        asked, aside = rng.choice(lengthy[voice]), rng.choice(asides[voice])
        if i % COUGH_EVERY == COUGH_EVERY - 1:
            sound = cough(np.random.default_rng([seed, i, 4]))
            aside = replace(aside, text=COUGH, audio=np.round(0.5 * 32767 * sound).astype(np.int16), words=())
        assert asked.answer
        draft = Draft(0)
        draft.wait(rng.uniform(0.5, 1.0))
        draft.say(asked, asked.answer, "", scored=False)
        draft.wait(RESPONSE_S + rng.uniform(0.2, 0.4) * len(asked.answer) / SPEECH_CHARACTERS_S)
        draft.say(aside, "", "", over=asked.answer, scored=False, backchannel=True)
        draft.wait(tail_s(asked.answer))
        scenarios.append(draft.finish(f"backchannel-{i:04d}", seed))
    return scenarios


def _is_long(utterance: Utterance) -> bool:
    if utterance.skill == "repeat":
        return len(utterance.value.split()) >= 4
    return utterance.skill in ("long", "talk") and len(utterance.answer or "") >= 20


BUILDERS: dict[str, Callable[[Sequence[Utterance], int, int], list[Scenario]]] = {
    "answers": _answers, "turns": _turns, "impatient": _impatient, "listening": _listening, "noise": _noise,
    "backchannel": _backchannel, "echo": _echo,
}  # fmt: skip
