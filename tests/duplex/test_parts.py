"""Clock, vocabulary, channels and sampling."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vector_quantize_pytorch import FSQ

from duplex.channels import CodeEmbedding, TextEmbedding, code_digits, digits_to_codes
from duplex.clock import FrameClock
from duplex.generate import converse
from duplex.model import DuplexModel
from duplex.sampling import Sampling, sample_codes, sample_text
from duplex.vocab import CTC_CHARS, MAX_CHARS, TextWriter, Vocab, ctc_decode, ctc_encode
from tests.duplex.test_streaming import TINY, noise

TEXTS = ["Two plus two is four.", "The capital of France is Paris.", "Sorry, I don't know that.", "Hello there, how can I help you?"]


@pytest.fixture(scope="module")
def vocab() -> Vocab:
    return Vocab.train(TEXTS * 3, 120)


def test_clock_counts_samples() -> None:
    clock = FrameClock()
    assert (clock.input_samples, clock.output_samples, clock.seconds(25)) == (1280, 1920, 2.0)
    assert [clock.frames_of_input(n) for n in (0, 1, 1280, 1281)] == [0, 1, 1, 2]
    assert FrameClock(output_hz=22050).output_samples == 1764
    with pytest.raises(AssertionError, match="8001"):
        FrameClock(input_hz=8001)


def test_special_ids(vocab: Vocab) -> None:
    assert [vocab.tokenizer.token_to_id(s) for s in ("<sil>", "<bos>", "<eos>")] == [Vocab.sil, Vocab.bos, Vocab.eos]


@pytest.mark.parametrize("text", [*TEXTS, "Zebras quiz jolly foxes, don't they?", "Stop! I'm Paris. I know, Paris", "A"])
def test_words_come_back(vocab: Vocab, text: str) -> None:
    words = vocab.encode_words(text)
    assert len(words) == len(text.split()) and all(words)
    ids = [i for word in words for i in word]
    assert min(ids) > Vocab.eos
    assert vocab.decode([Vocab.bos, *ids, Vocab.sil, Vocab.eos]) == text
    writer = TextWriter(vocab)
    assert "".join(writer.write(i) for i in [Vocab.bos, *ids, Vocab.eos]).strip() == text
    assert vocab.piece(words[0][0]).startswith(" ") and vocab.piece(Vocab.bos) == ""


def test_a_word_is_the_same_token_wherever_it_stands() -> None:
    vocab = Vocab.train(["Apple, table. The capital is Paris.", "Paris, apple and table, the apple, I see."] * 5, 200)
    apple, table, paris, comma = (vocab.tokenizer.token_to_id(t) for t in ("▁apple", "▁table", "▁Paris", ","))
    assert vocab.encode_words("Apple, table, apple. Table Paris, apple") == [
        [apple, comma], [table, comma], [apple, vocab.tokenizer.token_to_id(".")], [table], [paris, comma], [apple]
    ]  # fmt: skip
    assert vocab.encode_words("Paris, apple") == [[paris, comma], [apple]]


def test_a_turn_begins_with_a_capital_after_one_that_was_cut_off(vocab: Vocab) -> None:
    writer = TextWriter(vocab)
    tokens = [Vocab.bos, *vocab.encode_words("It is")[0], Vocab.eos, Vocab.sil, Vocab.bos, *vocab.encode_words("It")[0]]
    assert "".join(writer.write(t) for t in tokens) == " It It"


def test_vocabulary_is_learnt_and_saved(vocab: Vocab, tmp_path: Path) -> None:
    assert vocab.size == 120
    assert len(vocab.encode_words("plus")[0]) < 5  # merges
    vocab.save(tmp_path / "tokenizer.json")
    again = Vocab.load(tmp_path / "tokenizer.json")
    assert again.encode_words(TEXTS[1]) == vocab.encode_words(TEXTS[1]) and torch.equal(again.char_ids(), vocab.char_ids())


def test_spelling_is_without_case_and_places_count(vocab: Vocab) -> None:
    table = vocab.char_ids()
    assert table.shape == (vocab.size, MAX_CHARS) and not table[: Vocab.eos + 1].any() and int(table.max()) < Vocab.num_chars()
    upper, lower = (vocab.tokenizer.token_to_id(c) for c in "Aa")
    assert torch.equal(table[upper], table[lower]) and table[lower].count_nonzero() == 1
    spelled = {tuple(row.tolist()) for row in table[Vocab.eos + 1 :]}
    assert len(spelled) > 0.7 * (vocab.size - 3)


def test_text_embedding_adds_the_letters() -> None:
    torch.manual_seed(0)
    embedding = TextEmbedding(TINY)
    spelling = torch.zeros(40, MAX_CHARS, dtype=torch.long)
    spelling[5, :2] = torch.tensor([3, 4])
    spelling[6, :2] = torch.tensor([4, 3])
    embedding.set_spelling(spelling)
    out = embedding(torch.tensor([[5, 6, 7]]))[0] - embedding.token.weight[5:8]
    assert embedding.char is not None
    rows = embedding.char.weight
    assert torch.allclose(out[0], rows[3] + rows[Vocab.num_chars() + 4], atol=1e-6)
    assert not torch.allclose(out[0], out[1], atol=1e-3) and torch.equal(out[2], torch.zeros(16))


@given(st.text(max_size=40))
def test_ctc_ids_are_in_range_and_come_back(text: str) -> None:
    ids = ctc_encode(text)
    assert all(1 <= i <= len(CTC_CHARS) for i in ids)
    spaced = [x for i in ids for x in (i, 0)]
    assert ctc_encode(ctc_decode(spaced)) == ids


def test_ctc_text() -> None:
    assert ctc_encode("A b!") == [2, 1, 3]
    h, e, ell, o = (ctc_encode(c)[0] for c in "helo")
    assert ctc_decode([0, h, h, e, ell, 0, ell, ell, o, 0, 0]) == "hello" and ctc_decode([ell, ell]) == "l"
    assert ctc_decode(ctc_encode("Don't stop, me") + [0, 1, 0, 1]) == "don't stop me"


@pytest.mark.parametrize("levels", [(8, 6, 5, 5), (4, 3), (9, 8, 8, 7)])
def test_digits_are_those_of_fsq(levels: tuple[int, ...]) -> None:
    fsq = FSQ(levels=list(levels), dim=2 * len(levels), num_codebooks=2)
    size = int(torch.tensor(levels).prod())
    codes = torch.stack([torch.arange(size), torch.arange(size).flip(0)], -1)  # [C, 2]
    digits = code_digits(codes, levels)
    assert torch.equal(digits_to_codes(digits, levels), codes)
    values = fsq.indices_to_codes(codes[None])[0].unflatten(-1, (2, len(levels)))
    half = torch.tensor(levels) // 2
    assert torch.allclose(values, (digits - half) / half, atol=1e-6)


def test_code_embedding_sums_levels_and_table() -> None:
    torch.manual_seed(0)
    embedding = CodeEmbedding(TINY)
    level, table = embedding.level.weight, embedding.table.weight
    code = 2 + 4 * 1  # digits 2 and 1
    out = embedding(torch.tensor([[[-1, -1], [code, -1], [-1, code]]]))[0]
    assert torch.equal(out[0], torch.zeros(16))
    assert torch.allclose(out[1], level[1 + 2] + level[1 + 4 + 1] + table[1 + code], atol=1e-6)
    assert torch.allclose(out[2], level[1 + 7 + 2] + level[1 + 7 + 4 + 1] + table[1 + 12 + code], atol=1e-6)


def test_text_is_greedy_unless_heated() -> None:
    logits = noise(64, 10)
    assert torch.equal(sample_text(logits, Sampling()), logits.argmax(-1))
    hot = Sampling(text_temperature=2.0)
    draws = [sample_text(logits, hot, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    assert torch.equal(sample_text(logits, Sampling(text_temperature=1e-4), torch.Generator().manual_seed(0)), logits.argmax(-1))


def test_top_p_keeps_the_likely() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log().expand(400, -1)
    generator = torch.Generator().manual_seed(0)
    kept = {p: set(sample_text(logits, Sampling(1.0, p), generator).tolist()) for p in (0.4, 0.7, 1.0)}
    assert kept == {0.4: {0}, 0.7: {0, 1}, 1.0: {0, 1, 2, 3}}


def test_numbers_drawn_before_give_the_same_tokens_and_shares() -> None:
    probs = torch.tensor([0.5, 0.0, 0.3, 0.2])
    logits = probs.log().expand(4000, -1)
    uniforms = torch.rand(4000, generator=torch.Generator().manual_seed(0))
    tokens = sample_text(logits, Sampling(1.0), uniforms=uniforms)
    assert torch.allclose(tokens.bincount(minlength=4) / 4000, probs, atol=0.03) and not (tokens == 1).any()
    assert torch.equal(sample_text(logits[:7], Sampling(1.0), uniforms=uniforms[:7]), tokens[:7])
    ends = sample_text(logits[:2], Sampling(1.0), uniforms=torch.tensor([0.0, 1 - 2**-24]))
    assert ends.tolist() == [0, 3]
    assert set(sample_text(logits, Sampling(1.0, 0.7), uniforms=uniforms).tolist()) == {0, 2}
    levels, spread = torch.zeros(2000, 2, 7), torch.rand(2000, 2, 2, generator=torch.Generator().manual_seed(1))
    codes = sample_codes(levels, (4, 3), Sampling(code_temperature=1.0), uniforms=spread)
    assert torch.allclose(codes.flatten().bincount(minlength=12) / 4000, torch.full((12,), 1 / 12), atol=0.02)
    assert torch.equal(codes % 4, (spread[..., 0] * 4).long()) and torch.equal(codes // 4, (spread[..., 1] * 3).long())


def test_codes_take_the_likeliest_the_mean_or_a_draw() -> None:
    levels = (4, 3)
    logits = torch.full((1, 2, 7), -9.0)
    logits[0, 0, [1, 4 + 2]] = 5.0  # digits 1 and 2
    logits[0, 1, [0, 3]] = torch.tensor([5.0, 4.9])  # between 0 and 3
    logits[0, 1, 4] = 5.0
    assert sample_codes(logits, levels, Sampling()).tolist() == [[1 + 4 * 2, 0]]
    assert sample_codes(logits, levels, Sampling(code_mean=True)).tolist() == [[9, 1]]
    draws = {
        tuple(sample_codes(logits, levels, Sampling(code_temperature=1.0), torch.Generator().manual_seed(s))[0].tolist()) for s in range(30)
    }
    assert draws == {(9, 0), (9, 3)}
    again = [sample_codes(noise(3, 2, 7), levels, Sampling(code_temperature=1.0), torch.Generator().manual_seed(4)) for _ in range(2)]
    assert torch.equal(*again)


def test_converse_is_a_loop_of_steps() -> None:
    torch.manual_seed(0)
    model, audio = DuplexModel(TINY).eval(), 0.2 * noise(2, 5 * 1280)
    tokens = converse(model, audio)
    state = model.init_state(2)
    steps = [model.step(frame, state) for frame in audio.split(1280, 1)]
    assert torch.equal(tokens.text, torch.stack([s.text for s in steps], 1)) and torch.equal(
        tokens.codes, torch.stack([s.codes for s in steps], 1)
    )
    forced = torch.full((2, 5), 7)
    assert torch.equal(converse(model, audio, forced_text=forced).text, forced)
    with pytest.raises(AssertionError, match="not whole frames"):
        converse(model, audio[:, :-1])
