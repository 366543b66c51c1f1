"""What enters and leaves the backbone: the embeddings of the three channels, their sum, and the heads."""

from __future__ import annotations

import functools
from typing import Literal

import torch
from torch import Tensor, nn

from codec.linear import Linear, Product
from duplex.config import ModelConfig
from duplex.vocab import MAX_CHARS, Vocab


def level_basis(levels: tuple[int, ...]) -> list[int]:
    """Place value of every FSQ dimension: code = sum(digit_i * basis_i), as in vector-quantize-pytorch."""
    basis = [1]
    for level in levels[:-1]:
        basis.append(basis[-1] * level)
    return basis


@functools.cache
def _constant(values: tuple[int, ...], device: torch.device) -> Tensor:
    """`values` on a device, sent there once: a step copies nothing from the host."""
    with torch.inference_mode(False):
        return torch.tensor(values, device=device)


class TextEmbedding(nn.Module):
    """A token's vector plus the vectors of its characters, by place."""

    char_ids: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.backbone.width
        self.token = nn.Embedding(config.vocab_size, width)
        nn.init.normal_(self.token.weight, std=0.02)
        self.char = None
        if config.char_embedding:
            self.char = nn.Embedding(MAX_CHARS * Vocab.num_chars(), width)
            nn.init.normal_(self.char.weight, std=0.02)
            self.register_buffer("char_ids", torch.zeros(config.vocab_size, MAX_CHARS, dtype=torch.long))

    def set_spelling(self, char_ids: Tensor) -> None:
        """Store the spelling of every token, [V, MAX_CHARS] from `Vocab.char_ids`, where characters have vectors."""
        if self.char is not None:
            self.char_ids.copy_(char_ids)

    def forward(self, text: Tensor) -> Tensor:
        """[B, T] -> [B, T, D]."""
        out = self.token(text)
        if self.char is None:
            return out
        chars = self.char_ids[text.reshape(-1)]  # [B * T, MAX_CHARS]
        places = torch.arange(MAX_CHARS, device=text.device) * Vocab.num_chars()
        rows = torch.where(chars > 0, chars + places, 0)  # row 0, "no character" at place 0, counts as padding
        return out + nn.functional.embedding_bag(rows, self.char.weight, mode="sum", padding_idx=0).view_as(out)


class CodeEmbedding(nn.Module):
    """Sum over codebooks of a vector per FSQ level, and of a free vector per code where configured."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width = config.backbone.width
        self.levels, self.basis = config.levels, level_basis(config.levels)
        self.num_codes = self.basis[-1] * config.levels[-1]
        self.level = nn.Embedding(1 + config.num_codebooks * config.num_levels, width)  # row 0 is "unknown"
        self.table = nn.Embedding(1 + config.num_codebooks * self.num_codes, width) if config.code_table else None
        self.start_anew("normal")

    def start_anew(self, values: Literal["zero", "normal"]) -> None:
        """Forget what was learned: vectors at zero (the paper, section 3), or small and random."""
        scale = 1.0 if values == "normal" else 0.0
        nn.init.normal_(self.level.weight, std=0.02 * scale)
        if self.table is not None:
            nn.init.normal_(self.table.weight, std=0.01 * scale)

    def forward(self, codes: Tensor) -> Tensor:
        """[B, T, K] -> [B, T, D]; a code of -1 adds nothing."""
        flat = codes.reshape(-1, codes.shape[-1])  # [N, K]
        known = flat >= 0
        book = torch.arange(codes.shape[-1], device=codes.device)
        starts = _constant(tuple(sum(self.levels[:i]) for i in range(len(self.levels))), codes.device)
        rows = 1 + code_digits(flat.clamp_min(0), self.levels) + starts + (book * sum(self.levels))[:, None]  # [N, K, L]
        rows = torch.where(known[..., None], rows, 0).flatten(1)
        out = nn.functional.embedding_bag(rows, self.level.weight, mode="sum", padding_idx=0)
        if self.table is not None:
            rows = torch.where(known, 1 + flat + book * self.num_codes, 0)
            out = out + nn.functional.embedding_bag(rows, self.table.weight, mode="sum", padding_idx=0)
        return out.view(*codes.shape[:-1], -1)


def code_digits(codes: Tensor, levels: tuple[int, ...]) -> Tensor:
    """Codes [..., K] -> FSQ digits [..., K, L]."""
    return codes[..., None] // _constant(tuple(level_basis(levels)), codes.device) % _constant(tuple(levels), codes.device)


def digits_to_codes(digits: Tensor, levels: tuple[int, ...]) -> Tensor:
    """FSQ digits [..., K, L] -> codes [..., K]."""
    return (digits * _constant(tuple(level_basis(levels)), digits.device)).sum(-1)


class Fusion(nn.Module):
    """The one place where channels are summed, in this order:

    x_t = E_text[text_t] + sum_k E_k[codes_{t-1}^k] + w * user_t + v * heard_t
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.text = TextEmbedding(config)
        self.codes = CodeEmbedding(config)
        self.user_weight = nn.Parameter(torch.tensor(config.user_weight))
        self.heard_weight = nn.Parameter(torch.tensor(config.heard_weight)) if config.heard_channel else None

    def forward(self, user: Tensor | None, heard: Tensor | None, text: Tensor, previous_codes: Tensor) -> Tensor:
        """user and heard [B, T, D] (None: no such channel), text [B, T], previous_codes [B, T, K] -> [B, T, D]."""
        x = self.text(text) + self.codes(previous_codes)
        if user is not None:
            x = x + self.user_weight * user
        return x if heard is None else x + self.heard_weight * heard


class Heads(nn.Module):
    """Text logits, and for each codebook independent logits of every FSQ digit, all from the same hidden state."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.levels, self.num_codebooks = config.levels, config.num_codebooks
        self.text = Linear(config.backbone.width, config.vocab_size, bias=False)
        self.level = Linear(config.backbone.width, config.num_codebooks * config.num_levels)
        nn.init.normal_(self.text.weight, std=0.02)
        self._spoken: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._spoken = Product(self.text, backwards=True)

    def text_logits(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, V]."""
        return self.text(hidden)

    def vectors_of(self, text_probs: Tensor) -> Tensor:
        """Expected text head vector of likely tokens, [B, T, V] -> [B, T, D]; special tokens count for nothing.

        In these vectors, to repeat what is heard the backbone only has to carry it to its output.
        """
        weight, first = self.text.weight, Vocab.eos + 1
        words = text_probs[..., first:].to(weight.dtype)
        if self._spoken is not None and self._spoken.ready:
            return self._spoken(nn.functional.pad(words, (first, 0)))
        return words @ weight[first:]

    def level_logits(self, hidden: Tensor) -> Tensor:
        """[B, T, D] -> [B, T, K, sum(levels)]."""
        return self.level(hidden).unflatten(-1, (self.num_codebooks, sum(self.levels)))
