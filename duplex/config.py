"""Shapes of the model. Presets are values of these; a checkpoint's `config.yaml` holds one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True)
class FastConformerConfig:
    """Causal FastConformer over log-mel frames.

    Attributes:
        num_mels: Mel bands.
        subsample_width, subsample_blocks: Causal convolution blocks at 25 Hz.
        width, num_layers, num_heads, ff_mult, conv_kernel: Conformer layers at 12.5 Hz.
        window_frames: How many frames a layer attends back.
        ctc_per_frame: Characters the auxiliary CTC head may write a frame.
        kind: Which encoder this is the shape of.
    """

    num_mels: int = 80
    subsample_width: int = 256
    subsample_blocks: int = 4
    width: int = 256
    num_layers: int = 5
    num_heads: int = 4
    ff_mult: int = 2
    conv_kernel: int = 5
    window_frames: int = 40
    ctc_per_frame: int = 2
    kind: Literal["fastconformer"] = "fastconformer"


@dataclass(frozen=True)
class WhisperConfig:
    """Whisper's encoder made causal; the defaults are the shape of whisper-tiny.en.

    Attributes:
        num_mels: Mel bands.
        token_width, num_layers, num_heads, ff_width: Transformer layers at 50 Hz.
        window_tokens: How many tokens of 20 ms a layer attends back.
        width: Of the vector that stands for the four tokens of a frame.
        ctc_per_frame: Characters the auxiliary CTC head may write a frame.
        kind: Which encoder this is the shape of.
    """

    num_mels: int = 80
    token_width: int = 384
    num_layers: int = 4
    num_heads: int = 6
    ff_width: int = 1536
    window_tokens: int = 128
    width: int = 384
    ctc_per_frame: int = 2
    kind: Literal["whisper"] = "whisper"


@dataclass(frozen=True)
class CacheAwareConfig:
    """NVIDIA's cache-aware streaming FastConformer; the defaults are `stt_en_fastconformer_hybrid_large_streaming_80ms`.

    Attributes:
        num_mels: Mel bands.
        subsample_width: Channels of the convolutions that subsample eight-fold.
        width, num_layers, num_heads, ff_mult, conv_kernel: Conformer layers at 12.5 Hz.
        left_frames: How many frames before its chunk a frame attends to; whole chunks.
        right_frames: Look-ahead; frames are encoded in chunks of one more.
        bias: Whether layers have biases.
        scale_input: Multiply what enters the layers by the square root of `width`.
        ctc_per_frame: Characters the auxiliary CTC head may write a frame.
        kind: Which encoder this is the shape of.
    """

    num_mels: int = 80
    subsample_width: int = 256
    width: int = 512
    num_layers: int = 17
    num_heads: int = 8
    ff_mult: int = 4
    conv_kernel: int = 9
    left_frames: int = 70
    right_frames: int = 1
    bias: bool = True
    scale_input: bool = True
    ctc_per_frame: int = 2
    kind: Literal["cache_aware"] = "cache_aware"


EncoderConfig = FastConformerConfig | WhisperConfig | CacheAwareConfig
ENCODER_CONFIGS: dict[str, type[EncoderConfig]] = {
    "fastconformer": FastConformerConfig,
    "whisper": WhisperConfig,
    "cache_aware": CacheAwareConfig,
}


@dataclass(frozen=True)
class RopeScaling:
    """How Llama 3 slows the slow part of its rotary embedding down, to reach further than it was trained.

    Attributes:
        factor: By which waves longer than `original_positions / low_frequency` are slowed; 1 changes nothing.
        low_frequency, high_frequency: Waves shorter than `original_positions / high_frequency` stay; those between are blended.
        original_positions: The reach before.
    """

    factor: float
    low_frequency: float
    high_frequency: float
    original_positions: int


@dataclass(frozen=True)
class BackboneConfig:
    """Llama-architecture decoder.

    Attributes:
        width, num_layers, num_heads, num_kv_heads, ff_width: As in Llama.
        rope_theta: Base of the rotary embedding.
        sink_frames: First frames that are always attended to.
        window_frames: How many further frames are attended to, the newest included.
        head_width: Of one head; 0 is width / num_heads.
        norm_eps: Of every RMSNorm.
        rope_factor, rope_low_frequency, rope_high_frequency, rope_original_positions: See `RopeScaling`.
    """

    width: int = 320
    num_layers: int = 7
    num_heads: int = 5
    num_kv_heads: int = 5
    ff_width: int = 896
    rope_theta: float = 10000.0
    sink_frames: int = 4
    window_frames: int = 200
    head_width: int = 0
    norm_eps: float = 1e-5
    rope_factor: float = 1.0
    rope_low_frequency: float = 1.0
    rope_high_frequency: float = 4.0
    rope_original_positions: int = 8192

    @property
    def rope_scaling(self) -> RopeScaling:
        """The `rope_` settings in one."""
        return RopeScaling(self.rope_factor, self.rope_low_frequency, self.rope_high_frequency, self.rope_original_positions)


@dataclass(frozen=True)
class ModelConfig:
    """The whole model; the defaults are the shape of `pocket`.

    Attributes:
        encoder, backbone: Their shapes.
        vocab_size: V, text tokens.
        num_codebooks, levels: K and the FSQ levels of the codec it speaks through.
        code_table: Add a free embedding per code to the sum of its levels' embeddings.
        char_embedding: Add the embeddings of a token's characters to its own.
        heard_channel: Let the backbone also read which words the encoder recognizes, as the vectors of the text head that would say them.
        recognizer_layers: Of the decoder that gathers those words from the encoder's output; 0 is a head alone, see `Recognizer`.
        presence_head: Also tell from the encoder's output whether a frame holds speech (`duplex.model.Presence`).
        user_weight, heard_weight: Starting values of the learned weights of what is heard, as sound and as words.
        silence_codes: The codec's own silence, K codes; the code channel before the first frame.
    """

    encoder: EncoderConfig = field(default_factory=WhisperConfig)
    backbone: BackboneConfig = field(default_factory=BackboneConfig)
    vocab_size: int = 1000
    num_codebooks: int = 4
    levels: tuple[int, ...] = (8, 6, 5, 5)
    code_table: bool = True
    char_embedding: bool = True
    heard_channel: bool = True
    recognizer_layers: int = 0
    presence_head: bool = False
    user_weight: float = 1.0
    heard_weight: float = 1.0
    silence_codes: tuple[int, ...] = (0, 0, 0, 0)

    @property
    def num_levels(self) -> int:
        """Level logits a codebook: the sum of `levels`."""
        return sum(self.levels)
