"""What the user said after the word that the agent has just written: a finger on the line, for repeating.

A language model repeats by finding its last token further up and copying what followed it there. Here silence lies between words in both
channels, so that finding takes several layers, and a small backbone does not learn it. This finds instead:

    user    say  . silver  .  . seven  . paper  .  .  .   .    .      .
    agent    .   .   .     .  .   .    .   .    .  . BOS  .  silver   .   .   .
    before       .  say    .  . silver .  seven .  .  .   .    .      .   .   .      of a word as it is heard, the one before it
    next     .   .   .     .  .   .    .   .    .  .  .   .  seven  seven seven ...  of the word written last, the one heard after it
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from codec.linear import Linear
from duplex.vocab import Vocab

MEMORY_TOKENS = 64
_GATE_SCALE = 10.0  # so that it opens within some hundred steps


@dataclass(frozen=True)
class Recalled:
    """[B, T] token ids, `sil` where there is none."""

    before: Tensor
    next: Tensor


@dataclass
class RecallState:
    """What a row remembers: [B, MEMORY_TOKENS] tokens heard, the newest last; [B] the one of the last frame; [B, 2] the last two written.

    `sil` stands where there is none.
    """

    tokens: Tensor
    frame: Tensor
    written: Tensor

    def reset(self, rows: Tensor) -> None:
        """Start rows afresh; `rows` is a boolean mask [B]."""
        self.tokens.masked_fill_(rows[:, None], Vocab.sil)
        self.frame.masked_fill_(rows, Vocab.sil)
        self.written.masked_fill_(rows[:, None], Vocab.sil)


def init_recall(batch: int, device: torch.device) -> RecallState:
    """Fresh rows."""
    shapes = ((batch, MEMORY_TOKENS), (batch,), (batch, 2))
    return RecallState(*(torch.full(shape, Vocab.sil, dtype=torch.long, device=device) for shape in shapes))


class Recall(nn.Module):
    """Finds `before` and `next`. The backbone reads both, as mapped vectors of the text head, and has a gate by which `next` is written."""

    is_word: Tensor

    def __init__(self, width: int, vocab_size: int) -> None:
        super().__init__()
        self.before, self.next = (Linear(width, width, bias=False) for _ in range(2))
        nn.init.normal_(self.before.weight, std=0.1)  # as long as the other channels' vectors: shorter ones go unnoticed
        nn.init.eye_(self.next.weight)
        with torch.no_grad():
            self.next.weight.mul_(2.0)
        self.gate = Linear(width, 1)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)
        self.register_buffer("is_word", torch.arange(vocab_size) > Vocab.eos)

    def set_spelling(self, char_ids: Tensor) -> None:
        """Learn which tokens are punctuation, from [V, MAX_CHARS] of `Vocab.char_ids`: it lies between words, and is none."""
        marks = torch.tensor((0, *Vocab.mark_chars()), device=char_ids.device)
        self.is_word.copy_(~torch.isin(char_ids, marks).all(1))

    @torch.no_grad()
    def find(self, heard: Tensor, text: Tensor, state: RecallState) -> Recalled:
        """heard [B, T, V] and text [B, T] as the backbone reads them; moves the state on."""
        words = heard[..., Vocab.eos + 1 :]
        tokens = torch.where(words.sum(-1) > 0.5, words.argmax(-1) + Vocab.eos + 1, Vocab.sil)  # [B, T]
        found = [self._find(token, said, state) for token, said in zip(tokens.unbind(1), text.unbind(1), strict=True)]
        return Recalled(*(torch.stack(ids, 1) for ids in zip(*found, strict=True)))

    def forward(self, recalled: Recalled, vectors: Tensor) -> Tensor:
        """What the backbone reads of it, [B, T, D]; `vectors` [V, D] are those of the text head."""
        parts = ((self.before, recalled.before), (self.next, recalled.next))
        before, after = (layer(vectors[ids]) * (ids != Vocab.sil)[..., None] for layer, ids in parts)
        return before + after

    def write(self, logits: Tensor, hidden: Tensor, recalled: Recalled) -> Tensor:
        """Text logits [B, T, V] with the gate, of hidden [B, T, D], added to that of `next`."""
        gate = _GATE_SCALE * self.gate(hidden) * (recalled.next != Vocab.sil)[..., None]
        return logits.scatter_add(-1, recalled.next[..., None], gate.to(logits.dtype))

    def _find(self, token: Tensor, said: Tensor, state: RecallState) -> tuple[Tensor, Tensor]:
        """One frame: [B] the token heard or `sil`, [B] the token written -> [B] before and [B] next, `sil` where there is none."""
        new = (token != state.frame) & (token != Vocab.sil)  # a word may be named in two frames
        before = torch.where(new, state.tokens[:, -1], state.tokens[:, -2]).masked_fill(token == Vocab.sil, Vocab.sil)
        state.tokens.copy_(torch.where(new[:, None], torch.cat([state.tokens[:, 1:], token[:, None]], 1), state.tokens))
        state.frame.copy_(token)
        written = torch.where(self.is_word[said][:, None], torch.stack([state.written[:, 1], said], 1), state.written)
        state.written.copy_(written.masked_fill(((said == Vocab.bos) | (said == Vocab.eos))[:, None], Vocab.sil))

        earlier, last = state.written[:, :1], state.written[:, 1:]
        nothing = torch.full_like(last, Vocab.sil)
        hit = (state.tokens == last) & (last != Vocab.sil)
        twice = hit & (earlier != Vocab.sil) & (torch.cat([nothing, state.tokens[:, :-1]], 1) == earlier)
        # the newest of the hits, of those first where the word before fits as well
        newest = torch.arange(MEMORY_TOKENS, device=token.device)
        at = (newest + MEMORY_TOKENS * (hit.long() + twice.long())).argmax(1, keepdim=True)
        after = torch.cat([state.tokens[:, 1:], nothing], 1).gather(1, at)
        return before, torch.where(hit.gather(1, at), after, nothing)[:, 0]
