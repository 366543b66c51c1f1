"""A model that is told the words: they arrive when they are said, and it acts on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile

from duplex.errors import UserError
from duplex.sampling import Sampling
from eval import scenarios, systems
from eval.draft import Draft, spread_words
from eval.told import Told
from train.bank import USER_HZ, Utterance

SAMPLE = Path(__file__).parents[2] / "serve/samples/question-1.wav"


@pytest.fixture(scope="module")
def told(tiny_checkpoint: Path) -> Told:
    system = systems.load_system(f"told:{tiny_checkpoint}")
    assert isinstance(system, Told)
    return system


def test_words_are_told_at_their_ends_pauses_and_all(pool: list[Utterance], told: Told) -> None:
    question = pool[0]  # what is two plus two, 0.2 s a word
    draft = Draft(USER_HZ)
    draft.say(question, "", pauses=((question.words[3].start_sample, USER_HZ),), key="")
    draft.wait(1.0)
    scenario = draft.finish("asked", 1)
    assert [word.text for word in scenario.words] == "what is two plus two".split()
    ends = [word.end_sample / USER_HZ for word in scenario.words]
    assert ends == pytest.approx([1.2, 1.4, 1.6, 2.8, 3.0])
    likely = told._heard([scenario, replace(scenario, id="mute", words=())]).float()
    vocab = told._speaker.vocab
    assert likely.shape == (2, len(scenario.audio) // 1280, vocab.size)
    assert likely.sum(-1).numpy() == pytest.approx(1.0, abs=1e-5)
    assert (likely[1, :, vocab.sil] == 1).all()
    first = [ids[0] for word in scenario.words for ids in vocab.encode_words(word.text)][0]
    assert int(likely[0, :, first].argmax()) == pytest.approx(1.2 / 0.08 + 1, abs=2)
    assert (likely[0, :15, vocab.sil] == 1).all()


def test_it_acts_on_what_it_is_told() -> None:
    audio, rate_hz = soundfile.read(SAMPLE, dtype="int16")
    assert rate_hz == USER_HZ
    replies = {}
    for words in ("what is two plus two", "what is the capital of France"):
        draft = Draft(USER_HZ // 2)
        draft.say(Utterance("u", words, "", audio, USER_HZ), "", "")
        draft.wait(3.0)
        reply = systems.load_system("told:pocket").respond([draft.finish("asked", 1)])[0]
        replies[words] = "".join(piece for _, piece in reply.text_events)
    assert " plus " in replies["what is two plus two"] and "capital" in replies["what is the capital of France"]


def test_words_without_times_are_spread_by_their_letters() -> None:
    spoken = Utterance("u", "say it now", "piper:joe", np.zeros(1100, np.int16), USER_HZ)
    assert [(w.text, w.start_sample, w.end_sample) for w in spread_words(spoken)] == [("say", 0, 400), ("it", 400, 700), ("now", 700, 1100)]
    assert spread_words(replace(spoken, text="(cough)")) == ()


def test_noise_in_place_of_a_voice_says_no_words(pool: list[Utterance]) -> None:
    assert all(not s.words for s in scenarios.build("listening", pool, 2, 1)) and scenarios.build("answers", pool, 1, 1)[0].words


def test_what_cannot_be_told_says_so(told: Told, pool: list[Utterance], tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="has no --eagerness, --yielding or --int4"):
        systems.load_system(f"told:{tiny_checkpoint}", int4=True)
    with pytest.raises(UserError, match="cannot be measured on long"):
        told.endure(scenarios.build("answers", pool, 1, 1)[0])
    from eval import told as module

    monkeypatch.setattr(module.InProcess, "__init__", lambda self, *_: self.__dict__.update(_speaker=_Deaf))
    with pytest.raises(UserError, match="cannot be told them"):
        Told("deaf", "cpu", 1, Sampling())


class _Deaf:
    class model:
        recognizer = None
