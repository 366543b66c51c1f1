"""Composes conversations: pure functions from utterances and a generator to a `Timeline`, and from that to the user's audio.

user    [ what is  ...pause...  two plus two ]            [ stop, what is ... ]
agent                                        gap [ two plus two is fo          gap [ ...
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.random import Generator

from train import world
from train.augment import AugmentConfig, add_echo, augment_channel, augment_utterance
from train.bank import USER_HZ, Utterance, Word
from train.layout import AGENT_FRAME_SAMPLES
from train.timeline import USER_FRAME_SAMPLES, AgentTurn, Timeline, UserTurn

_COMMON = frozenset(
    "the a of is are what after capital opposite your name color nice to meet you i will remember that like says plus minus "
    "times and".split()
)

_ANSWERLESS = ("name_ask", "like_ask", "again", "go_on", "backchannel")
_BACKCHANNEL_FRAMES = (4, 3)  # it begins so many frames into the answer, and ends so many before its end


@dataclass(frozen=True)
class ComposerConfig:
    """Probabilities and ranges of a conversation.

    Attributes:
        num_frames: Length of a timeline.
        gap_frames: Response gap, user's end to the agent's first code, frames, ends included.
        late_probability, late_frames: That the gap is drawn from `late_frames` instead. Who always begins at one moment never begins once
            it has let that moment pass.
        pause_probability, pause_s: A pause inside a user's turn, where the sentence is unfinished.
        interruption_probability, long_interruption_probability: The user comes in during an answer; the latter for long answers.
        stop_frames: How long the agent goes on after an interruption begins, ends included.
        stop_after_word: Where given, the agent goes on until so many frames after the end of the first word that tells the interruption
            from a backchannel ("I see" from "I need two plus two", "alright" from "alright, what is"), ends included, within `stop_frames`.
        late_stop_probability: That the agent lets the moment to stop pass and stops a frame later, or, each half as often, two, three and
            more. Who always stops at one moment never stops once it has let that moment pass.
        silence_frames: Between the agent's end and the user's next turn, ends included.
        idle_probability, idle_frames: That the user lets so many frames pass instead, before the first turn too. Who always has somebody
            asking soon takes the murmur of a room for a question.
        recall_probability: After something was told, that the next question asks for it.
        skill_weights: How often a skill is asked, where it differs from `train.world.SKILL_WEIGHTS`.
        interruption_weights: How often a skill interrupts, where it differs from that: who asks rarely may interrupt often.
        stop_probability: That who interrupts a long answer says nothing but "stop".
        go_on_probability: That who said "stop" then asks for the rest.
        agent_backchannel_probability: That the agent says "uh huh" or the like into a pause of the user's turn, where it is long enough
            and the agent has such words.
        agent_backchannel_frames: How far into the pause it does so, ends included.
        backchannel_probability: That the user says "uh huh" or the like, wanting no turn, into an answer, or before an interruption of it,
            where there is time.
    """

    num_frames: int = 300
    gap_frames: tuple[int, int] = (4, 5)
    late_probability: float = 0.0
    late_frames: tuple[int, int] = (6, 12)
    pause_probability: float = 0.25
    pause_s: tuple[float, float] = (0.3, 1.5)
    interruption_probability: float = 0.25
    long_interruption_probability: float = 0.7
    stop_frames: tuple[int, int] = (2, 4)
    stop_after_word: tuple[int, int] | None = None
    late_stop_probability: float = 0.0
    silence_frames: tuple[int, int] = (4, 24)
    idle_probability: float = 0.0
    idle_frames: tuple[int, int] = (30, 90)
    recall_probability: float = 0.5
    stop_probability: float = 0.25
    go_on_probability: float = 0.6
    backchannel_probability: float = 0.3
    agent_backchannel_probability: float = 0.0
    agent_backchannel_frames: tuple[int, int] = (4, 6)
    skill_weights: dict[str, float] = field(default_factory=dict)
    interruption_weights: dict[str, float] = field(default_factory=dict)


class Cast:
    """Utterances to compose from, by skill, and answers by text."""

    def __init__(self, questions: list[Utterance], answers: dict[str, Utterance], skill_weights: dict[str, float] | None = None) -> None:
        self.answers = answers
        usable = [q for q in questions if q.skill in _ANSWERLESS or q.answer in answers]
        self.by_skill: dict[str, list[Utterance]] = {}
        for question in usable:
            self.by_skill.setdefault(question.skill, []).append(question)
        self.crowd = [q for pool in self.by_skill.values() for q in pool]
        self.aside_beginnings = beginnings([q.text for q in self.by_skill.get("backchannel", [])])
        self.listening = [answers[text] for text in world.skills()["listening"] if text in answers]
        self.stops = [q for q in self.by_skill.get("talk", []) if q.value == "stop"]
        by_name = {**world.SKILL_WEIGHTS, **(skill_weights or {})}
        self.skills = [s for s in by_name if s in self.by_skill and by_name[s]]
        self.weights = [by_name[s] for s in self.skills]

    def can_ask(self, skill: str) -> bool:
        """Whether there is a question of this skill."""
        return skill in self.by_skill

    def answer(self, text: str) -> Utterance | None:
        """The agent saying `text`, if it can."""
        return self.answers.get(text)

    def draw_skill(self, rng: Generator, changed: Mapping[str, float] | None = None) -> str:
        """A skill, by weight; `changed` ones count in place of the cast's own."""
        weights = np.array([(changed or {}).get(skill, weight) for skill, weight in zip(self.skills, self.weights, strict=True)])
        return self.skills[int(rng.choice(len(self.skills), p=weights / weights.sum()))]

    def draw(self, rng: Generator, skill: str | None = None) -> Utterance:
        """A question, of a skill drawn by weight unless given."""
        pool = self.by_skill[skill or self.draw_skill(rng)]
        return pool[int(rng.integers(len(pool)))]


