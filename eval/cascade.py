"""The half-duplex cascade, what one would build instead: silero-vad, whisper-tiny.en, the same answers by rules, the same voice.

It waits for END_S of silence, then transcribes and answers; it falls silent BARGE_S into anything the detector takes for speech.
Computing is free here: its times are those of its turn-taking alone, which favours it.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np

from duplex.errors import UserError
from eval.draft import Scenario
from eval.metrics import Segment
from eval.systems import AGENT_HZ, AgentVoice, Reply, System, num_samples
from eval.text import normalize, spell_out, word_errors
from train import world
from train.bank import USER_HZ

END_S = 0.5  # of silence end a turn, as voice agents are usually set
BARGE_S = 0.25  # of speech make it stop
JOIN_S = 1.0  # a turn that goes on so soon is heard again from its beginning
MARGIN_S = 0.2  # of audio around a segment that is transcribed with it
MAX_WER = 0.3  # a fixed question is recognized up to there

_OPERATORS = {  # signs of a sum, in the order they are looked for
    "minus": ("minus", "subtract", "away", "left", "less"),
    "times": ("times", "multiply", "multiplied", "product"),
    "plus": ("plus", "add", "sum", "total", "together", "and"),
}
_FACTS = {
    "capital": ("capital",), "opposite": ("opposite", "contrary"), "after": ("comes", "after", "follow", "follows", "followed", "next"),
    "color": ("color",), "animal": ("says", "sound", "noise", "does", "hear"),
}  # fmt: skip
_TELLING = {"name": r"\b(name|called|call|calls|i am|im|this is|i go by)\b", "like": r"\bcolor\b"}
_PLAIN = {"what", "you", "can", "how", "are", "the", "many", "a", "in", "do", "of", "is", "me", "who", "two", "there"}
_DRESS = {"please", "hey", "so", "um", "okay", "well", "now", "alright", "and", "today"}
KEYWORD_SHARE = 0.7  # of a fixed question's phrasings, and a word is enough to know it by


def _fixed_entries() -> list[tuple[str, list[str]]]:
    """Answers whose questions are fixed, with the training phrasings of those."""
    entries = [entry for skill in ("long", "talk") for entry in world.skills()[skill].values()]
    return [(entry["answer"], world.fixed_questions(entry["ask"], "train")) for entry in entries]


class Rules:
    """Answers to a transcript, with the memory of one conversation. Phrasings are those of the training split, as for any model."""

    def __init__(self) -> None:
        self._told: dict[str, str] = {}
        self._last = ""

    def answer(self, heard: str) -> str:
        """The answer to a transcript; "I don't know that" where no rule fits."""
        text = normalize(heard)
        for rule in (self._fact, self._memory, self._fixed, self._again, self._sum, self._repeat, self._part):
            answer = rule(text, heard)
            if answer:
                break
        else:
            answer = world.skills()["unknown"]["answer"]
        self._last = answer
        return answer

    def _fixed(self, text: str, heard: str) -> str | None:
        near = self._nearest(text, [(ask, answer) for answer, asks in _fixed_entries() for ask in asks])
        if near:
            return near
        for answer, asks in _fixed_entries():
            common = Counter(word for ask in asks for word in set(normalize(ask).split()))
            keys = [w for w, n in common.items() if n >= KEYWORD_SHARE * len(asks) and w not in _PLAIN]
            if keys and all(key in text.split() for key in keys):
                return answer
        return None

    def _part(self, text: str, heard: str) -> str | None:
        parts = [(len(ask), answer) for answer, asks in _fixed_entries() for ask in asks if f" {normalize(ask)} " in f" {text} "]
        return max(parts)[1] if parts else None

    def _again(self, text: str, heard: str) -> str | None:
        asks = world.fixed_questions(world.skills()["control"]["again"], "train")
        return self._nearest(text, [(ask, self._last) for ask in asks])

    @staticmethod
    def _nearest(text: str, choices: list[tuple[str, str]]) -> str | None:
        words = [w for w in text.split() if w not in _DRESS]
        scored = [(word_errors(ask, " ".join(words)), answer) for ask, answer in choices]
        (errors, size), answer = min(scored, key=lambda choice: choice[0][0] / choice[0][1])
        return answer if errors / size <= MAX_WER else None

    def _sum(self, text: str, heard: str) -> str | None:
        words = spell_out(heard).split()
        spelled = {world.number_word(n): n for n in range(20)}
        numbers = [spelled[w] for w in words if w in spelled]
        name = next((name for name, signs in _OPERATORS.items() if any(sign in words for sign in signs)), None)
        if len(numbers) != 2 or name is None:
            return None
        a, b = numbers
        if (name == "minus" and "from" in words) or " to " in f" {' '.join(words)} ".partition(" add ")[2]:
            a, b = b, a
        result = {"minus": a - b, "times": a * b, "plus": a + b}[name]
        if not 0 <= result < 100:
            return None
        return world.sentence(f"{world.number_word(a)} {name} {world.number_word(b)} is {world.number_word(result)}")

    def _memory(self, text: str, heard: str) -> str | None:
        for kind, pattern in _TELLING.items():
            if not re.search(pattern, text):
                continue
            told = next((v for v in world.skills()[kind]["values"] if normalize(v) in text.split()), None)
            if told:
                self._told[kind] = told
                return world.skills()[kind]["tell"].format(x=told)
            if re.search(r"\b(my|i)\b", text):
                return world.memory_answer(f"{kind}_ask", self._told.get(kind))
        return None

    def _repeat(self, text: str, heard: str) -> str | None:
        starts = [re.escape(p.split(" {w}")[0]) for p in world.phrasings("repeat", "train")]
        found = re.search(rf"\b({'|'.join(sorted(starts, key=len, reverse=True))})\b[ ,.:]*(.+)", heard, re.IGNORECASE)
        words = (
            re.sub(r"^(after me|the words?|these words|this)\b[ ,.:]*", "", found[2].strip(" ,.?!"), flags=re.IGNORECASE) if found else ""
        )
        return world.sentence(words) if words and not re.search(r"\b(my|name|color)\b", text) else None

    def _fact(self, text: str, heard: str) -> str | None:
        words = text.replace("after me", "").split()
        for name, signs in _FACTS.items():
            if not any(sign in words for sign in signs):
                continue
            fact = world.skills()[name]
            for x in sorted(fact["values"], key=len, reverse=True):
                if re.search(rf"\b{normalize(x)}\b", text):
                    return fact["answer"].format(x=x, X=x[:1].upper() + x[1:], y=fact["values"][x])
        return None


class Cascade(System):
    """The system under test called `cascade`.

    Args:
        vad: Speech segments of 16 kHz audio that silences of END_S separate.
        asr: Text of 16 kHz audio.
        voice: Who speaks.
    """

    def __init__(self, vad: Callable[[np.ndarray], list[Segment]], asr: Callable[[np.ndarray], str], voice: AgentVoice) -> None:
        self.name = "cascade"
        self._vad, self._asr, self._voice = vad, asr, voice

    def respond(self, scenarios: Sequence[Scenario]) -> list[Reply]:
        """Each conversation by itself."""
        return [self._reply(scenario) for scenario in scenarios]

    def _reply(self, scenario: Scenario) -> Reply:
        if scenario.echo:
            raise UserError("the cascade has no echo path here; measure suite echo on a checkpoint")
        audio, rules = np.zeros(num_samples(scenario), np.float32), Rules()
        events: list[tuple[float, str]] = []
        first = last = -JOIN_S
        for start, end in self._vad(scenario.audio):
            first, last = (first if start - last < JOIN_S else start), end
            cut_s = start + BARGE_S
            audio[round(cut_s * AGENT_HZ) :] = 0.0
            events = [event for event in events if event[0] < cut_s]
            piece = scenario.audio[max(round((first - MARGIN_S) * USER_HZ), 0) : round((end + MARGIN_S) * USER_HZ)]
            heard = self._asr(piece)
            if normalize(heard):
                speech, words = self._voice.say(rules.answer(heard))
                begin = round((end + END_S) * AGENT_HZ)
                room = audio[begin : begin + len(speech)]
                room[:] = speech[: len(room)]
                events += [(end + END_S + at_s, word) for at_s, word in words]
        return Reply(audio, tuple(events))


def load_cascade() -> Cascade:
    """The cascade of packages.

    Raises:
        UserError: a package of the extra `eval` or `synth` is missing.
    """
    from eval.vad import SileroVad
    from train.asr import WhisperAsr

    return Cascade(SileroVad(min_silence_ms=round(END_S * 1000)), WhisperAsr(), AgentVoice())
