"""The channels of a conversation, literally."""

from __future__ import annotations

from typing import cast

import numpy as np
import pytest

from duplex.errors import UserError
from duplex.model import Presence
from duplex.vocab import Vocab
from train.bank import Utterance, Word
from train.layout import NOISE_RMS, lay_channels, lay_heard, lay_presence, shift_tokens, token_frames
from train.timeline import AgentTurn, Timeline, UserTurn

SIL, BOS, EOS = Vocab.sil, Vocab.bos, Vocab.eos
QUIET = [9, 9]


class Spelled:
    """Two letters a token: id 10 for the first token of any text, 11 for the next."""

    def encode_words(self, text: str) -> list[list[int]]:
        count, ids = 10, []
        for word in text.split():
            size = -(-len(word) // 2)
            ids.append(list(range(count, count + size)))
            count += size
        return ids

    def piece(self, token: int) -> str:
        return "xx"


VOCAB = cast(Vocab, Spelled())


def utterance(text: str, spans: list[tuple[int, int]], num_frames: int) -> Utterance:
    codes = np.arange(2 * num_frames, dtype=np.int16).reshape(num_frames, 2) + 100
    words = tuple(Word(w, a, b) for w, (a, b) in zip(text.split(), spans, strict=bool(spans)))
    return Utterance("it", text, "tone:agent", np.zeros(0, np.int16), 24000, words, codes)


IT_IS_FOUR = utterance("it is four", [(0, 1900), (1920, 3000), (3900, 7600)], 5)


def lay(start: int, cut: int, num_frames: int = 18, lead: int = 2):
    timeline = Timeline(num_frames, (), (AgentTurn(IT_IS_FOUR, start, cut, 0),))
    return lay_channels(timeline, {"it": token_frames(IT_IS_FOUR, VOCAB)}, np.array(QUIET), lead)


def test_tokens_stand_at_their_own_sound() -> None:
    assert token_frames(IT_IS_FOUR, VOCAB) == [(0, 10), (1, 11), (2, 12), (3, 13)]
    late = utterance("a bb", [(0, 100), (9600, 10000)], 8)
    assert token_frames(late, VOCAB) == [(0, 10), (5, 11)]


def test_one_token_a_frame_and_a_crowd_moves_back_from_the_end() -> None:
    assert token_frames(utterance("aa bb cc", [(0, 500), (500, 900), (900, 1500)], 6), VOCAB) == [(0, 10), (1, 11), (2, 12)]
    assert token_frames(utterance("a bbbbbb", [(0, 3840), (3840, 5760)], 4), VOCAB) == [(0, 10), (1, 11), (2, 12), (3, 13)]


def test_without_word_times_tokens_follow_each_other() -> None:
    bare = utterance("it is four", [], 5)
    assert token_frames(Utterance(**{**vars(bare), "words": ()}), VOCAB) == [(0, 10), (1, 11), (2, 12), (3, 13)]
    late = utterance("a bb", [(0, 100), (9600, 10000)], 8)
    assert token_frames(late, VOCAB, by_word=False) == [(0, 10), (1, 11)]


def test_text_that_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="'it is four' has 4 tokens, too many for its 3 frames"):
        token_frames(utterance("it is four", [(0, 10), (10, 20), (20, 30)], 3), VOCAB)


def test_shifted_tokens_keep_their_order_and_stay_in_their_speech() -> None:
    placed = [(0, 7), (1, 8), (4, 9), (9, 10)]
    rng = np.random.default_rng(0)
    assert shift_tokens(placed, 10, 0.0, rng) == placed and shift_tokens([], 0, 1.0, rng) == []
    seen = set()
    for _ in range(400):
        shifted = shift_tokens(placed, 10, 0.5, rng)
        frames = [frame for frame, _ in shifted]
        assert [token for _, token in shifted] == [7, 8, 9, 10] and all(a < b for a, b in zip(frames, frames[1:], strict=False))
        assert frames[0] >= 0 and frames[-1] <= 9
        seen.add(frames[2])
    assert seen == {3, 4, 5}
    assert shift_tokens([(0, 7), (1, 8)], 2, 1.0, rng) == [(0, 7), (1, 8)]  # no room to move


