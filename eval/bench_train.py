"""`duplex bench train`: how fast the dialogue stage learns, and how much of the device's arithmetic it uses (MFU)."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from duplex.clock import FRAME_MS, FrameClock
from duplex.config import ModelConfig
from duplex.model import DuplexModel
from duplex.vocab import Vocab
from train.dialogue_data import ConversationBatch, Conversations
from train.dialogue_stage import DialogueStage, LossConfig
from train.precision import has_bfloat16

WARM_UP_STEPS = 3
MATRIX = 4096
SPEAKING_SHARE = 0.4
# Dense bfloat16 arithmetic as the makers give it, TFLOP/s.
NOMINAL_TFLOPS = {"H100": 989.0, "H200": 989.0, "A100": 312.0, "L40S": 362.0}


def random_batch(config: ModelConfig, rows: int, frames: int, device: torch.device) -> ConversationBatch:
    """Rows with everything that a conversation has, of random values, which do not matter to speed."""
    generator = torch.Generator().manual_seed(0)

    def draw(high: int, *shape: int) -> Tensor:
        return torch.randint(0, high, shape, generator=generator)

    codes = draw(int(np.prod(config.levels)), rows, frames, config.num_codebooks)
    heard = draw(config.vocab_size, rows, frames).where(torch.rand(rows, frames, generator=generator) < 0.2, Vocab.sil)
    audio = 0.05 * torch.randn(rows, frames * FrameClock().input_samples, generator=generator)
    speaking = torch.rand(rows, frames, generator=generator) < SPEAKING_SHARE
    nothing = torch.zeros(0, dtype=torch.long)
    text, scripted = draw(config.vocab_size, rows, frames + 1), torch.zeros(rows, dtype=torch.bool)
    text, codes, speaking, scripted, audio, heard = (part.to(device) for part in (text, codes, speaking, scripted, audio, heard))
    return ConversationBatch(text, codes, speaking, scripted, audio, heard, nothing, nothing)


def make_stage(config: ModelConfig, recompute: bool, compiles: bool) -> DialogueStage:
    """The dialogue stage with random weights, outside of a trainer. The auxiliary CTC, which the shipped recipe leaves out, is left out."""
    stage = DialogueStage(10**6, config, loss=LossConfig(ctc=0.0))
    stage.model = DuplexModel(config)
    stage.model.backbone.recomputes = recompute
    stage.listener = nn.Linear(config.backbone.width, config.vocab_size)
    if compiles:
        stage.model.backbone.compile()
    return stage


def peak_tflops(device: torch.device) -> tuple[float, str]:
    """Arithmetic the device can do, and whose figure it is: the maker's where it is known, else that of a product of large matrices."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, tflops in NOMINAL_TFLOPS.items():
            if part in name:
                return tflops, f"{part}, bfloat16, as its maker says"
    dtype = torch.bfloat16 if has_bfloat16(device.type) else torch.float32
    size = MATRIX if device.type == "cuda" else MATRIX // 4
    a = torch.randn(size, size, device=device, dtype=dtype)
    best_s = float("inf")
    for _ in range(8):
        begin_s = time.perf_counter()
        a @ a
        _wait(device)
        best_s = min(best_s, time.perf_counter() - begin_s)
    return 2 * size**3 / best_s / 1e12, f"measured, {str(dtype).removeprefix('torch.')} product of {size} x {size}"


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def bench_train(config: ModelConfig, device: torch.device, args: argparse.Namespace, steps: int) -> dict:
    """Time whole steps, forward to the optimizer, on batches of `args.batch` rows of `args.frames` frames."""
    stage = make_stage(config, args.recompute, args.compile).to(device).train()
    optimizer = stage.configure_optimizers()["optimizer"]
    batch, generator = random_batch(config, args.batch, args.frames, device), torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        stage._losses(batch, generator).total.backward()
        optimizer.step()
        _wait(device)

    with FlopCounterMode(display=False) as counter:
        stage._losses(batch, generator).total.backward()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    times_s = np.zeros(steps)
    for i in range(-WARM_UP_STEPS, steps):
        begin_s = time.perf_counter()
        step()
        if i >= 0:
            times_s[i] = time.perf_counter() - begin_s
    tflops, peak = counter.get_total_flops() / 1e12, peak_tflops(device)
    num_parameters = sum(p.numel() for name, p in stage.named_parameters() if name.startswith("model."))
    middle_s, frames = float(np.median(times_s)), args.batch * args.frames
    result = {
        "rows": args.batch,
        "frames": args.frames,
        "parameters": num_parameters,
        "step_ms": {"p50": round(1000 * middle_s, 2), "max": round(1000 * float(times_s.max()), 2)},
        "frames_per_s": round(frames / middle_s, 1),
        "real_time_factor": round(frames / middle_s * FRAME_MS / 1000, 1),
        "tflop_per_step": round(tflops, 6),
        "peak_tflops": round(peak[0], 3),
        "peak": peak[1],
        "mfu_percent": round(100 * tflops / middle_s / peak[0], 2),
    }
    if device.type == "cuda":
        result["peak_memory_gb"] = round(torch.cuda.max_memory_allocated(device) / 1e9, 2)
    return result | (_data(args.bank, config, args, middle_s) if args.bank else {})


def _data(bank: Path, config: ModelConfig, args: argparse.Namespace, step_s: float) -> dict:
    """How long one worker takes to compose a batch from the bank, and how many keep the step busy."""
    parts = sorted(p.parent.name for p in bank.glob("*/plan.json"))
    user, agent = ([p for p in parts if p.startswith(role) and "test" not in p and "val" not in p] for role in ("user", "agent"))
    weights = Path(__file__).parents[1] / "duplex" / "weights" / "pocket"
    data = Conversations(
        str(bank), agent, agent, str(weights / "codec"), str(weights / "tokenizer.json"), 1, user_parts=user, batch_size=args.batch
    )
    data.setup("fit")
    times_s = []
    for i in range(10):
        begin_s = time.perf_counter()
        data.batch(i)
        times_s.append(time.perf_counter() - begin_s)
    batch_s = float(np.median(times_s))
    return {"batch_ms": round(1000 * batch_s, 2), "workers_needed": max(int(np.ceil(batch_s / step_s)), 1)}


def print_train(result: dict) -> None:
    """What was measured, in words."""
    from rich.console import Console

    console = Console(highlight=False)
    shape = f"{result['parameters'] / 1e6:.1f} M parameters, {result['rows']} rows of {result['frames']} frames"
    console.print(f"train · {result['preset']} · {result['device']} · {result['threads']} threads: {shape}")
    speed = f"{result['frames_per_s']:.0f} frames/s, {result['real_time_factor']:.0f} x real time"
    console.print(f"a step takes {result['step_ms']['p50']:.1f} ms: {speed}")
    console.print(f"{result['mfu_percent']:.1f} % of {result['peak_tflops']:.2f} TFLOP/s ({result['peak']})")
    if "batch_ms" in result:
        console.print(f"a worker composes a batch in {result['batch_ms']:.1f} ms; {result['workers_needed']} keep the step busy")
