"""`duplex bench step|sessions|live|codec|train`: how long a frame takes, where the time goes, and the floor that memory sets."""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from codec.linear import pack_layers, quantize_layers, read_bytes
from duplex.checkpoint import Speaker, load_speaker
from duplex.cli import run
from duplex.clock import FRAME_MS
from duplex.errors import UserError
from duplex.presets import PRESETS, cast_weights, random_speaker
from duplex.sampling import Sampling, sample_codes, sample_text
from serve.arena import Arena
from serve.rows import Rows, check_device

WARM_UP_STEPS = 20
STAGE_STEPS = 300
COPY_BYTES = 128 * 2**20
RANDOM = "random:"  # shapes to measure without weights: speed does not depend on their values
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int4": torch.quint4x2}


def load(preset: str, device: str, dtype: torch.dtype = torch.float32, window_frames: int | None = None) -> Speaker:
    """`pocket`, a checkpoint folder, or `random:NAME`, which is a shape with random weights.

    Args:
        preset: As said above.
        device: Where it runs.
        dtype: Of the model's weights; the codec stays float32. `torch.quint4x2`: the backbone in 4 bits (`codec.linear.Product`), on a CPU.
        window_frames: Window of the backbone in place of the shape's own; not for a checkpoint.

    Raises:
        UserError: the shape is unknown, a checkpoint is given with another window, or 4 bits are asked of a GPU.
        CheckpointError: the checkpoint is missing or damaged.
    """
    if dtype is torch.quint4x2:
        if torch.device(device).type != "cpu":
            raise UserError(f"--dtype int4 is for a CPU, not for {device}; use float32 or bfloat16")
        speaker = load(preset, device, torch.float32, window_frames)
        quantize_layers(speaker.model.backbone)
        return speaker
    if preset.startswith(RANDOM):
        name = preset.removeprefix(RANDOM)
        if name not in PRESETS:
            raise UserError(f"preset {preset!r} is unknown; use pocket, a checkpoint folder, or {', '.join(RANDOM + n for n in PRESETS)}")
        return random_speaker(name, device, dtype, window_frames)
    if window_frames is not None:
        raise UserError(f"--context changes the shape, and {preset} has one already; give a shape such as random:pocket")
    speaker = load_speaker(preset, device)
    cast_weights(speaker.model, dtype)
    pack_layers(speaker.model)
    return speaker


def noise(speaker: Speaker, batch: int) -> Tensor:
    """A frame of quiet noise for every row, [B, input_samples], from a fixed seed."""
    generator = torch.Generator().manual_seed(0)
    return 0.05 * torch.randn(batch, speaker.clock.input_samples, generator=generator)


@torch.inference_mode()
def bench_step(speaker: Speaker, batch: int, num_steps: int) -> dict:
    """Time whole steps, from samples in to samples out; then, in a pass of its own, the stages of a step."""
    arena, rows, audio = Arena(speaker, batch), range(batch), noise(speaker, batch)
    step_ms = timed(lambda: arena.step(rows, audio).audio.cpu(), num_steps)
    packed = {torch.ops.quantized.linear_dynamic_fp16: _packed_flops}
    with FlopCounterMode(display=False, custom_mapping=packed) as flops:
        Rows(speaker, batch).step(audio)
    floor = roofline(step_bytes(speaker) + batch * arena.bytes_per_row, speaker.device)
    return {
        "step_ms": percentiles(step_ms),
        "stage_ms": stages_ms(speaker, audio, min(num_steps, STAGE_STEPS)),
        **floor,
        "roofline_percent": round(100 * floor["roofline_ms"] / float(np.median(step_ms)), 2),
        "row_mb": round(arena.bytes_per_row / 1e6, 3),
        "gflop": round(flops.get_total_flops() / 1e9, 6),
    }


def _packed_flops(x_shape: Sequence[int], *args: object, out_shape: Sequence[int], **kwargs: object) -> int:
    """Of one product of `codec.linear.Product`."""
    return 2 * x_shape[-1] * math.prod(out_shape)


