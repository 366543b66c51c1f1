"""`duplex bench step|codec`: how long a frame takes, where the time goes, and the floor that memory sets."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from codec.config import CodecConfig
from codec.model import Codec
from duplex.checkpoint import Speaker, load_speaker
from duplex.cli import run
from duplex.clock import FRAME_MS, FrameClock
from duplex.config import BackboneConfig, FastConformerConfig, ModelConfig
from duplex.errors import UserError
from duplex.model import DuplexModel
from duplex.sampling import Sampling, sample_codes, sample_text
from duplex.vocab import Vocab
from serve.rows import Rows, check_device

WARM_UP_STEPS = 20
COPY_BYTES = 128 * 2**20
RANDOM = "random:"
# Shapes to measure without weights: speed does not depend on their values.
SHAPES = {
    "pocket": (ModelConfig(), CodecConfig()),
    "test": (
        ModelConfig(FastConformerConfig(16, 16, 1, 16, 1, 2), BackboneConfig(16, 1, 2, 2, 32, window_frames=16), 64),
        CodecConfig(encoder_hop_width=8, encoder_width=16, decoder_width=16, decoder_hop_width=8),
    ),
}


def load(preset: str, device: str) -> Speaker:
    """`pocket`, a checkpoint folder, or `random:pocket` and `random:test`, which are shapes with random weights.

    Raises:
        UserError: the shape is unknown.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if not preset.startswith(RANDOM):
        return load_speaker(preset, device)
    name = preset.removeprefix(RANDOM)
    if name not in SHAPES:
        raise UserError(f"preset {preset!r} is unknown; use pocket, a checkpoint folder, or {', '.join(RANDOM + n for n in SHAPES)}")
    model_config, codec_config = SHAPES[name]
    model, codec = DuplexModel(model_config).eval().to(device), Codec(codec_config).eval().to(device)
    return Speaker(preset, model, Vocab.train(["a"], 64), codec, FrameClock())


def noise(speaker: Speaker, batch: int) -> Tensor:
    """A frame of quiet noise for every row, [B, input_samples], from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return 0.05 * torch.randn(batch, speaker.clock.input_samples, generator=generator)


@torch.inference_mode()
def bench_step(speaker: Speaker, batch: int, num_steps: int) -> dict:
    """Time whole steps, from samples in to samples out; then, in a pass of its own, the stages of a step."""
    rows, audio = Rows(speaker, batch), noise(speaker, batch)
    step_ms = timed(lambda: rows.step(audio).audio.cpu(), num_steps)
    state, decode_state = speaker.model.init_state(batch), speaker.codec.init_decode_state(batch)
    model, audio, sampling = speaker.model, audio.to(speaker.device), Sampling()
    user = model.encoder.step(audio, state.encoder)

    def backbone() -> Tensor:
        return model.backbone.step(model.fuse(user, state.text[:, None], state.codes[:, None]), state.backbone)

    hidden = backbone()

    def heads() -> None:
        sample_text(model.heads.text_logits(hidden)[:, 0].float(), sampling)
        sample_codes(model.heads.level_logits(hidden)[:, 0].float(), model.config.levels, sampling)

    stages: dict[str, Callable[[], object]] = {
        "encoder": lambda: model.encoder.step(audio, state.encoder),
        "backbone": backbone,
        "heads": heads,
        "codec": lambda: speaker.codec.decode_step(state.codes[:, None], decode_state),
    }
    stage_ms = {name: round(float(np.median(timed(stage, num_steps, speaker.device))), 3) for name, stage in stages.items()}
    return {"step_ms": percentiles(step_ms), "stage_ms": stage_ms, **roofline(step_bytes(speaker), speaker.device)}


@torch.inference_mode()
def bench_codec(speaker: Speaker, batch: int, num_steps: int) -> dict:
    """Time streamed decoding and encoding of one frame; `step_ms` is decoding, which is what a live agent pays."""
    codec, device = speaker.codec, speaker.device
    codes = codec.silence_codes.repeat(batch, 1, 1)  # [B, 1, K]
    audio = 0.05 * torch.randn(batch, codec.config.frame_samples, generator=torch.Generator().manual_seed(0)).to(device)
    decode_state, encode_state = codec.init_decode_state(batch), codec.init_encode_state(batch)
    decode_ms = percentiles(timed(lambda: codec.decode_step(codes, decode_state), num_steps, device))
    encode_ms = percentiles(timed(lambda: codec.encode_step(audio, encode_state), num_steps, device))
    stage_ms = {"decode": decode_ms["p50"], "encode": encode_ms["p50"]}
    return {"step_ms": decode_ms, "encode_ms": encode_ms, "stage_ms": stage_ms, **roofline(weight_bytes(codec.decoder), device)}


def timed(step: Callable[[], object], num_steps: int, device: torch.device | None = None) -> np.ndarray:
    """Milliseconds of each of `num_steps` calls after a warm-up; a GPU is waited for."""
    times = np.zeros(num_steps)
    for i in range(-WARM_UP_STEPS, num_steps):
        begin = time.perf_counter()
        step()
        if device is not None and device.type == "cuda":
            torch.cuda.synchronize(device)
        if i >= 0:
            times[i] = (time.perf_counter() - begin) * 1000
    return times


def percentiles(times_ms: np.ndarray) -> dict[str, float]:
    """p50, p90, p99 and max."""
    values = (*np.percentile(times_ms, (50, 90, 99)), times_ms.max())
    return {name: round(float(value), 3) for name, value in zip(("p50", "p90", "p99", "max"), values, strict=True)}


def weight_bytes(module: nn.Module) -> int:
    """Bytes of weights a step reads whole: all but embedding tables, of which it reads a few rows."""
    tables = {id(part.weight) for part in module.modules() if isinstance(part, nn.Embedding)}
    return sum(p.numel() * p.element_size() for p in module.parameters() if id(p) not in tables)


def step_bytes(speaker: Speaker) -> int:
    """`weight_bytes` of a live step: the model without its training head, and the codec's decoder."""
    return weight_bytes(speaker.model) - weight_bytes(speaker.model.encoder.ctc) + weight_bytes(speaker.codec.decoder)


