import pytest

from eval.text import is_correct, normalize, word_errors


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two plus two is 4.", "two plus two is four"),
        ("9-4 = 5", "nine minus four is five"),
        ("7 x 3 is 21!", "seven times three is twenty one"),
        ("Twenty-one", "twenty one"),
        ("Sorry, I don’t know that.", "sorry i dont no that"),
        ("4 + 4 is ate.", "four plus four is eight"),
        ("1, 2, 3", "one two three"),
        ("", ""),
    ],
)
def test_normalize(text, expected):
    assert normalize(text) == expected


@pytest.mark.parametrize(
    ("heard", "correct"),
    [
        ("The capital of France is Paris.", True),
        ("the capital a France is Paris", True),
        ("The capital of France is Rome.", False),
        ("The capital of France is Paris Rome.", False),  # it corrects itself
        ("Paris.", False),
        ("The capital of France", False),
        ("", False),
    ],
)
def test_fact(heard, correct):
    assert is_correct(heard, "The capital of France is Paris.", "Paris") is correct


@pytest.mark.parametrize(
    ("heard", "answer", "key"),
    [
        ("A horse says nay.", "A horse says neigh.", "neigh"),
        ("A cat says Miao", "A cat says meow.", "meow"),
        ("Goodnight", "Good knight.", ""),
    ],
)
def test_what_sounds_the_same_is_the_same(heard, answer, key):
    assert is_correct(heard, answer, key)
    assert not is_correct("A horse says no", answer, key)


def test_a_number_inside_another_is_wrong():
    assert is_correct("3 minus 2 is 1.", "Three minus two is one.", "one")
    assert not is_correct("3 minus 2 is 21.", "Three minus two is one.", "one")
    assert not is_correct("3 times 7 is 20.", "Three times seven is twenty one.", "twenty one")


def test_repeat_needs_every_word_in_order():
    assert is_correct("Apple, mid night, river", "Apple, midnight, river.", "apple, midnight, river", exact=True)
    assert not is_correct("Apple river midnight", "Apple, midnight, river.", exact=True)
    assert not is_correct("Apple, midnight", "Apple, midnight, river.", exact=True)


def test_without_a_key_most_words_decide():
    story = "Why did the chicken cross the road? To get to the other side."
    assert is_correct("Why did the chicken cross the road to get to the other", story)
    assert not is_correct("Why did the chicken cross the road", story)


def test_word_errors_count_edits_and_words():
    assert word_errors("one two three", "1 too") == (1, 3)
    assert word_errors("", "hello there") == (2, 0)
    assert word_errors("hello", "") == (1, 1)