def stages_ms(speaker: Speaker, audio: Tensor, num_steps: int) -> dict[str, float]:
    """Median milliseconds of every stage, each by itself; on a GPU each is a graph of its own."""
    model, sampling, batch = speaker.model, Sampling(), len(audio)
    state, decode_state, audio = model.init_state(batch), speaker.codec.init_decode_state(batch), audio.to(speaker.device)
    mel_state, user = model.encoder.mel.init_state(batch), model.encoder.step(audio, state.encoder)
    heard = model.recognize_step(user, state)
    fused = model.fuse(user, state.text[:, None], state.codes[:, None], heard)
    hidden = model.backbone.step(fused, state.backbone)
    text, levels = model.heads.text_logits(hidden)[:, 0], model.heads.level_logits(hidden)[:, 0]
    stages: dict[str, Callable[[], object]] = {
        "mel": lambda: model.encoder.mel.step(audio, mel_state),
        "encoder": lambda: model.encoder.step(audio, state.encoder),
        **({"recognizer": lambda: model.recognize_step(user, state)} if model.recognizer else {}),
        "fusion": lambda: model.fuse(user, state.text[:, None], state.codes[:, None], heard),
        "backbone": lambda: model.backbone.step(fused, state.backbone),
        "heads": lambda: (model.heads.text_logits(hidden), model.heads.level_logits(hidden)),
        "sampling": lambda: (sample_text(text.float(), sampling), sample_codes(levels.float(), model.config.levels, sampling)),
        "codec": lambda: speaker.codec.decode_step(state.codes[:, None], decode_state),
    }
    medians = {name: float(np.median(timed(graphed(stage, speaker.device), num_steps, speaker.device))) for name, stage in stages.items()}
    medians["encoder"] = max(medians["encoder"] - medians["mel"], 0.0)  # the encoder steps its own mel front
    return {name: round(value, 3) for name, value in medians.items()}


def graphed(step: Callable[[], object], device: torch.device) -> Callable[[], object]:
    """On a GPU the step as a CUDA graph, so that its launches are not what is timed."""
    if device.type != "cuda":
        return step
    stream = torch.cuda.Stream(device)
    with torch.cuda.stream(stream):
        step()
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


@torch.inference_mode()
def bench_codec(speaker: Speaker, batch: int, num_steps: int) -> dict:
    """Time streamed decoding and encoding of one frame; `step_ms` is decoding, which is what a live agent pays."""
    codec, device = speaker.codec, speaker.device
    codes = codec.silence_codes.repeat(batch, 1, 1)  # [B, 1, K]
    audio = 0.05 * torch.randn(batch, codec.config.frame_samples, generator=torch.Generator().manual_seed(0)).to(device)
    decode_state, encode_state = codec.init_decode_state(batch), codec.init_encode_state(batch) if codec.encodes_live else None
    decode_ms = percentiles(timed(lambda: codec.decode_step(codes, decode_state), num_steps, device))
    encode = (lambda: codec.encode_step(audio, encode_state)) if codec.encodes_live else (lambda: codec.encode(audio))
    encode_ms = percentiles(timed(encode, num_steps, device))
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
    packed = read_bytes(module)
    return round(sum(p.numel() * packed.get(id(p), p.element_size()) for p in module.parameters() if id(p) not in tables))


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
        "read_mb": round(num_bytes / 1e6, 2),
        "copy_gb_per_s": round(gigabytes_per_s, 1),
    }


