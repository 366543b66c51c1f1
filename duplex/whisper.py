"""Whisper's speech encoder (Radford et al. 2022) made causal: log-mel to one vector each 80 ms, with no look-ahead and no end.

Module names and shapes are those of Whisper in `transformers`, so that its weights load. What differs: windows of the mel end
with their hop; both convolutions see the past only; a token of 20 ms attends to its own frame of 80 ms and to the
`window_tokens` before; positions go on for ever, with the sinusoids that are slower than Whisper's 30 s held still; the four tokens
of a frame are stacked into one vector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor, nn

from codec.linear import Linear, Product
from codec.mel import LogMel, MelState, slaney_filters
from duplex.clock import FrameClock
from duplex.config import WhisperConfig
from duplex.encoder import Encoder
from duplex.vocab import CTC_SIZE

TOKENS_PER_FRAME = 4
_HOPS = 8  # mel frames a model frame
_MEL_FLOOR = 1e-7
_WHISPER_POSITIONS = 1500
_SLOWEST_BASE = 10000.0


def whisper_mel(num_mels: int) -> LogMel:
    """The spectrum that Whisper reads, before `scale_mel`; each window ends with its hop."""
    clock, fft = FrameClock(), 400
    filters = slaney_filters(fft // 2 + 1, clock.input_hz, num_mels)
    return LogMel(clock.input_hz, fft, clock.input_samples // _HOPS, num_mels, _MEL_FLOOR, filters)


def scale_mel(log_mel: Tensor) -> Tensor:
    """Whisper's scale: (log10 + 4) / 4."""
    return log_mel / (4 * math.log(10.0)) + 1.0


def position_sinusoids(positions: Tensor, width: int) -> Tensor:
    """Whisper's sinusoids at positions [B, T] -> [B, T, width]; those with a period above 30 s stay at their value of 15 s."""
    half = width // 2
    speed = torch.exp(-math.log(_SLOWEST_BASE) / (half - 1) * torch.arange(half, device=positions.device, dtype=torch.float64))
    slow = 2 * math.pi / speed > _WHISPER_POSITIONS
    angle = torch.where(slow, _WHISPER_POSITIONS / 2, positions[..., None].double()) * speed  # exact for any session length
    return torch.cat([angle.sin(), angle.cos()], -1).float()


@dataclass
class TokenRing:
    """Keys and values of the newest `window_tokens` tokens, oldest first."""

    keys: Tensor  # [B, H, window, d]
    values: Tensor  # [B, H, window, d]
    seen: Tensor  # [B] tokens since the row began

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.keys.masked_fill_(rows[:, None, None, None], 0.0)
        self.values.masked_fill_(rows[:, None, None, None], 0.0)
        self.seen.masked_fill_(rows, 0)