def roofline(num_bytes: int, device: torch.device, copy_bytes: int | None = None) -> dict[str, float]:
    """The time to read `num_bytes` once, at the speed at which this device copies memory here and now (reads plus writes).

    A floor for weights that come from memory; small ones that stay in a CPU's cache can be faster.
    """
    source = torch.ones((copy_bytes or COPY_BYTES) // 4, device=device)
    target = torch.empty_like(source)
    best_ms = float(timed(lambda: target.copy_(source), 5, device).min())
    gigabytes_per_s = 2 * source.numel() * 4 / best_ms / 1e6
    return {
        "roofline_ms": round(num_bytes / gigabytes_per_s / 1e6, 4),
        "weight_mb": round(num_bytes / 1e6, 2),
        "copy_gb_per_s": round(gigabytes_per_s, 1),
    }


def main(argv: list[str]) -> None:
    """Measure and print a table, then one line of JSON.

    Raises:
        UserError: a number out of range, an unknown preset, a device that is not there.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    check_device(args.device)
    threads = args.threads or (1 if args.what == "codec" else 2)
    if min(args.batch, args.steps, threads) < 1:
        raise UserError(f"--batch {args.batch}, --steps {args.steps}, --threads {threads}: each must be at least 1")
    torch.set_num_threads(threads)
    speaker = load(args.preset, args.device)
    figures = {"step": bench_step, "codec": bench_codec}[args.what](speaker, args.batch, args.steps)
    dtype = str(next(speaker.model.parameters()).dtype).removeprefix("torch.")
    setting = {"bench": args.what, "preset": _name(args.preset), "device": _device(speaker.device), "dtype": dtype}
    result = {**setting, "batch": args.batch, "threads": threads, "steps": args.steps, **figures}
    _print_table(result)
    print(json.dumps(result))


def _name(preset: str) -> str:
    return Path(preset).name if Path(preset).is_dir() else preset


def _device(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _print_table(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    setting = f"{result['device']} {result['dtype']} · batch {result['batch']} · {result['threads']} threads"
    table = Table("ms", "p50", "p90", "p99", "max", title=f"{result['bench']} · {result['preset']} · {setting}")
    if result["bench"] == "codec":
        table.add_row("decode", *_cells(result["step_ms"]))
        table.add_row("encode", *_cells(result["encode_ms"]))
    else:
        table.add_row("step", *_cells(result["step_ms"]))
        for name, value in result["stage_ms"].items():
            table.add_row(f"  {name}", f"{value:.2f}")
    table.add_row("roofline", f"{result['roofline_ms']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        f"A frame lasts {FRAME_MS} ms. A step reads {result['weight_mb']} MB of weights; a copy runs at {result['copy_gb_per_s']} GB/s."
    )


def _cells(times_ms: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in times_ms.values()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench", description="Measure speed: a table, then one line of JSON.")
    parser.add_argument("what", choices=("step", "codec"), help="a whole frame of the agent, or the codec alone")
    parser.add_argument("--preset", default="pocket", help="pocket, a checkpoint folder, or random:pocket (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows stepped together (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 2; codec: 1)")
    parser.add_argument("--steps", type=int, default=500, help="frames measured after the warm-up (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
