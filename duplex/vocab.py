"""Text tokens. Every special id lives here."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers
from torch import Tensor

SPECIALS = ("<sil>", "<bos>", "<eos>")
MARKS = ",.!?"  # punctuation
_SPACE = "▁"
_SENTENCE_ENDS = (".", "!", "?")
_CHARS = _SPACE + "abcdefghijklmnopqrstuvwxyz'.,!?"
MAX_CHARS = 12
_UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a decoder makes of some bytes of a character
_MAX_BYTES = 4


class Vocab:
    """Sub-word tokens of the agent's text channel.

    A word is the same token wherever it stands. In a vocabulary that is learned here, punctuation marks are tokens of their own, and the
    capital at the start of a sentence is not part of the word (true-casing); `TextWriter` puts it back. The vocabulary of a language model
    has a decoder of its own, and spells as the language model does.

    Ids: `sil` while the agent has nothing to write, `bos` where its turn begins, `eos` where its speech ends.
    """

    sil, bos, eos = 0, 1, 2

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.true_cased = tokenizer.decoder is None
        self._silent = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
        assert [tokenizer.token_to_id(s) for s in SPECIALS] == [0, 1, 2], "the tokenizer's first ids must be <sil>, <bos>, <eos>"

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Vocab:
        """Learn byte-pair merges from agent texts."""
        sentences = [text.split() for text in texts]
        inside = {word.strip(MARKS) for words in sentences for previous, word in pairwise(words) if not previous.endswith(_SENTENCE_ENDS)}
        tokenizer = Tokenizer(models.BPE())
        marks = pre_tokenizers.Split(Regex(f"[{MARKS}]"), "isolated")
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Metaspace(), marks])
        alphabet = sorted(set(_CHARS + _CHARS.upper()))
        trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=list(SPECIALS), initial_alphabet=alphabet, show_progress=False)
        tokenizer.train_from_iterator((" ".join(_true_case(words, inside.__contains__)) for words in sentences), trainer)
        return cls(tokenizer)

    @classmethod
    def adopt(cls, tokenizer: Tokenizer, specials: tuple[int, int, int]) -> AdoptedVocab:
        """The vocabulary of a language model.

        Args:
            tokenizer: Its byte-pair tokenizer.
            specials: Its ids that become `sil`, `bos` and `eos`; they change places with ids 0, 1 and 2.
        """
        data = json.loads(tokenizer.to_str())
        order = list(range(tokenizer.get_vocab_size()))
        for to, theirs in enumerate(specials):
            at = order.index(theirs)
            order[to], order[at] = order[at], order[to]
        names = {theirs: name for name, theirs in tokenizer.get_vocab().items()} | dict(zip(specials, SPECIALS, strict=True))
        ours = {theirs: to for to, theirs in enumerate(order)}
        flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
        added = {ours[token["id"]]: {**token, "id": ours[token["id"]]} for token in data["added_tokens"]}
        added |= {to: {"id": to, "content": name, **flags} for to, name in enumerate(SPECIALS)}
        model = data["model"]
        model["vocab"] = {names[theirs]: to for to, theirs in enumerate(order)}
        if model["unk_token"] not in model["vocab"]:
            model["unk_token"] = None
        data |= {"added_tokens": [added[i] for i in sorted(added)], "post_processor": None, "truncation": None, "padding": None}
        data["decoder"] = _keep_spaces(data["decoder"])
        if "ByteLevel" in json.dumps(data["pre_tokenizer"]):  # it has no space before the first word of a text
            space = {"type": "Prepend", "prepend": " "}
            data["normalizer"] = {"type": "Sequence", "normalizers": [space, *filter(None, [data["normalizer"]])]}
        return AdoptedVocab(cls(Tokenizer.from_str(json.dumps(data))), tuple(order))

    @classmethod
    def load(cls, path: str | Path) -> Vocab:
        """Read a `tokenizer.json`."""
        return cls(Tokenizer.from_file(str(path)))

    def save(self, path: str | Path) -> None:
        """Write a `tokenizer.json`."""
        self.tokenizer.save(str(path))

    @property
    def size(self) -> int:
        """V, number of ids."""
        return self.tokenizer.get_vocab_size()

    def encode_words(self, text: str) -> list[list[int]]:
        """Token ids of every word of `text`, its punctuation marks included."""
        words = text.split()
        if self.true_cased:
            words = _true_case(words, lambda word: self.tokenizer.token_to_id(_SPACE + word) is not None)
        return [self.tokenizer.encode(word, add_special_tokens=False).ids for word in words]

    def decode(self, ids: Iterable[int]) -> str:
        """Text of ids; special ids are left out, a capital follows each `bos`."""
        writer = TextWriter(self)
        return "".join(map(writer.write, ids)).strip()

    def piece(self, *tokens: int) -> str:
        """Text of adjacent ids with its leading space, as it reads inside a sentence; special ids give an empty string."""
        pieces = [self.tokenizer.id_to_token(token) or "" for token in tokens if token not in self._silent]
        return "".join(pieces).replace(_SPACE, " ") if self.true_cased else self.tokenizer.decoder.decode(pieces)

    def char_ids(self) -> Tensor:
        """[V, MAX_CHARS] spelling of every token, 0 where there is no character; letters are counted without case."""
        table = torch.zeros(self.size, MAX_CHARS, dtype=torch.long)
        for token in range(self.eos + 1, self.size):
            for i, char in enumerate(self.piece(token).replace(" ", _SPACE).lower()[:MAX_CHARS]):
                table[token, i] = _CHARS.find(char) + 1
        return table

    @staticmethod
    def num_chars() -> int:
        """Distinct character ids, the empty one included."""
        return len(_CHARS) + 1


@dataclass(frozen=True)
class AdoptedVocab:
    """A vocabulary of a language model, and for each of its ids the id in the language model."""

    vocab: Vocab
    ids: tuple[int, ...]


class TextWriter:
    """Tokens to running text, with a capital where a sentence or a turn begins; a character comes with the last of its tokens."""

    def __init__(self, vocab: Vocab) -> None:
        self._vocab = vocab
        self._begins = True
        self._held: list[int] = []

    def write(self, token: int) -> str:
        """Text of the next token with its leading space; special ids give an empty string."""
        if not self._vocab.true_cased:
            return self._write_bytes(token)
        self._begins |= token == Vocab.bos
        piece = self._vocab.piece(token)
        if piece and self._begins:
            word = piece.lstrip()
            piece = piece[: len(piece) - len(word)] + word[:1].upper() + word[1:]
            self._begins = not word
        self._begins |= piece.endswith(_SENTENCE_ENDS)
        return piece

    def _write_bytes(self, token: int) -> str:
        self._held.append(token)
        piece = self._vocab.piece(*self._held)
        if piece.endswith(_UNFINISHED) and len(self._held) < _MAX_BYTES and token > Vocab.eos:
            return ""
        self._held.clear()
        return piece


def _keep_spaces(decoder: dict) -> dict:
    """A decoder that does not strip the space before a text, which is the space before any token here."""
    if decoder["type"] != "Sequence":
        return decoder
    return {**decoder, "decoders": [part for part in decoder["decoders"] if part["type"] != "Strip"]}


def _true_case(words: list[str], known: Callable[[str], bool]) -> list[str]:
    """Words as they read inside a sentence: the first of each sentence loses its capital, unless it is known only with it, as names are."""
    cased, begins = [], True
    for word in words:
        bare, lower = word.strip(MARKS), word[:1].lower() + word[1:]
        name = known(bare) and not known(lower.strip(MARKS))
        cased.append(lower if begins and not name and bare != "I" and not bare.startswith("I'") else word)
        begins = word.endswith(_SENTENCE_ENDS)
    return cased


# Characters of the encoder's auxiliary CTC head; 0 is the blank.
CTC_CHARS = " abcdefghijklmnopqrstuvwxyz'"
CTC_SIZE = len(CTC_CHARS) + 1


def ctc_encode(text: str) -> list[int]:
    """Characters of a transcript as CTC ids; others than letters, spaces and apostrophes are dropped."""
    cleaned = " ".join("".join(c for c in text.lower() if c in CTC_CHARS).split())
    return [CTC_CHARS.index(c) + 1 for c in cleaned]


def ctc_decode(ids: Iterable[int]) -> str:
    """Greedy CTC output to text: repeats merged, blanks dropped."""
    text, last = "", 0
    for i in ids:
        if i != last and i:
            text += CTC_CHARS[i - 1]
        last = i
    return " ".join(text.split())