def test_a_whole_turn() -> None:
    channels = lay(10, 15)
    #                               0                                  7
    assert channels.text.tolist() == [SIL] * 7 + [BOS, 10, 11, 12, 13, SIL, SIL, SIL, EOS, SIL, SIL, SIL]
    assert channels.codes.tolist() == [QUIET] * 10 + [[100 + 2 * i, 101 + 2 * i] for i in range(5)] + [QUIET] * 3
    assert channels.speaking.tolist() == [False] * 10 + [True] * 5 + [False] * 3


def test_a_turn_that_is_cut() -> None:
    channels = lay(10, 12)
    assert channels.text.tolist() == [SIL] * 7 + [BOS, 10, 11, 12, 13, EOS] + [SIL] * 6
    assert channels.codes.tolist() == [QUIET] * 10 + [[100, 101], [102, 103]] + [QUIET] * 6
    early = lay(10, 11, lead=1)
    assert early.text.tolist() == [SIL] * 8 + [BOS, 10, 11, EOS] + [SIL] * 7  # words never spoken are not written
    assert early.speaking.tolist() == [False] * 10 + [True] + [False] * 7


def test_a_turn_that_outlasts_the_timeline() -> None:
    channels = lay(10, 15, num_frames=12)
    assert channels.text.tolist() == [SIL] * 7 + [BOS, 10, 11, 12, 13, SIL]
    assert channels.codes.tolist()[10:] == [[100, 101], [102, 103]] and EOS not in channels.text
    assert lay(10, 15, num_frames=15).text.tolist()[15] == EOS  # the last prediction


def test_the_lead_moves_text_alone() -> None:
    near, far = lay(10, 15, lead=1), lay(10, 15, lead=3)
    assert near.text.tolist().index(BOS) == 8 and far.text.tolist().index(BOS) == 6
    assert near.text.tolist().index(EOS) == far.text.tolist().index(EOS) == 15
    assert np.array_equal(near.codes, far.codes)


def user_turn(words: tuple[Word, ...], start_frame: int, num_frames: int) -> UserTurn:
    said = Utterance("u", "what is", "v", np.zeros(num_frames * 1280, np.float32), 16000, words)
    return UserTurn(said, start_frame * 1280)


def test_what_was_heard_follows_each_word() -> None:
    words = (Word("what", 0, 1000), Word("is", 1500, 3000))  # ending in frames 2 and 4 of the timeline
    heard = lay_heard(Timeline(10, (user_turn(words, 2, 3),), ()), VOCAB)
    assert heard.tolist() == [SIL, SIL, SIL, 10, 11, 10, SIL, SIL, SIL, SIL]


def test_heard_tokens_never_share_a_frame_nor_leave_the_timeline() -> None:
    words = (Word("whatever", 0, 500), Word("is", 500, 1000))
    assert lay_heard(Timeline(6, (user_turn(words, 1, 2),), ()), VOCAB).tolist() == [SIL, SIL, 10, 11, 12, 13]


def test_what_was_heard_is_unknown_without_word_times() -> None:
    assert lay_heard(Timeline(18, (user_turn((), 2, 3),), ()), VOCAB).tolist() == [SIL] * 2 + [-100] * 15 + [SIL]


def test_what_a_frame_holds() -> None:
    turn = UserTurn(Utterance("u", "what is", "v", np.zeros(4 * 1280, np.int16), 16000), 2 * 1280 + 500, pauses=((4 * 1280, 5 * 1280),))
    audio = np.zeros(9 * 1280, np.float32)
    audio[7 * 1280 : 8 * 1280] = 1.1 * NOISE_RMS
    audio[8 * 1280 :] = 0.9 * NOISE_RMS
    nothing, noise, speech = Presence
    expected = [nothing, nothing, speech, speech, nothing, speech, nothing, noise, nothing]
    assert lay_presence(Timeline(9, (turn,), ()), audio).tolist() == expected
