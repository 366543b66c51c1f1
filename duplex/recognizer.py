"""From what the encoder hears to words: the channel of heard words."""

from __future__ import annotations

import math

from torch import Tensor

from codec.linear import Linear
from duplex.backbone import Backbone, BackboneState
from duplex.config import BackboneConfig

CONTEXT_FRAMES = 25
_HEAD_WIDTH = 64


def decoder_shape(width: int, num_layers: int) -> BackboneConfig:
    """Of a recognizer's own layers, as wide as the encoder."""
    heads = width // math.gcd(width, _HEAD_WIDTH)
    ff_width = -(-8 * width // (3 * _HEAD_WIDTH)) * _HEAD_WIDTH
    return BackboneConfig(width, num_layers, heads, heads, ff_width, sink_frames=0, window_frames=CONTEXT_FRAMES)


class Recognizer(Linear):
    """Which token the user has just said, as logits over the agent's vocabulary.

    A head on what the encoder made of a frame and, where it has layers, a decoder between the two over the last CONTEXT_FRAMES (2 s): the
    encoder hears letters, and which word they spell must be gathered from several frames.

    Args:
        width: D_enc.
        vocab_size: V.
        num_layers: Of the decoder; 0 is the head alone.
    """

    def __init__(self, width: int, vocab_size: int, num_layers: int = 0) -> None:
        super().__init__(width, vocab_size)
        self.context: Backbone | None = None
        if num_layers:
            self.context = Backbone(decoder_shape(width, num_layers))

    def init_state(self, batch: int) -> BackboneState:
        """Nothing heard yet."""
        return BackboneState([]) if self.context is None else self.context.init_state(batch)

    def forward(self, encoded: Tensor) -> Tensor:
        """[B, T, D_enc] -> [B, T, V]."""
        return super().forward(encoded if self.context is None else encoded + self.context(encoded))

    def step(self, encoded: Tensor, state: BackboneState) -> Tensor:
        """[B, T, D_enc] -> [B, T, V], going on from `state`."""
        return super().forward(encoded if self.context is None else encoded + self.context.step(encoded, state))
