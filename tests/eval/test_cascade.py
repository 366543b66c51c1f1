import numpy as np
import pytest

from duplex.errors import UserError
from eval import cascade, scenarios, systems
from eval.cascade import Cascade, Rules
from eval.draft import Scenario
from train.bank import USER_HZ


@pytest.mark.parametrize(
    ("heard", "answer"),
    [
        ("What is 7 plus 5?", "Seven plus five is twelve."),
        ("Um, take three away from nine, please.", "Nine minus three is six."),
        ("Subtract two from eight.", "Eight minus two is six."),
        ("How much is 4 x 6?", "Four times six is twenty four."),
        ("Hey, what's the capital of Peru?", "The capital of Peru is Lima."),
        ("So what comes after Monday?", "After Monday comes Tuesday."),
        ("Tell me the opposite of hot.", "The opposite of hot is cold."),
        ("What color is the sea?", "The sea is blue."),
        ("What does a dog say?", "A dog says bark."),
        ("Repeat after me, river, apple.", "River, apple."),
        ("Name the days of the week.", "The days of the week are Monday, Tuesday, Wednesday, Thursday, Friday, Saturday and Sunday."),
        ("How many days are in a week?", "There are seven days in a week."),
        ("Goodbye, everyone.", "Goodbye, see you soon."),
        ("Who built Chicago?", "Sorry, I don't know that."),
        ("Banana.", "Sorry, I don't know that."),
    ],
)
def test_rules_answer_what_was_heard(heard, answer):
    assert Rules().answer(heard) == answer


def test_rules_remember_within_one_conversation():
    rules = Rules()
    assert rules.answer("What is my name?") == "You have not told me your name yet."
    assert rules.answer("My name is Anna.") == "Nice to meet you, Anna."
    assert rules.answer("Say that again.") == "Nice to meet you, Anna."
    assert rules.answer("I like the color green.") == "I will remember that you like green."
    assert rules.answer("What's my name?") == "Your name is Anna."
    assert Rules().answer("What's my name?") == "You have not told me your name yet."


class _Voice:
    """A level of 0.5 for a second, whatever is said."""

    def __init__(self):
        self.said = []

    def say(self, text):
        self.said.append(text)
        return np.full(systems.AGENT_HZ, 0.5, np.float32), ((0.0, " " + text), (0.5, " end"))


def _scenario(seconds: float) -> Scenario:
    return Scenario("a", np.zeros(round(seconds * USER_HZ), np.float32), (), 1)


def test_it_answers_after_the_silence_and_stops_when_spoken_to():
    voice, heard = _Voice(), []

    def asr(audio):
        heard.append(len(audio) / USER_HZ)
        return ["Hello.", "What is two plus two?", ""][len(heard) - 1]

    system = Cascade(lambda audio: [(0.5, 1.0), (2.2, 3.0), (6.0, 6.2)], asr, voice)
    (reply,) = system.respond([_scenario(8.0)])
    assert voice.said == ["Hello there, how can I help you?", "Two plus two is four."]
    loud = reply.audio > 0
    spans = np.flatnonzero(np.diff(np.pad(loud.astype(int), 1))) / systems.AGENT_HZ
    assert spans == pytest.approx([1.0 + cascade.END_S, 2.2 + cascade.BARGE_S, 3.0 + cascade.END_S, 4.0 + cascade.END_S])
    assert [time for time, _ in reply.text_events] == [1.5, 2.0, 3.5, 4.0]
    assert heard == pytest.approx([0.9, 1.2, 0.6])  # each with its margins


def test_a_turn_that_goes_on_is_heard_from_its_beginning():
    heard = []
    system = Cascade(lambda audio: [(0.5, 1.0), (1.9, 2.5)], lambda audio: heard.append(len(audio) / USER_HZ) or "Hello.", _Voice())
    (reply,) = system.respond([_scenario(6.0)])
    assert heard == pytest.approx([0.9, 2.4])
    assert reply.text_events[0][0] == pytest.approx(1.0 + cascade.END_S) and reply.text_events[-1][0] == pytest.approx(3.5)


def test_it_says_that_it_has_no_echo_path(pool):
    scenario = scenarios.build("echo", pool, 4, 1)[1]
    assert scenario.echo
    with pytest.raises(UserError, match="echo on a checkpoint"):
        Cascade(lambda audio: [], lambda audio: "", _Voice()).respond([scenario])
