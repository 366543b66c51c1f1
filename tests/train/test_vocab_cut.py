"""A language model with fewer tokens is the same one to whoever says only those."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from duplex.errors import UserError
from duplex.vocab import Vocab
from tests.train.conftest import TinyBank
from tests.train.test_language_model import byte_level, duplex_from, save_llama, save_tokenizer, sentence_piece
from train.importing import main, read_texts
from train.language_model import LanguageModel, load_language_model, read_language_model
from train.vocab_cut import cut_vocab

SPOKEN = ["Hello there, how can I help you?", "The capital of France is Paris."]


def pieces(language: LanguageModel, text: str) -> list[str]:
    return [language.vocab.tokenizer.id_to_token(i) for word in language.vocab.encode_words(text) for i in word]


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_spoken_words_keep_their_tokens_and_their_vectors(tmp_path: Path, kind) -> None:
    save_llama(tmp_path, save_tokenizer(tmp_path, kind()))
    whole = read_language_model(str(tmp_path))
    cut = cut_vocab(whole, SPOKEN)
    assert 3 < cut.vocab.size < whole.vocab.size and cut.config == whole.config
    assert [cut.vocab.tokenizer.token_to_id(s) for s in ("<sil>", "<bos>", "<eos>")] == [0, 1, 2]
    words = [word for text in SPOKEN for word in text.split()]
    for _ in range(20):
        text = " ".join(random.Random(0).sample(words, 4))
        assert pieces(cut, text) == pieces(whole, text)
    ids = [[i for word in language.vocab.encode_words(SPOKEN[1]) for i in word] for language in (cut, whole)]
    codes = torch.zeros(1, len(ids[0]), 4, dtype=torch.long)
    ours, theirs = (duplex_from(language)(torch.tensor([i]), codes).logits.text[0] for language, i in zip((cut, whole), ids, strict=True))
    torch.testing.assert_close(ours[:, ids[0]], theirs[:, ids[1]], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", [byte_level, sentence_piece])
def test_what_was_never_said_can_still_be_written(tmp_path: Path, kind) -> None:
    save_llama(tmp_path, save_tokenizer(tmp_path, kind()))
    whole = read_language_model(str(tmp_path))
    cut = cut_vocab(whole, ["Hello"])
    for text in ("naïve Zoë plays", "Two 🙂"):
        assert cut.vocab.decode([i for word in cut.vocab.encode_words(text) for i in word]) == text
        assert len(pieces(cut, text)) >= len(pieces(whole, text))


def test_the_command_takes_parts_of_the_bank_and_text_files(tmp_path: Path, bank: TinyBank, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "llama").mkdir()
    save_llama(tmp_path / "llama", save_tokenizer(tmp_path / "llama", byte_level()))
    (tmp_path / "said.txt").write_text("The capital\nof France\n")
    assert read_texts(tmp_path / "said.txt") == ["The capital", "of France"]
    heard = read_texts(bank.folder / "user")
    assert heard and all(isinstance(text, str) and text for text in heard)
    main([str(tmp_path / "llama"), str(tmp_path / "ours"), "--tokens-of", str(tmp_path / "said.txt"), str(bank.folder / "agent")])
    cut, whole = load_language_model(tmp_path / "ours"), read_language_model(str(tmp_path / "llama"))
    assert f"{cut.vocab.size} tokens" in capsys.readouterr().out and cut.vocab.size < whole.vocab.size
    assert pieces(cut, "The capital of France") == pieces(whole, "The capital of France")
    with pytest.raises(UserError, match="is neither a bank part nor a text file"):
        main([str(tmp_path / "llama"), str(tmp_path / "more"), "--tokens-of", str(tmp_path / "nowhere")])
    with pytest.raises(UserError, match="--tokens-of is of language models, and .* is a nemo; leave it out"):
        main(["x.nemo", str(tmp_path / "more"), "--tokens-of", str(tmp_path / "said.txt")])
    assert not (tmp_path / "more").exists()


def test_special_tokens_stay_special(tmp_path: Path) -> None:
    save_llama(tmp_path, save_tokenizer(tmp_path, byte_level(), specials_first=False))
    cut = cut_vocab(read_language_model(str(tmp_path)), SPOKEN)
    assert cut.vocab.decode([Vocab.bos, *[i for word in cut.vocab.encode_words("Hello there") for i in word], Vocab.eos]) == "Hello there"