class WindowAttention(nn.Module):
    """Attention of each token to its own frame and to the `window` tokens before it, computed in blocks of `window` queries."""

    def __init__(self, width: int, num_heads: int, window: int) -> None:
        super().__init__()
        assert window % TOKENS_PER_FRAME == 0, f"window {window} is not a whole number of frames"
        self.num_heads, self.window = num_heads, window
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = Linear(width, width)
        self._product: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._product = Product(self.q_proj, self.k_proj, self.v_proj)

    def init_state(self, batch: int) -> TokenRing:
        """Nothing before the first token."""
        weight = self.k_proj.weight
        empty = weight.new_zeros(batch, self.num_heads, self.window, weight.shape[0] // self.num_heads)
        return TokenRing(empty, empty.clone(), torch.zeros(batch, dtype=torch.long, device=weight.device))

    def step(self, x: Tensor, state: TokenRing, visible: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D], T a whole number of frames; `visible` is that of `visible(state.seen, T)`."""
        length = x.shape[1]
        visible = self.visible(state.seen, length) if visible is None else visible
        projected = self._product.split(x) if self._product and self._product.ready else (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        q, k, v = (t.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for t in projected)  # [B, H, T, d]
        keys, values = torch.cat([state.keys.to(k.dtype), k], 2), torch.cat([state.values.to(v.dtype), v], 2)  # [B, H, W + T, d]
        block = min(length, self.window)
        padding = -length % block
        if padding:
            q, keys, values = (nn.functional.pad(t, (0, 0, 0, padding)) for t in (q, keys, values))
        if length > block:
            q = rearrange(q, "b h (n t) d -> (b n) h t d", t=block)
        k, v = (self._spans(t, block) for t in (keys, values))
        out = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        out = rearrange(out, "(b n) h t d -> b (n t) (h d)", b=x.shape[0])[:, :length]
        state.keys.copy_(keys[:, :, length : length + self.window].detach())
        state.values.copy_(values[:, :, length : length + self.window].detach())
        state.seen.add_(length)
        return self.out_proj(out)

    def _spans(self, joined: Tensor, block: int) -> Tensor:
        """[B, H, window + N * block, d] -> what each block looks at, [B * N, H, window + block, d]; several blocks are of `window`."""
        if joined.shape[2] == self.window + block:
            return joined
        pieces = rearrange(joined, "b h (n w) d -> b n h w d", w=block)
        return torch.cat([pieces[:, :-1], pieces[:, 1:]], 3).flatten(0, 1)

    def visible(self, seen: Tensor, length: int) -> Tensor:
        """Which of a block's window + block keys each of its queries sees: [B * N, 1, block, window + block]."""
        block = min(length, self.window)
        query = torch.arange(block, device=seen.device)[:, None]
        key = torch.arange(self.window + block, device=seen.device)[None]
        frame_end = query // TOKENS_PER_FRAME * TOKENS_PER_FRAME + TOKENS_PER_FRAME - 1
        near = (key >= query) & (key <= self.window + frame_end)  # [block, window + block]
        start = torch.arange(0, length, block, device=seen.device)  # [N] first query of each block, and place of its first key
        exists = start[None, :, None] + key[0] >= self.window - seen[:, None, None]  # [B, N, window + block]
        return (near & exists[:, :, None]).flatten(0, 1)[:, None]


class TimeConv(nn.Conv1d):
    """`nn.Conv1d` that `pack_layers` can lay out for inference, as a product over unfolded inputs."""

    _product: Product | None = None

    def pack(self) -> None:
        """See `codec.linear`."""
        self._product = Product(self)

    def forward(self, x: Tensor) -> Tensor:
        """[B, D, T] -> [B, D', T'], without padding."""
        if self._product is None or not self._product.ready:
            return super().forward(x)
        spans = x.unfold(2, self.kernel_size[0], self.stride[0])  # [B, D, T', kernel]
        return self._product(rearrange(spans, "b d t k -> b t (d k)")).transpose(1, 2)


class WhisperLayer(nn.Module):
    """Pre-norm attention and feed-forward, as in Whisper."""

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.self_attn_layer_norm = nn.LayerNorm(config.token_width)
        self.self_attn = WindowAttention(config.token_width, config.num_heads, config.window_tokens)
        self.final_layer_norm = nn.LayerNorm(config.token_width)
        self.fc1 = Linear(config.token_width, config.ff_width)
        self.fc2 = Linear(config.ff_width, config.token_width)

    def step(self, x: Tensor, state: TokenRing, visible: Tensor | None = None) -> Tensor:
        """[B, T, D] -> [B, T, D]."""
        x = x + self.self_attn.step(self.self_attn_layer_norm(x), state, visible)
        return x + self.fc2(nn.functional.gelu(self.fc1(self.final_layer_norm(x))))


@dataclass
class WhisperState:
    """State of the encoder, mel front included."""

    mel: MelState
    features: Tensor  # [B, 2, num_mels] the last mel frames
    convolved: Tensor  # [B, 1, D] the last output of the first convolution
    layers: list[TokenRing]

    def reset(self, rows: Tensor) -> None:
        """Clear rows; `rows` is a boolean mask [B]."""
        self.mel.reset(rows)
        self.features.masked_fill_(rows[:, None, None], 0.0)
        self.convolved.masked_fill_(rows[:, None, None], 0.0)
        for layer in self.layers:
            layer.reset(rows)


class CausalWhisper(Encoder):
    """Audio [B, T * 1280] at 16 kHz to vectors [B, T, width]."""

    look_ahead_frames = 0

    def __init__(self, config: WhisperConfig) -> None:
        super().__init__()
        self.config, self.width = config, config.width
        self.mel = whisper_mel(config.num_mels)
        self.conv1 = TimeConv(config.num_mels, config.token_width, 3)
        self.conv2 = TimeConv(config.token_width, config.token_width, 3, stride=2)
        self.layers = nn.ModuleList(WhisperLayer(config) for _ in range(config.num_layers))
        self.layer_norm = nn.LayerNorm(config.token_width)
        self.stack = Linear(TOKENS_PER_FRAME * config.token_width, config.width)
        self.ctc = Linear(config.width, config.ctc_per_frame * CTC_SIZE)

    def init_state(self, batch: int) -> WhisperState:
        """Nothing before the first sample."""
        weight, config = self.stack.weight, self.config
        return WhisperState(
            self.mel.init_state(batch),
            weight.new_zeros(batch, 2, config.num_mels),
            weight.new_zeros(batch, 1, config.token_width),
            [layer.self_attn.init_state(batch) for layer in self.layers],
        )

    def features(self, audio: Tensor) -> Tensor:
        """[B, T * 1280] -> Whisper's log-mel [B, T * 8, num_mels], from silence."""
        return scale_mel(self.mel(audio))

    def step(self, audio: Tensor, state: WhisperState) -> Tensor:
        """[B, T * 1280] -> [B, T, width]."""
        return self._encode(scale_mel(self.mel.step(audio, state.mel)), state, 0)

    def encode_features(self, mel: Tensor, first_frame: int = 0) -> Tensor:
        """Log-mel [B, T * 8, num_mels] -> [B, T, width], as a session that begins now and counts its frames from `first_frame`."""
        return self._encode(mel, self.init_state(mel.shape[0]), first_frame)

    def ctc_logits(self, x: Tensor) -> Tensor:
        """[B, T, width] -> [B, T * ctc_per_frame, CTC_SIZE]."""
        return rearrange(self.ctc(x.to(self.ctc.weight.dtype)), "b t (n c) -> b (t n) c", n=self.config.ctc_per_frame)

    def _encode(self, mel: Tensor, state: WhisperState, first_frame: int) -> Tensor:
        mel = torch.cat([state.features, mel.to(state.features.dtype)], 1)
        state.features.copy_(mel[:, -2:])
        x = nn.functional.gelu(self.conv1(mel.transpose(1, 2)))  # [B, D, T * 8]
        x = torch.cat([state.convolved.transpose(1, 2).to(x.dtype), x], 2)
        state.convolved.copy_(x[:, :, -1:].transpose(1, 2).detach())
        x = nn.functional.gelu(self.conv2(x)).transpose(1, 2)  # [B, T * 4, D]
        start = state.layers[0].seen + first_frame * TOKENS_PER_FRAME
        positions = start[:, None] + torch.arange(x.shape[1], device=x.device)
        x = x + position_sinusoids(positions, x.shape[2]).to(x.dtype)
        visible = self.layers[0].self_attn.visible(state.layers[0].seen, x.shape[1])  # the same in every layer
        for layer, ring in zip(self.layers, state.layers, strict=True):
            x = layer.step(x, ring, visible)
        return self.stack(rearrange(self.layer_norm(x), "b (t n) d -> b t (n d)", n=TOKENS_PER_FRAME))
