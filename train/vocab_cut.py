"""A language model with only the tokens that spoken text needs: most of a small model's weights are its vocabulary."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

import torch
from tokenizers import Tokenizer

from duplex.vocab import SPECIALS, Vocab
from train.language_model import EMBEDDING, HEAD, LanguageModel

_ALPHABET = re.compile(r".|<0x[0-9A-F]{2}>", re.DOTALL)  # characters and bytes, so that any text can still be written


def cut_vocab(language: LanguageModel, texts: Iterable[str]) -> LanguageModel:
    """Keep the tokens that occur in `texts`, those they are merged from, and single characters or bytes.

    Words of `texts` stay the same tokens as before; other words may be written in more and shorter ones. Weights of kept tokens stay.
    """
    tokenizer = language.vocab.tokenizer
    data = json.loads(tokenizer.to_str())
    ids: dict[str, int] = data["model"]["vocab"]
    pairs = [tuple(pair.split(" ")) if isinstance(pair, str) else tuple(pair) for pair in data["model"]["merges"]]
    names = {at: name for name, at in ids.items()}
    words = {word for text in texts for word in text.split()}
    kept = {names[token] for word in words for part in language.vocab.encode_words(word) for token in part}
    kept |= {name for name in ids if _ALPHABET.fullmatch(name)} | set(SPECIALS)
    for left, right in reversed(pairs):  # a token's parts are merged before it
        if left + right in kept:
            kept |= {left, right}
    order = sorted(ids[name] for name in kept)
    places = {names[old]: new for new, old in enumerate(order)}
    data["model"]["vocab"] = places
    data["model"]["merges"] = [list(pair) for pair in pairs if pair[0] + pair[1] in kept and set(pair) <= kept]
    data["added_tokens"] = [{**token, "id": places[token["content"]]} for token in data["added_tokens"] if token["content"] in kept]
    rows = torch.tensor(order)
    tensors = language.tensors | {name: language.tensors[name][rows] for name in (EMBEDDING, HEAD)}
    return LanguageModel(language.config, Vocab(Tokenizer.from_str(json.dumps(data))), tensors)