def main(argv: list[str]) -> None:
    """Measure and print a table, then one line of JSON.

    Raises:
        UserError: a number out of range, an unknown preset, a device that is not there, a package that is missing.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    check_device(args.device)
    threads = (1 if args.what == "codec" else 2) if args.threads is None else args.threads
    steps = {"sessions": 200, "train": 10}.get(args.what, 500) if args.steps is None else args.steps
    if min(args.batch, steps, threads, args.frames, *args.sessions) < 1 or (args.context is not None and args.context < 1):
        given = f"--batch {args.batch}, --steps {args.steps}, --threads {threads}, --sessions {args.sessions}, --context {args.context}"
        raise UserError(f"{given}: each must be at least 1")
    torch.set_num_threads(threads)
    dtype = DTYPES[args.dtype]
    setting = {"bench": args.what, "preset": _name(args.preset), "device": _device(torch.device(args.device)), "dtype": args.dtype}
    speaker = load(args.preset, args.device, dtype, args.context)
    if args.what == "train":
        from eval.bench_train import bench_train, print_train

        result = {**setting, "threads": threads, "steps": steps, **bench_train(speaker.model.config, speaker.device, args, steps)}
        print_train(result)
    elif args.what == "live":
        from eval.bench_live import live_result, print_live

        result = {**setting, "threads": threads, **live_result(speaker, args)}
        print_live(result)
    elif args.what == "sessions":
        from eval.bench_sessions import bench_sessions, plot_sessions, print_sessions

        result = {**setting, "threads": threads, "steps": steps, **bench_sessions(speaker, sorted(set(args.sessions)), steps)}
        print_sessions(result)
        if args.plot:
            plot_sessions(result, args.plot)
    else:
        bench = {"step": bench_step, "codec": bench_codec}[args.what]
        result = {**setting, "batch": args.batch, "threads": threads, "steps": steps, **bench(speaker, args.batch, steps)}
        if args.peer:
            from eval.bench_peers import peer_figures

            result |= peer_figures(speaker, args.peer, args.peer_steps, result["step_ms"]["p50"])
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
    if "peer_ms" in result:
        table.add_row(result["peer"], *_cells(result["peer_ms"]))
    console = Console(highlight=False)
    console.print(table)
    console.print(f"A frame lasts {FRAME_MS} ms. A step reads {result['read_mb']} MB; a copy runs at {result['copy_gb_per_s']} GB/s.")


def _cells(times_ms: dict[str, float]) -> list[str]:
    return [f"{value:.2f}" for value in times_ms.values()]


def _sizes(text: str) -> list[int]:
    return [int(size) for size in text.split(",")]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="duplex bench", description="Measure speed: a table, then one line of JSON.")
    what_help = "a whole frame of the agent, many calls at once, callers on a server in real time, the codec alone, or a step of training"
    parser.add_argument("what", choices=("step", "sessions", "live", "codec", "train"), help=what_help)
    preset_help = f"pocket, a checkpoint folder, or random:NAME with NAME {', '.join(PRESETS)} (default: %(default)s)"
    parser.add_argument("--preset", default="pocket", help=preset_help)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: %(default)s)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the model's weights (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1, help="rows stepped together (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: 2; codec: 1)")
    parser.add_argument("--steps", type=int, help="frames measured after the warm-up (default: 500; sessions: 200)")
    parser.add_argument("--context", type=int, help="frames that the backbone attends back, for random:NAME (default: the shape's own)")
    parser.add_argument(
        "--sessions", type=_sizes, default=[1, 2, 4, 8], help="sessions: numbers of calls, such as 32,64 (default: 1,2,4,8)"
    )
    parser.add_argument("--plot", type=Path, metavar="PNG", help="sessions: draw step times against the number of calls")
    parser.add_argument("--frames", type=int, default=300, help="train: frames a row (default: %(default)s)")
    parser.add_argument("--recompute", action="store_true", help="train: activation checkpointing")
    parser.add_argument("--compile", action="store_true", help="train: torch.compile of the backbone")
    parser.add_argument("--callers", type=int, default=4, help="live: callers at once (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=1.0, help="live: how long they call (default: %(default)g)")
    parser.add_argument("--seed", type=int, default=1, help="live: of who asks what when (default: %(default)s)")
    parser.add_argument("--bank", type=Path, help="live: bank whose test questions are asked; train: composed from, and timed")
    parser.add_argument(
        "--peer", choices=("transformers", "moshi"), help="step: measure the usual loop, or Moshi's modules, at the same size beside it"
    )
    parser.add_argument("--peer-steps", type=int, default=200, help="frames of the peer (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
