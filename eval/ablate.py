"""`duplex ablate`: the same short training with one setting changed at a time, and a table of what that did."""

from __future__ import annotations

import argparse
import copy
import csv
import importlib.resources
import json
import os
import subprocess
import sys
import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from codec.checkpoint import write_files
from duplex.cli import run
from duplex.errors import UserError
from eval.files import whole

_ROOT = Path(__file__).parents[1]  # configs name the shipped weights from here
_WEIGHTS = "duplex/weights/pocket"
SUITES = ("answers", "turns", "impatient", "backchannel")
# Of a report: suite, figure, and how it reads in the table.
COLUMNS = (
    ("answers", "accuracy", "answers right"),
    ("answers", "agent_wer", "agent WER"),
    ("turns", "response_s", "response, p50 s"),
    ("turns", "turn_takeover_rate", "turns answered"),
    ("turns", "pause_takeover_rate", "takeover in pauses"),
    ("impatient", "barge_in_success", "barge-in"),
    ("impatient", "stop_latency_s", "stop, p50 s"),
    ("impatient", "false_alarm_rate", "false alarms"),
    ("backchannel", "false_stop_rate", "false stops"),
)
_LOGGED = ("word_accuracy", "level_accuracy")  # of teacher forcing, over the last quarter of the steps


@dataclass(frozen=True)
class Ablation:
    """One question.

    Attributes:
        name, asks: What it is called, and what it asks.
        variants: Settings that differ from the recipe, dotted, by what the table calls them.
    """

    name: str
    asks: str
    variants: Mapping[str, Mapping[str, Any]]


def read_ablations() -> tuple[dict[str, Any], dict[str, Ablation]]:
    """The recipe as a LightningCLI config, and what to change in it, from `ablations.yaml`."""
    data = yaml.safe_load((importlib.resources.files("eval") / "ablations.yaml").read_text())
    recipe = changed(yaml.safe_load((_ROOT / data["base"]).read_text()), data["recipe"])
    return recipe, {name: Ablation(name, entry["asks"], entry["variants"]) for name, entry in data["ablations"].items()}


def changed(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config with dotted settings put in."""
    copied: dict[str, Any] = copy.deepcopy(dict(config))
    for dotted, value in settings.items():
        *path, last = dotted.split(".")
        place = copied
        for key in path:
            place = place.setdefault(key, {})
        place[last] = value
    return copied


@dataclass(frozen=True)
class Trial:
    """How every variant is trained and measured.

    Attributes:
        recipe: What variants change.
        out: Variants go below it; one that is there already is not made again.
        bank: Utterance bank.
        steps: Steps of training.
        n: Conversations a suite, on the split `val`.
        seed: Of training and of the suites.
        threads: Of each process.
    """

    recipe: Mapping[str, Any]
    out: Path
    bank: Path
    steps: int
    n: int
    seed: int
    threads: int

    def folder(self, settings: Mapping[str, Any]) -> Path:
        """Of a variant; the same for all ablations that share it, another where anything differs."""
        key = json.dumps([self._config(settings, Path()), self.n, self.seed], sort_keys=True)
        return self.out / "variants" / f"{zlib.crc32(key.encode()):08x}"

    def run(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Train, export and measure one variant, unless it was before; returns its figures.

        Raises:
            UserError: one of these failed; names its log.
        """
        folder = self.folder(settings)
        done = folder / "figures.json"
        if not done.is_file():
            folder.mkdir(parents=True, exist_ok=True)
            checkpoint, weights, report = folder / "last.ckpt", folder / "weights", folder / "report"
            write_files({folder / "config.yaml": yaml.safe_dump(self._config(settings, folder), sort_keys=False).encode()})
            self._duplex(folder, "train", "fit", "--config", folder / "config.yaml")
            codec, tokenizer = f"{_WEIGHTS}/codec", f"{_WEIGHTS}/tokenizer.json"
            self._duplex(folder, "export", checkpoint, weights, "--codec", codec, "--tokenizer", tokenizer)
            measured = ["--split", "val", "--n", self.n, "--seed", self.seed, "--bank", self.bank, "--out", report]
            self._duplex(folder, "eval", *SUITES, "--system", weights, *measured)
            results = json.loads((report / "report.json").read_text())["suites"]
            write_files({done: json.dumps({"settings": dict(settings), "logged": logged(folder), "results": results}).encode()})
            checkpoint.unlink()
        return json.loads(done.read_text())

    def _config(self, settings: Mapping[str, Any], folder: Path) -> dict[str, Any]:
        keeper = {"dirpath": str(folder), "filename": "last", "every_n_train_steps": self.steps, "enable_version_counter": False}
        own = {
            "seed_everything": self.seed,
            "model.init_args.num_steps": self.steps,
            "data.init_args.num_steps": self.steps,
            "data.init_args.bank": str(self.bank),
            "data.init_args.seed": self.seed,
            "trainer.default_root_dir": str(folder),
            "trainer.log_every_n_steps": 1,
            "trainer.enable_progress_bar": False,
            "trainer.logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": str(folder), "name": "log", "version": ""},
            },
            "trainer.callbacks": [{"class_path": "lightning.pytorch.callbacks.ModelCheckpoint", "init_args": keeper}],
        }
        return changed(changed(self.recipe, own), settings)

    def _duplex(self, folder: Path, *arguments: object) -> None:
        """Run a verb in a process of its own, its output in a log."""
        log = folder / f"{arguments[0]}.log"
        environment = {**os.environ, "OMP_NUM_THREADS": str(self.threads)}
        command = [sys.executable, "-m", "duplex", *map(str, arguments)]
        with log.open("w") as out:
            if subprocess.run(command, stdout=out, stderr=subprocess.STDOUT, cwd=_ROOT, env=environment).returncode:
                last = ([line for line in log.read_text().splitlines() if line.strip()] or ["nothing was printed"])[-1]
                raise UserError(f"`duplex {arguments[0]}` of a variant failed ({last.removeprefix('error: ')}); all of it is in {log}")


