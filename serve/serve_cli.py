"""`duplex serve`: answer many callers at once, through a web page and the protocols of existing clients."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import signal
import ssl
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from duplex.checkpoint import load_speaker
from duplex.errors import UserError
from serve.logs import log_to_stderr
from serve.options import add_int4, add_knobs, plain_warnings, sampling_of
from serve.rows import check_device

if TYPE_CHECKING:
    from aiohttp import web

    from serve.engine import Engine

SESSIONS = {"cpu": 4, "cuda": 64}
MIN_TOKEN_CHARACTERS = 16


def main(argv: list[str]) -> None:
    """Serve until SIGINT or SIGTERM, then let answers end.

    Raises:
        UserError: an option out of range, no token where one is needed, a port that is taken.
        CheckpointError: the checkpoint is missing or damaged.
    """
    args = _parser().parse_args(argv)
    _check(args)
    token, tls = _token(args), _tls(args)
    log_to_stderr(args.log_level)
    if args.threads:
        torch.set_num_threads(args.threads)
    from serve.engine import Engine
    from serve.live_call import Limits
    from serve.server import Access, build_app

    with plain_warnings():
        engine = Engine(
            load_speaker(args.checkpoint, args.device, args.int4),
            args.sessions or SESSIONS[args.device.partition(":")[0]],
            sampling_of(args),
        )
        engine.start()
    limits = Limits(idle_s=args.idle_seconds, call_s=args.call_minutes * 60)
    app = build_app(engine, Access(token, tuple(args.origin)), limits)
    try:
        asyncio.run(_serve(app, engine, args, tls))
    except KeyboardInterrupt:  # a second one, or a platform without signal handlers
        pass
    finally:
        engine.stop()


async def _serve(app: web.Application, engine: Engine, args: argparse.Namespace, tls: ssl.SSLContext | None) -> None:
    """Listen until told to stop; answers may end then, unless told again."""
    from aiohttp import web

    from serve.server import shut_down

    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, args.host, args.port, ssl_context=tls).start()
        where = f"[{args.host}]" if ":" in args.host else args.host
        room = f"{engine.capacity} calls at once, {engine.bytes_per_call / 1e6:.1f} MB each"
        print(f"{'https' if tls else 'http'}://{where}:{args.port}  {room}; Ctrl-C to stop", flush=True)
        await _told_to_stop()
    except OSError as error:
        raise UserError(f"port {args.port} of {args.host} cannot be opened ({error.strerror or error}); choose one with --port") from error
    finally:
        await shut_down(runner, engine, args.drain_seconds)


async def _told_to_stop() -> None:
    """Wait for SIGINT or SIGTERM. A second one has its usual effect."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    signals = (signal.SIGINT, signal.SIGTERM)
    with contextlib.suppress(NotImplementedError):  # Windows: the loop is cancelled instead
        for number in signals:
            loop.add_signal_handler(number, told.set)
    await told.wait()
    for number in signals:
        loop.remove_signal_handler(number)


def _check(args: argparse.Namespace) -> None:
    check_device(args.device)
    if not 1 <= args.port <= 65535:
        raise UserError(f"--port {args.port} is out of range; give 1 to 65535")
    if args.sessions is not None and not 1 <= args.sessions <= 4096:
        raise UserError(f"--sessions {args.sessions} is out of range; give 1 to 4096")
    if args.threads is not None and args.threads < 1:
        raise UserError(f"--threads {args.threads} is out of range; give at least 1")
    if min(args.idle_seconds, args.call_minutes) <= 0 or args.drain_seconds < 0:
        raise UserError("--idle-seconds and --call-minutes must be above 0, --drain-seconds at least 0")


def _token(args: argparse.Namespace) -> str | None:
    """The token, from a file or the environment and never from the command line, which others can read."""
    from serve.server import is_loopback

    token = os.environ.get("DUPLEX_TOKEN", "").strip()
    if args.token_file:
        try:
            token = args.token_file.read_text().strip()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{args.token_file} cannot be read ({error}); give a text file with the token") from error
    if token and (len(token) < MIN_TOKEN_CHARACTERS or not token.isascii() or not token.isprintable() or " " in token):
        raise UserError(f"the token must be at least {MIN_TOKEN_CHARACTERS} ASCII characters, no spaces; `openssl rand -hex 16` makes one")
    if not token and not is_loopback(args.host):
        raise UserError(f"--host {args.host} lets other machines call, which needs a token; give one with --token-file or DUPLEX_TOKEN")
    return token or None


def _tls(args: argparse.Namespace) -> ssl.SSLContext | None:
    if not args.tls_cert:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(args.tls_cert, args.tls_key)
    except OSError as error:  # ssl.SSLError is one
        raise UserError(f"the certificate {args.tls_cert} cannot be used ({error}); give PEM files as --tls-cert and --tls-key") from error
    return context


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="duplex serve",
        description="Answer callers: a web page at /, OpenAI Realtime at /v1/realtime, Moshi at /api/chat.",
    )
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on; others than loopback need a token (default: %(default)s)"
    )
    parser.add_argument("--port", type=int, default=8998, help="default: %(default)s")
    parser.add_argument("--sessions", type=int, help="calls at once (default: 4 on a CPU, 64 on a GPU)")
    parser.add_argument("--checkpoint", default="pocket", help="`pocket` or a folder of `duplex export` (default: %(default)s)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads (default: torch's choice)")
    add_knobs(parser)
    add_int4(parser)
    parser.add_argument("--token-file", type=Path, help="file with the token that callers must send (default: $DUPLEX_TOKEN)")
    parser.add_argument("--origin", action="append", default=[], metavar="https://HOST", help="web page that may call too; may be repeated")
    parser.add_argument("--tls-cert", type=Path, metavar="PEM", help="certificate, for https")
    parser.add_argument("--tls-key", type=Path, metavar="PEM", help="its key, where it is not in the same file")
    parser.add_argument("--idle-seconds", type=float, default=60.0, help="a call without audio ends after so long (default: %(default)g)")
    parser.add_argument("--call-minutes", type=float, default=720.0, help="any call ends after so long (default: %(default)g)")
    parser.add_argument("--drain-seconds", type=float, default=20.0, help="on SIGTERM, for answers to end (default: %(default)g)")
    parser.add_argument("--log-level", default="warning", choices=("debug", "info", "warning", "error"), help="default: %(default)s")
    return parser
