"""`duplex train`: Lightning's own command line over the stages of this package."""

from __future__ import annotations

import sys

import torch
from lightning.pytorch.cli import LightningCLI

from duplex.cli import run
from duplex.errors import UserError


def main(argv: list[str] | None = None) -> None:
    """`fit`, `validate` and Lightning's other verbs; every setting is a YAML key or a flag."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments:
        raise UserError("`duplex train` needs a verb; try `duplex train fit --config train/configs/pocket-dialogue.yaml`")
    torch.set_float32_matmul_precision("high")
    LightningCLI(
        save_config_kwargs={"overwrite": True},
        args=arguments,
        auto_configure_optimizers=False,
        seed_everything_default=1,
    )


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