def unfinished_splits(utterance: Utterance) -> list[int]:
    """Word indices before which the sentence is plainly unfinished, so that only meaning tells that the speaker will go on.

    A split stands before the last word that the answer takes up (`what is two plus | two`), and before the first of the words
    to repeat. Sentences without such words, or without word times, have none.
    """
    words = [_bare(w.text) for w in utterance.words]
    answer = {_bare(w) for w in (utterance.answer or "").split()} - _COMMON
    taken = [i for i, w in enumerate(words) if w in answer]
    if not taken or utterance.skill in ("talk", "again", "go_on", "unknown"):
        return []
    last = taken[-1]
    if utterance.skill == "repeat":
        count = len(utterance.value.split())
        last = len(words) - count
    return [i for i in range(max(last - 2, 1), last + 1) if i > 0]


def _bare(word: str) -> str:
    return word.lower().strip(",.!?")


def insert_pause(utterance: Utterance, before_word: int, length: int) -> tuple[Utterance, tuple[int, int]]:
    """Put `length` silent samples before a word. Returns the longer utterance and the pause, in samples from its start."""
    at = utterance.words[before_word].start_sample
    audio = np.concatenate([utterance.audio[:at], np.zeros(length, utterance.audio.dtype), utterance.audio[at:]])
    words = tuple(
        w if i < before_word else Word(w.text, w.start_sample + length, w.end_sample + length) for i, w in enumerate(utterance.words)
    )
    return replace(utterance, audio=audio, words=words), (at, at + length)


@dataclass
class _Memory:
    """What the answers of a conversation depend on.

    Attributes:
        told: What the user told (`name`, `like`).
        last: The last complete answer.
        rest: What was left of a long answer when the user said "stop".
    """

    told: dict[str, str] = field(default_factory=dict)
    last: Utterance | None = None
    rest: Utterance | None = None


def rest_of(answer: Utterance, num_frames: int) -> Utterance | None:
    """What is left of an answer of which `num_frames` were said, from the first word that was not said whole; None under three words."""
    assert answer.codes is not None
    said = num_frames * AGENT_FRAME_SAMPLES
    left = [w for w in answer.words if w.end_sample > said]
    if len(left) < 3:
        return None
    first = left[0].start_sample // AGENT_FRAME_SAMPLES
    offset = first * AGENT_FRAME_SAMPLES
    words = tuple(Word(w.text, w.start_sample - offset, w.end_sample - offset) for w in left)
    text = " ".join(answer.text.split()[-len(left) :])
    return replace(answer, id=f"{answer.id}+{first}", text=text, words=words, codes=answer.codes[first:], audio=answer.audio[offset:])


