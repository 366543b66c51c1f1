"""`duplex train`: Lightning's own command line over the stages of this package."""

from __future__ import annotations

import errno
import io
import resource
import sys
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.plugins.io import TorchCheckpointIO

from codec.checkpoint import write_files
from duplex.cli import run
from duplex.errors import UserError
from train.memory import keep_freed_memory
from train.sources import read_checkpoint

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LOADER_KILLED = (
    "a process that makes batches was killed, perhaps for want of memory; "
    "set data.num_workers lower, and go on with --ckpt_path and the last .ckpt"
)


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and moves it there: a run that is killed, or finds the disk full, leaves the earlier one.

    Lightning's own writes it into the folder for temporary files, whence it must be copied where that is another file system.

    Args:
        num_batches: Batches of the fit; one that ended after fewer goes on with the next.
    """

    def __init__(self, num_batches: int = 0) -> None:
        self.num_batches = num_batches

    def load_checkpoint(self, *args: Any, **options: Any) -> dict[str, Any]:
        """Read what `save_checkpoint` wrote."""
        checkpoint = super().load_checkpoint(*args, **options)
        reopen(checkpoint, self.num_batches)
        return checkpoint

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write `checkpoint` to `path`; what is not a local path is left to Lightning."""
        if "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        buffer = io.BytesIO()
        torch.save(checkpoint, buffer)
        write_files({Path(path): buffer.getbuffer()})


def reopen(checkpoint: dict[str, Any], num_batches: int) -> None:
    """Let a fit whose one epoch ended after fewer than `num_batches` go on: Lightning counts it as done, and would stop at once."""
    loop = checkpoint.get("loops", {}).get("fit_loop")
    if loop is None or not loop["epoch_loop.batch_progress"]["is_last_batch"]:
        return
    if loop["epoch_loop.batch_progress"]["current"]["ready"] < num_batches:
        loop["epoch_loop.batch_progress"]["is_last_batch"] = False
        for progress in loop["epoch_progress"].values():
            progress.update(processed=0, completed=0)
        checkpoint["epoch"] = 0


class _TrainCLI(LightningCLI):
    def instantiate_trainer(self, **kwargs: Any) -> lightning.Trainer:
        trainer = super().instantiate_trainer(**kwargs)
        if type(trainer.strategy.checkpoint_io) is TorchCheckpointIO:
            trainer.strategy.checkpoint_io = WholeCheckpoints(getattr(self.datamodule, "num_steps", 0))
        return trainer

    def after_fit(self) -> None:
        """Say what memory it took, and keep the last step, which Lightning leaves out where `every_n_train_steps` does not divide it."""
        if self.trainer.is_global_zero:
            print(f"most memory used: {peak_memory(self.trainer.strategy.root_device)}")
        keepers = [c for c in self.trainer.checkpoint_callbacks if isinstance(c, ModelCheckpoint)]
        at = {"epoch": torch.tensor(self.trainer.current_epoch), "step": torch.tensor(self.trainer.global_step)}
        for keeper in keepers if self.trainer.state.finished else ():
            if keeper._last_global_step_saved != self.trainer.global_step:
                self.trainer.save_checkpoint(keeper.best_model_path or keeper.format_checkpoint_name(at))

    def _parse_ckpt_path(self) -> None:
        """Check the checkpoint before anything is built; stages keep no settings in it that would have to be taken over."""
        path = str(self.config.get(self.config.subcommand, {}).get("ckpt_path") or "")
        if path and path not in ("last", "best", "hpc") and not path.startswith("registry") and "://" not in path:
            read_checkpoint(path)


def peak_memory(device: torch.device) -> str:
    """The most memory that this process has had, and on its GPU."""
    kilo = 1 if sys.platform == "darwin" else 1024  # what getrusage counts in
    of_host = f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo / 1e9:.2f} GB"
    return of_host if device.type != "cuda" else f"{of_host}, and {torch.cuda.max_memory_allocated(device) / 1e9:.2f} GB of the GPU's"


def main(argv: list[str] | None = None) -> None:
    """`fit`, `validate` and Lightning's other verbs; every setting is a YAML key or a flag.

    Raises:
        UserError: something given is missing, damaged or does not fit; the disk is full; a process that makes batches was killed.
        CheckpointError: a checkpoint cannot be written or read.
    """
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        raise UserError("`duplex train` needs a verb; try `duplex train fit --config train/configs/pocket-dialogue.yaml`")
    keep_freed_memory()
    torch.set_float32_matmul_precision("high")
    try:
        _TrainCLI(
            save_config_kwargs={"overwrite": True},
            args=arguments,
            auto_configure_optimizers=False,
            seed_everything_default=1,
        )
    except OSError as error:
        if isinstance(error, ConnectionResetError):  # it died while it sent a batch
            raise UserError(_LOADER_KILLED) from error
        if error.errno not in _FULL:
            raise
        raise UserError(
            f"{error.filename or 'the log'} cannot be written ({error.strerror}); "
            "free space, then go on with --ckpt_path and the last .ckpt"
        ) from error
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker (pid"):
            raise
        raise UserError(_LOADER_KILLED) from error


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
