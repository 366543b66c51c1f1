"""`duplex VERB ...`: looks the verb up and imports only the module that runs it."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable

from duplex.errors import UserError

VERBS = {
    "talk": ("serve.talk:main", "answer a spoken question from an audio file"),
    "mic": ("serve.mic:main", "talk to it through a microphone, live"),
    "serve": ("serve.serve_cli:main", "answer many callers: web page, OpenAI Realtime and Moshi clients"),
    "ask": ("train.open_questions:main", "let a language model answer open questions, to be synthesized"),
    "synth": ("train.synth_cli:main", "synthesize an utterance bank"),
    "train": ("train.cli:main", "train a stage from a YAML config"),
    "gather": ("train.gather:main", "bring recorded conversations into the bank"),
    "import": ("train.importing:main", "bring weights of others into a folder to start from"),
    "export": ("train.export:main", "turn a training checkpoint into a folder that serves"),
    "codec": ("serve.codec_cli:main", "encode, decode or roundtrip audio files"),
    "eval": ("eval.cli:main", "measure a system on the benchmark suites"),
    "ablate": ("eval.ablate:main", "train with one setting changed at a time, and compare"),
    "bench": ("eval.bench:main", "measure speed"),
    "doctor": ("serve.doctor:main", "check this installation, and mend it with --mend"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one verb and return the exit code: 0, 2 for an error of the user's, 130 when interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if not arguments or arguments[0] in ("-h", "--help"):
        return run(_print_verbs, [])
    return run(_run_verb, arguments)


def run(function: Callable[[list[str]], None], argv: list[str]) -> int:
    """Call `function(argv)`, print an expected error as one line on stderr, and return the exit code.

    Verbs use it too: `sys.exit(run(main, sys.argv[1:]))` makes `python -m PACKAGE.MODULE` behave as `duplex VERB`.
    """
    try:
        function(argv)
        sys.stdout.flush()
    except _user_errors() as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of stdout went away; the interpreter must not flush into it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


def _user_errors() -> tuple[type[Exception], ...]:
    """The errors that are one sentence for the user. A CheckpointError can only come from a module already imported."""
    checkpoint = sys.modules.get("codec.checkpoint")
    return (UserError, checkpoint.CheckpointError) if checkpoint else (UserError,)


def _print_verbs(argv: list[str]) -> None:
    print("usage: duplex VERB [...]\n\nverbs:")
    for verb, (_, summary) in VERBS.items():
        print(f"  {verb:8}{summary}")
    print("\n`duplex VERB --help` says more.")


def _run_verb(argv: list[str]) -> None:
    verb, *rest = argv
    if verb not in VERBS:
        raise UserError(f"unknown verb {verb!r}; known verbs are {', '.join(VERBS)}; try `duplex --help`")
    module, function = VERBS[verb][0].split(":")
    try:
        getattr(importlib.import_module(module), function)(rest)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in ("codec", "duplex", "train", "serve", "eval"):
            raise
        extra = verb if verb in ("synth", "mic", "serve") else module.split(".")[0]
        wanted = "duplex-speech" if extra == "serve" != verb else f"duplex-speech[{extra}]"
        raise UserError(f"`duplex {verb}` needs the package {error.name}, which is missing; run `pip install '{wanted}'`") from error


if __name__ == "__main__":
    sys.exit(main())