def compose(cast: Cast, config: ComposerConfig, augment: AugmentConfig, rng: Generator) -> Timeline:
    """One conversation. Utterances' audio becomes float32, with the speaker's changes applied."""
    users: list[UserTurn] = []
    agents: list[AgentTurn] = []
    memory = _Memory()
    start = _silence((2, 14), config, rng)
    kind = "question"
    while True:
        question = _next_question(cast, memory, kind, config, rng)
        answer = _answer(cast, question, memory)
        if answer is None:
            continue
        turn = _user_turn(question, start, kind, config, augment, rng)
        late = config.late_probability > 0 and rng.random() < config.late_probability
        gap = config.late_frames if late else config.gap_frames
        begin = turn.end_frame + int(rng.integers(gap[0], gap[1] + 1))
        if begin + 6 > config.num_frames:
            break
        if question.skill in ("name_tell", "like_tell"):
            memory.told[question.skill.split("_")[0]] = question.value
        if kind == "interruption":
            agents[-1] = _cut(agents[-1], turn, cast, config, rng)
            memory.rest = rest_of(agents[-1].utterance, agents[-1].cut_frame - agents[-1].start_frame)
        users.append(turn)
        agents += _listening(cast, turn, len(users) - 1, config, rng)
        assert answer.codes is not None
        end = begin + len(answer.codes)
        onset = _interruption(question, begin, len(answer.codes), config, rng)
        agents.append(AgentTurn(answer, begin, end, len(users) - 1))
        undisturbed = len(answer.codes) if onset is None else onset // USER_FRAME_SAMPLES - begin
        users += _backchannel(cast, begin, undisturbed, config, augment, rng)
        if onset is not None:
            start, kind, memory.last = onset, "interruption", None
            memory.rest = rest_of(answer, min(onset // USER_FRAME_SAMPLES + config.stop_frames[0], end) - begin)
        else:
            pause = _silence(config.silence_frames, config, rng)
            if kind != "interruption" or not _is_stop(question):
                memory.rest = None
            start, kind, memory.last = end * USER_FRAME_SAMPLES + pause, "question", answer
    return Timeline(config.num_frames, tuple(users), tuple(agents))


def _silence(frames: tuple[int, int], config: ComposerConfig, rng: Generator) -> int:
    """Samples of nobody's turn: of `frames`, ends included, or of the config's `idle_frames`."""
    if config.idle_probability and rng.random() < config.idle_probability:
        frames = config.idle_frames
    return int(rng.integers(frames[0] * USER_FRAME_SAMPLES, frames[1] * USER_FRAME_SAMPLES + 1))


def _listening(cast: Cast, turn: UserTurn, index: int, config: ComposerConfig, rng: Generator) -> list[AgentTurn]:
    """What the agent says into pauses of the user's turn `index`, wanting no turn: each ends before the user goes on."""
    said = []
    for start, end in turn.pauses if cast.listening and config.agent_backchannel_probability else ():
        utterance = cast.listening[int(rng.integers(len(cast.listening)))]
        assert utterance.codes is not None
        first, last = config.agent_backchannel_frames
        begin = -(-start // USER_FRAME_SAMPLES) + int(rng.integers(first, last + 1))
        if begin + len(utterance.codes) <= end // USER_FRAME_SAMPLES and rng.random() < config.agent_backchannel_probability:
            said.append(AgentTurn(utterance, begin, begin + len(utterance.codes), index))
    return said


def _is_stop(question: Utterance) -> bool:
    return question.skill == "talk" and question.value == "stop"


def _answer(cast: Cast, question: Utterance, memory: _Memory) -> Utterance | None:
    """The agent's answer, given what was said before; None when it has none."""
    if question.skill in ("name_ask", "like_ask"):
        return cast.answer(world.memory_answer(question.skill, memory.told.get(question.skill.split("_")[0])))
    if question.skill == "again":
        return memory.last
    if question.skill == "go_on":
        return memory.rest
    return cast.answer(question.answer or "")


def beginnings(texts: list[str]) -> set[tuple[str, ...]]:
    """Every beginning of these texts and of the fillers, whole ones too, as bare words."""
    spoken = {tuple(_bare(w) for w in text.split()) for text in (*texts, *world.skills()["fillers"])}
    return {words[:i] for words in spoken for i in range(1, len(words) + 1)}


def telling_word(utterance: Utterance, beginnings: set[tuple[str, ...]]) -> Word | None:
    """The first word with which `utterance` begins as no backchannel does; None without word times, or where it is one throughout."""
    spoken: tuple[str, ...] = ()
    for word in utterance.words:
        spoken += (_bare(word.text),)
        if spoken not in beginnings:
            return word
    return None


def _cut(agent: AgentTurn, turn: UserTurn, cast: Cast, config: ComposerConfig, rng: Generator) -> AgentTurn:
    """The answer as far as it comes when `turn` interrupts it."""
    onset = turn.start_sample // USER_FRAME_SAMPLES
    word = telling_word(turn.utterance, cast.aside_beginnings) if config.stop_after_word else None
    if word is None or config.stop_after_word is None:
        stop = onset + int(rng.integers(config.stop_frames[0], config.stop_frames[1] + 1))
    else:
        told = -(-(turn.start_sample + word.end_sample) // USER_FRAME_SAMPLES)
        stop = told + int(rng.integers(config.stop_after_word[0], config.stop_after_word[1] + 1))
        stop = min(max(stop, onset + config.stop_frames[0]), onset + config.stop_frames[1])
    if config.late_stop_probability and rng.random() < config.late_stop_probability:
        stop += int(rng.geometric(0.5))
    return replace(agent, cut_frame=min(stop, agent.cut_frame))


def _next_question(cast: Cast, memory: _Memory, kind: str, config: ComposerConfig, rng: Generator) -> Utterance:
    if kind == "interruption" and memory.rest and cast.stops and rng.random() < config.stop_probability:
        return cast.stops[int(rng.integers(len(cast.stops)))]
    if kind == "question" and memory.rest and cast.can_ask("go_on") and rng.random() < config.go_on_probability:
        return cast.draw(rng, "go_on")
    if memory.told and rng.random() < config.recall_probability:
        skill = f"{list(memory.told)[int(rng.integers(len(memory.told)))]}_ask"
        if cast.can_ask(skill):
            return cast.draw(rng, skill)
    changed = config.interruption_weights if kind == "interruption" else None
    while True:
        question = cast.draw(rng, cast.draw_skill(rng, changed))
        if question.skill != "again" or memory.last is not None:
            return question


def _user_turn(question: Utterance, start: int, kind: str, config: ComposerConfig, augment: AugmentConfig, rng: Generator) -> UserTurn:
    pauses: tuple[tuple[int, int], ...] = ()
    splits = unfinished_splits(question)
    speech, factor = augment_utterance(question.audio / np.float32(32767.0), augment, rng)
    words = tuple(Word(w.text, round(w.start_sample / factor), round(w.end_sample / factor)) for w in question.words)
    changed = replace(question, audio=speech, words=words)
    if splits and rng.random() < config.pause_probability:
        length = int(rng.uniform(*config.pause_s) * USER_HZ)
        changed, (a, b) = insert_pause(changed, splits[int(rng.integers(len(splits)))], length)
        pauses = ((start + a, start + b),)
    return UserTurn(changed, start, kind, pauses, question.answer)


def _interruption(question: Utterance, begin: int, length: int, config: ComposerConfig, rng: Generator) -> int | None:
    """Sample at which the user comes in during the answer, or None."""
    chance = config.long_interruption_probability if length > 35 else config.interruption_probability
    if length < 12 or rng.random() >= chance:
        return None
    return int((begin + rng.uniform(5, length - 3)) * USER_FRAME_SAMPLES)


def _backchannel(cast: Cast, begin: int, length: int, config: ComposerConfig, augment: AugmentConfig, rng: Generator) -> list[UserTurn]:
    """Something short said into the first `length` frames of an answer, or nothing."""
    if not cast.can_ask("backchannel") or rng.random() >= config.backchannel_probability:
        return []
    utterance = cast.draw(rng, "backchannel")
    first = (begin + _BACKCHANNEL_FRAMES[0]) * USER_FRAME_SAMPLES
    last = (begin + length - _BACKCHANNEL_FRAMES[1]) * USER_FRAME_SAMPLES - round(utterance.num_samples / augment.speed[0])
    if last <= first:
        return []
    turn = _user_turn(utterance, int(rng.integers(first, last)), "backchannel", config, augment, rng)
    return [turn]


def render_user(timeline: Timeline, augment: AugmentConfig | None, rng: Generator, crowd: Sequence[Utterance] = ()) -> np.ndarray:
    """The user's channel as float32 [num_frames * 1280]; `augment` None leaves speech as it is, over a faint noise floor.

    `crowd`: whose voices may babble behind it.
    """
    audio = _compose_user(timeline) if timeline.recorded is None else timeline.recorded
    if augment is None:
        return audio + 1e-4 * rng.standard_normal(len(audio)).astype(np.float32)
    audio = augment_channel(audio, augment, rng, crowd)
    if augment.echo_probability and rng.random() < augment.echo_probability:
        level_db, delay_s, reverb_s = (rng.uniform(*span) for span in (augment.echo_db, augment.echo_delay_s, augment.reverb_s))
        audio = np.clip(add_echo(audio, render_agent(timeline), level_db, delay_s, reverb_s, rng), -1.0, 1.0)
    return audio


def _compose_user(timeline: Timeline) -> np.ndarray:
    audio = np.zeros(timeline.num_frames * USER_FRAME_SAMPLES, np.float32)
    for turn in timeline.user:
        piece = turn.utterance.audio[: max(len(audio) - turn.start_sample, 0)]
        audio[turn.start_sample : turn.start_sample + len(piece)] += piece
    return audio


def render_agent(timeline: Timeline) -> np.ndarray:
    """The agent's voice as the user's microphone would hear it: float32 [num_frames * 1280] at 16 kHz, at the level it is played.

    Answers need their audio (24 kHz); those read from the bank without it are silent.
    """
    import soxr

    out = np.zeros(timeline.num_frames * USER_FRAME_SAMPLES, np.float32)
    for turn in timeline.agent:
        said = turn.utterance.audio[: (turn.cut_frame - turn.start_frame) * AGENT_FRAME_SAMPLES]
        if len(said):
            start = turn.start_frame * USER_FRAME_SAMPLES
            piece = soxr.resample(said / np.float32(32767.0), turn.utterance.sample_rate_hz, USER_HZ)[: len(out) - start]
            out[start : start + len(piece)] += piece
    return out
