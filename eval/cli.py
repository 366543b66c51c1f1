"""`duplex eval SUITE...`: measure a system on the benchmark suites."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from duplex.errors import UserError

if TYPE_CHECKING:
    from duplex.sampling import Sampling
    from eval.suites import Run, SuiteRun

SUITES_HELP = (
    "answers, turns, impatient, listening, backchannel, noise, echo, long, fdb, codec, hearing, presence, or a scenario file (.yaml)"
)


def _parser() -> argparse.ArgumentParser:
    from serve.options import add_int4, add_knobs

    parser = argparse.ArgumentParser(
        prog="duplex eval", description="Measure a system on benchmark suites: a table and a report folder, then one JSON line a suite."
    )
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=SUITES_HELP)
    systems_help = "pocket, a checkpoint directory, told:CHECKPOINT, wavs:DIR, ws://HOST:PORT/PATH, cascade or truth (default: %(default)s)"
    parser.add_argument("--system", default="pocket", help=systems_help)
    parser.add_argument("--compare", nargs=2, type=Path, metavar=("A", "B"), help="two report folders, instead of suites")
    add_knobs(parser)
    add_int4(parser)
    parser.add_argument("--sweep", metavar="KNOB=V,V,...", help="run the suites at every value of a knob, and draw the curve")
    parser.add_argument("--n", type=int, default=200, help="conversations a suite (default: %(default)s)")
    parser.add_argument("--minutes", type=float, default=60.0, help="length of suite long (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="of scenarios, sampling and intervals (default: %(default)s)")
    parser.add_argument("--out", type=Path, default=Path("eval-report"), help="report folder (default: %(default)s)")
    parser.add_argument("--bank", type=Path, default=Path("data/bank"), help="utterance bank (default: %(default)s)")
    parser.add_argument(
        "--recordings", type=Path, metavar="DIR", help="hearing: audio files and transcripts.txt (default: the bank's questions)"
    )
    parser.add_argument("--split", default="test", help="test or val (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="conversations run at once (default: 16, and 1 for a server)")
    parser.add_argument("--token", help="sent to a server as a bearer token")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    return parser


def main(argv: list[str]) -> None:
    """Run the suites that `argv` names.

    Raises:
        UserError: an unknown suite, system or split, a number out of range, a missing bank, a wrong scenario file, an unwritable folder.
    """
    args = _parser().parse_args(argv)
    if bool(args.suites) == bool(args.compare):
        raise UserError("give suites to measure, or two report folders with --compare A B, and not both; see duplex eval --help")
    if args.compare:
        _compare(args.compare[0], args.compare[1], args.seed)
        return
    _check(args)
    from serve.options import sampling_of

    if not args.sweep:
        _measure(args, sampling_of(args), args.out)
        return
    from eval.sweep import parse_sweep, run_sweep

    sweep = parse_sweep(args.sweep)
    if sampling_of(args).has_knobs or set(_PARTS) & set(args.suites):
        raise UserError(
            f"--sweep sets the knobs itself, of suites of conversations; leave out --eagerness, --yielding, {' and '.join(_PARTS)}"
        )
    run_sweep(sweep, lambda sampling, name: _measure(args, sampling, args.out / name), args.out)


def _check(args: argparse.Namespace) -> None:
    from eval.scenarios import BUILDERS

    known = (*BUILDERS, "long", "fdb", *_PARTS)
    for suite in args.suites:
        if suite not in known and not suite.endswith((".yaml", ".yml")):
            raise UserError(f"suite {suite!r} is unknown; use one or more of {', '.join(known)}, or a scenario file that ends in .yaml")
    if args.batch is None:
        args.batch = 1 if args.system.startswith(("ws://", "wss://")) else 16
    if min(args.n, args.batch) < 1 or args.seed < 0:
        raise UserError(f"--n {args.n}, --batch {args.batch}, --seed {args.seed}: --n and --batch must be at least 1, --seed at least 0")
    if not 0.5 <= args.minutes <= 24 * 60:
        raise UserError(f"--minutes {args.minutes:g} is out of range; give 0.5 to {24 * 60}")


def _measure(args: argparse.Namespace, sampling: Sampling, out: Path) -> list[dict[str, Any]]:
    """Run the suites, write their report to `out`, print tables and JSON lines, and return the results."""
    from eval.judge import default_judge
    from eval.resume import Store
    from eval.scenario_file import is_scenario_file
    from eval.scenarios import load_pool
    from eval.suites import Run
    from eval.systems import load_system

    suites = list(dict.fromkeys(args.suites))
    runs = [measure(args) for part, measure in _PARTS.items() if part in suites]
    suites = [suite for suite in suites if suite not in _PARTS]
    stores: list[Store] = []
    if suites:
        own = all(is_scenario_file(suite) for suite in suites)  # may be of recordings alone
        pool = load_pool(args.bank, args.split, needed=not own)
        system, judge = load_system(args.system, args.device, args.seed, sampling, args.token, args.int4), default_judge()
        for suite in suites:
            size = args.minutes if suite == "long" else args.n
            stores.append(Store(out / "unfinished", suite=suite, system=system.identity, seed=args.seed, size=size, **system.knobs))
            runs.append(_one(args, Run(system, judge, args.seed, args.batch, stores[-1], _warn), suite, pool, out))
    _finish(runs, out)
    for store in stores:
        store.clear()
    return [run.result for run in runs]


def _one(args: argparse.Namespace, run: Run, suite: str, pool: list, out: Path) -> SuiteRun:
    """One suite, with a progress bar."""
    if suite == "long":
        from eval.long import run_long

        with _progress(suite, args.minutes * 60) as done:
            return run_long(run, pool, args.minutes, done)
    if suite == "fdb":
        from eval.fdb import run_fdb

        with _progress(suite, args.n) as done:
            return run_fdb(run, pool, args.n, out / "fdb", done)
    from eval.scenario_file import is_scenario_file, read_scenarios
    from eval.suites import run_scenarios, run_suite

    if is_scenario_file(suite):
        built = read_scenarios(Path(suite), pool, run.seed)
        with _progress(suite, len(built)) as done:
            return run_scenarios(run, Path(suite).stem, built, "file", done)
    with _progress(suite, args.n) as done:
        return run_suite(run, suite, pool, args.n, done)


def _warn(line: str) -> None:
    print(f"warning: {line}", file=sys.stderr)


def _compare(first: Path, second: Path, seed: int) -> None:
    from rich.console import Console
    from rich.table import Table

    from eval.compare import compare

    results = compare(first, second, seed)
    console = Console(stderr=not sys.stdout.isatty())
    for result in results:
        table = Table("figure", "A", "B", "B - A", "95 %", "n", title=f"{result['suite']} · A {first} · B {second}")
        for name, figure in result.items():
            if isinstance(figure, dict):
                low, high = figure["ci95"]
                cells = [f"{figure[key]:.3f}" for key in ("first", "second")]
                table.add_row(name, *cells, f"{figure['difference']:+.3f}", f"{low:+.3f} .. {high:+.3f}", str(figure["n"]))
        console.print(table)
    for result in results:
        print(json.dumps(result))


def _codec(args: argparse.Namespace) -> SuiteRun:
    from duplex.checkpoint import load_speaker
    from eval.codec_quality import dnsmos_overall, held_out_sentences, run_codec_suite
    from train.asr import WhisperAsr

    sentences = held_out_sentences(args.bank, args.n)
    codec = load_speaker(args.system).codec
    with _progress("codec", len(sentences)) as done:
        return run_codec_suite(codec, args.system, sentences, WhisperAsr(), dnsmos_overall, args.seed, done)


def _hearing(args: argparse.Namespace) -> SuiteRun:
    from duplex.checkpoint import load_speaker
    from eval.hearing import read_recordings, recordings_of, run_hearing
    from eval.scenarios import load_pool
    from train.asr import WhisperAsr

    recordings = read_recordings(args.recordings, args.n) if args.recordings else recordings_of(load_pool(args.bank, args.split), args.n)
    encoder = load_speaker(args.system).model.encoder
    with _progress("hearing", len(recordings)) as done:
        return run_hearing(encoder, args.system, recordings, WhisperAsr(), args.seed, done)


def _presence(args: argparse.Namespace) -> SuiteRun:
    from duplex.checkpoint import load_speaker
    from eval.presence import run_presence
    from eval.scenarios import load_pool

    pool, model = load_pool(args.bank, args.split), load_speaker(args.system).model
    with _progress("presence", min(args.n, len(pool))) as done:
        return run_presence(model, args.system, pool, args.n, args.seed, done)


_PARTS = {"codec": _codec, "hearing": _hearing, "presence": _presence}  # suites of a part of the model


def _finish(runs: list, out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from eval.report import table_rows, write_report

    write_report(runs, out)
    console = Console(stderr=not sys.stdout.isatty())
    for run in runs:
        r = run.result
        table = Table("figure", "value", "95 %", "n", title=f"{r['suite']} · {r['system']} · {r['n']} conversations · seed {r['seed']}")
        for row in table_rows(r):
            table.add_row(*row)
        console.print(table)
    console.print(f"report: {out / 'report.md'}")
    for run in runs:
        print(json.dumps(run.result))


def _progress(suite: str, n: float):
    """A progress bar on stderr; its context gives a function of the number done."""
    from contextlib import contextmanager

    from rich.console import Console
    from rich.progress import Progress

    @contextmanager
    def bar():
        with Progress(console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task(suite, total=n)
            yield lambda done: progress.update(task, completed=done)

    return bar()
