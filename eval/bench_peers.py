"""What others would run at the same size: timed beside our step, on the same machine."""

from __future__ import annotations

import numpy as np
import torch

from duplex.checkpoint import Speaker
from duplex.config import BackboneConfig
from duplex.errors import UserError
from duplex.presets import cast_weights
from eval.bench import percentiles, timed


def peer_figures(speaker: Speaker, num_steps: int, step_p50_ms: float) -> dict:
    """Figures of the usual loop, and how many times as long it takes as our step.

    Raises:
        UserError: transformers is not installed.
    """
    dtype = speaker.model.backbone.norm.weight.dtype
    times_ms = percentiles(
        transformers_loop(speaker.model.config.backbone, speaker.model.config.vocab_size, speaker.device, dtype, num_steps)
    )
    return {"peer": "transformers", "peer_steps": num_steps, "peer_ms": times_ms, "times_as_fast": round(times_ms["p50"] / step_p50_ms, 2)}


@torch.inference_mode()
def transformers_loop(config: BackboneConfig, vocab_size: int, device: torch.device, dtype: torch.dtype, num_steps: int) -> np.ndarray:
    """Milliseconds of frames in the loop of the paper's reference code, backbone and text head alone: one vector at a time
    through `LlamaForCausalLM` with a growing `DynamicCache`. Encoder, code heads and codec would come on top.

    Raises:
        UserError: transformers is not installed.
    """
    try:
        from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
    except ImportError as error:
        raise UserError("--peer transformers needs the package transformers; run `pip install 'duplex-speech[train]'`") from error
    shape = LlamaConfig(
        vocab_size=vocab_size, hidden_size=config.width, intermediate_size=config.ff_width, num_hidden_layers=config.num_layers,
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