def logged(folder: Path) -> dict[str, float]:
    """Means of what training logged, over the last quarter of its steps."""
    with (folder / "log" / "metrics.csv").open() as handle:
        rows = [row for row in csv.DictReader(handle) if row.get(_LOGGED[0])]
    last = rows[-max(len(rows) // 4, 1) :]
    return {name: round(sum(float(row[name]) for row in last) / len(last), 4) for name in _LOGGED}


def table(ablation: Ablation, figures: Mapping[str, Mapping[str, Any]], trial: Trial) -> str:
    """One ablation as Markdown; `figures` are those of `Trial.run`, by variant."""
    lines = [f"# {ablation.name}: {ablation.asks}", ""]
    lines += [
        f"{trial.steps} steps from the shipped weights, seed {trial.seed}, voices and phrasings of `val`; 95 % intervals in brackets.",
        "",
    ]
    head = ["", *(f"{title} ({suite})" for suite, _, title in COLUMNS), "words right, teacher-forced", "levels right"]
    lines += [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for variant, found in figures.items():
        by_suite = {result["suite"]: result for result in found["results"]}
        cells = [_cell(by_suite[suite], name) for suite, name, _ in COLUMNS] + [f"{100 * found['logged'][name]:.1f} %" for name in _LOGGED]
        lines.append(f"| {variant} | {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def _cell(result: Mapping[str, Any], name: str) -> str:
    value, interval, n = result[name], result["ci95"][name], result["counts"][name]
    if value is None:
        return "-"
    if isinstance(value, dict):
        return f"{value['p50']:.2f} [{interval[0]:.2f}, {interval[1]:.2f}] n {n}"
    return f"{100 * value:.1f} % [{100 * interval[0]:.0f}, {100 * interval[1]:.0f}] n {n}"


def main(argv: Sequence[str] | None = None) -> None:
    """Run ablations, write `NAME.md` of each as soon as it is whole, and print it; then a JSON line for each.

    Raises:
        UserError: an unknown ablation, a number out of range, a missing bank, or a variant that failed.
    """
    recipe, known = read_ablations()
    parser = argparse.ArgumentParser(prog="duplex ablate", description="Train with one setting changed at a time, and compare.")
    parser.add_argument("ablations", nargs="*", metavar="NAME", help=f"{', '.join(known)} (default: all)")
    parser.add_argument("--steps", type=int, default=100, help="steps of training a variant (default: %(default)s)")
    parser.add_argument("--n", type=int, default=60, help="conversations a suite (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=3, help="of training and of the suites (default: %(default)s)")
    parser.add_argument("--jobs", type=int, default=1, help="variants at once (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of each (default: all, shared out)")
    parser.add_argument("--bank", type=Path, default=Path("data/bank"), help="utterance bank (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("ablations"), help="where tables and variants go (default: %(default)s)")
    args = parser.parse_args(argv)
    unknown = [name for name in args.ablations if name not in known]
    if unknown:
        raise UserError(f"ablation {unknown[0]!r} is unknown; use {', '.join(known)}")
    if min(args.steps, args.n, args.jobs) < 1 or args.seed < 0:
        raise UserError(f"--steps {args.steps}, --n {args.n}, --jobs {args.jobs}, --seed {args.seed}: give 1 or more, --seed at least 0")
    if not args.bank.is_dir():
        raise UserError(f"there is no bank {args.bank}; make it with `duplex synth`, or name another with --bank")
    threads = args.threads or max((os.cpu_count() or 1) // args.jobs, 1)
    trial = Trial(recipe, args.out.resolve(), args.bank.resolve(), args.steps, args.n, args.seed, threads)
    chosen = [known[name] for name in args.ablations or known]
    with ThreadPoolExecutor(args.jobs) as workers:
        distinct = {trial.folder(settings): settings for ablation in chosen for settings in ablation.variants.values()}
        running = {folder: workers.submit(trial.run, settings) for folder, settings in distinct.items()}
        try:
            lines = [
                _finish(ablation, {v: running[trial.folder(s)].result() for v, s in ablation.variants.items()}, trial)
                for ablation in chosen
            ]
        except BaseException:
            workers.shutdown(cancel_futures=True)
            raise
    print("\n".join(lines))


def _finish(ablation: Ablation, figures: Mapping[str, Mapping[str, Any]], trial: Trial) -> str:
    """Write and print a table; returns its JSON line."""
    text = table(ablation, figures, trial)
    with whole(trial.out / f"{ablation.name}.md") as path:
        path.write_text(text)
    print(text, flush=True)
    return json.dumps({"ablation": ablation.name, "steps": trial.steps, "seed": trial.seed, "variants": dict(figures)})


if __name__ == "__main__":
    sys.exit(run(main, sys.argv[1:]))
