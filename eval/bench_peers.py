"""What others would run at the same size: timed beside our step, on the same machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from duplex.checkpoint import Speaker
from duplex.config import ModelConfig
from duplex.errors import UserError
from duplex.presets import cast_weights
from eval.bench import percentiles, timed

DEPTH: dict[str, Any] = {}  # of Moshi's depth transformer, where not its own: 6 layers of width 1024


def peer_figures(speaker: Speaker, peer: str, num_steps: int, step_p50_ms: float) -> dict:
    """Figures of a loop of `PEERS`, and how many times as long it takes as our step.

    Raises:
        UserError: transformers is not installed.
    """
    dtype = speaker.model.backbone.norm.weight.dtype
    try:
        times_ms = percentiles(PEERS[peer](speaker.model.config, speaker.device, dtype, num_steps))
    except ImportError as error:
        raise UserError(f"--peer {peer} needs the package transformers; run `pip install 'duplex-speech[train]'`") from error
    return {"peer": peer, "peer_steps": num_steps, "peer_ms": times_ms, "times_as_fast": round(times_ms["p50"] / step_p50_ms, 2)}


@torch.inference_mode()
def transformers_loop(model_config: ModelConfig, device: torch.device, dtype: torch.dtype, num_steps: int) -> np.ndarray:
    """Milliseconds of frames in the loop of the paper's reference code, backbone and text head alone: one vector at a time
    through `LlamaForCausalLM` with a growing `DynamicCache`. Encoder, code heads and codec would come on top.
    """
    from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

    config = model_config.backbone
    shape = LlamaConfig(
        vocab_size=model_config.vocab_size,
        hidden_size=config.width, intermediate_size=config.ff_width, num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads, num_key_value_heads=config.num_kv_heads, rms_norm_eps=1e-5,
        max_position_embeddings=2**16,
    )  # fmt: skip
    with torch.device(device):
        model = LlamaForCausalLM(shape).eval()
    cast_weights(model, dtype)
    cache, frame = DynamicCache(), torch.randn(1, 1, config.width, device=device, dtype=dtype)

    def step() -> object:
        return model(inputs_embeds=frame, past_key_values=cache, use_cache=True).logits.argmax(-1).cpu()

    return timed(step, num_steps)


@torch.inference_mode()
def moshi_loop(model_config: ModelConfig, device: torch.device, dtype: torch.dtype, num_steps: int) -> np.ndarray:
    """Milliseconds of frames of Moshi's modules in transformers, its temporal transformer as large as our backbone: one vector through it
    and the text head, then its depth transformer, of its own size, once for each codebook. Its codec, Mimi, would come on top.
    """
    from transformers import DynamicCache, MoshiConfig, MoshiDepthConfig, MoshiForCausalLM
    from transformers.models.moshi.modeling_moshi import MoshiDepthDecoder

    config, num_codes = model_config.backbone, math.prod(model_config.levels)
    codes: dict[str, Any] = {"audio_vocab_size": num_codes, "num_codebooks": model_config.num_codebooks}
    shape = MoshiConfig(
        vocab_size=model_config.vocab_size,
        hidden_size=config.width,
        ffn_dim=2 * config.ff_width,  # half of it gates the other half
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        audio_encoder_config={"model_type": "mimi"},
        **codes,
    )
    depth_shape = MoshiDepthConfig(
        vocab_size=model_config.vocab_size,
        input_size=config.width,
        sliding_window=model_config.num_codebooks,
        max_position_embeddings=model_config.num_codebooks + 1,
        **codes,
        **DEPTH,
    )
    with torch.device(device):
        temporal, depth = MoshiForCausalLM(shape).eval(), MoshiDepthDecoder(depth_shape).eval()
    cast_weights(temporal, dtype)
    cast_weights(depth, dtype)
    cache, frame = DynamicCache(config=shape), torch.randn(1, 1, config.width, device=device, dtype=dtype)

    def step() -> object:
        out = temporal(inputs_embeds=frame, past_key_values=cache, use_cache=True)
        token, said = out.logits[:, -1:].argmax(-1), []
        of_frame = DynamicCache(config=depth_shape)
        for _ in range(model_config.num_codebooks):
            deep = depth(token, last_hidden_state=out.last_hidden_state, past_key_values=of_frame, use_cache=True)
            token = deep.logits[:, -1:].argmax(-1)
            said.append(token)
        return torch.cat(said, 1).cpu()

    return timed(step, num_steps)


PEERS: dict[str, Callable[[ModelConfig, torch.device, torch.dtype, int], np.ndarray]] = {
    "transformers": transformers_loop,
    "moshi": moshi_loop,
}
