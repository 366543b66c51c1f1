"""The server: a web page and two protocols on one port, for as many callers as the engine takes.

/             the web page            /healthz   whether calls are taken
/v1/realtime  OpenAI Realtime         /metrics   for Prometheus
/api/chat     Moshi
"""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import hdrs, web

from serve.engine import Engine
from serve.live_call import Limits
from serve.logs import without_content
from serve.metrics import exposition
from serve.moshi import chat
from serve.realtime import realtime

_HERE = Path(__file__).parent
_PROTOCOLS = {"/v1/realtime": realtime, "/api/chat": chat}
_SUBPROTOCOL_TOKEN = "openai-insecure-api-key."  # how clients in a browser send it, which cannot set headers
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self'; "
    "media-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}

_log = logging.getLogger(__name__)
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Access:
    """Who may call.

    Attributes:
        token: What callers and Prometheus must send; None where only this machine can reach the server.
        origins: Web pages besides our own that may call, as `https://example.org`.
    """

    token: str | None = None
    origins: tuple[str, ...] = ()


def build_app(engine: Engine, access: Access, limits: Limits) -> web.Application:
    """The application; `shut_down` ends it."""
    logging.getLogger("aiohttp.websocket").setLevel(logging.ERROR)  # its warnings show subprotocols, and so the token
    logging.getLogger("aiohttp.server").addFilter(without_content)
    app = web.Application(middlewares=[_middleware(access)], client_max_size=1 << 16)

    async def health(request: web.Request) -> web.Response:
        stats = engine.stats()
        status = f"failed: {engine.error}" if engine.error else ("ok" if engine.has_room else "full")
        body = {"status": status, "calls": stats.num_active, "capacity": engine.capacity}
        return web.json_response(body, status=503 if engine.error else 200)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=exposition(engine), content_type="text/plain", charset="utf-8")

    async def index(request: web.Request) -> web.FileResponse:
        return web.FileResponse(_HERE / "web" / "index.html")

    async def call(request: web.Request) -> web.StreamResponse:
        return await _call(request, engine, limits)

    app.router.add_get("/healthz", health)
    app.router.add_get("/metrics", metrics)
    app.router.add_get("/", index)
    for path in _PROTOCOLS:
        app.router.add_get(path, call)
    app.router.add_static("/samples", _HERE / "samples")
    app.router.add_static("/", _HERE / "web")
    return app


async def shut_down(runner: web.AppRunner, engine: Engine, drain_s: float) -> None:
    """Take no more connections, let answers end for at most `drain_s` seconds, then close what is left as going away.

    All before `runner.cleanup`, for once that has begun, aiohttp throws away what callers send.
    """
    for site in list(runner.sites):
        await site.stop()
    loop = asyncio.get_running_loop()
    await loop.run_in_executor(None, engine.drain, drain_s)
    await loop.run_in_executor(None, engine.stop)
    await runner.cleanup()


async def _call(request: web.Request, engine: Engine, limits: Limits) -> web.StreamResponse:
    """Answer a plain GET as what would become of a call; else let the protocol have it."""
    if request.headers.get(hdrs.UPGRADE, "").lower() != "websocket":
        if not engine.has_room:
            raise web.HTTPServiceUnavailable(text="all lines are taken; call again when one is free\n")
        raise web.HTTPUpgradeRequired(text="connect by WebSocket\n")
    begin_s = time.monotonic()
    _log.info("call began: protocol=%s", request.path)
    try:
        return await _PROTOCOLS[request.path](request, engine, limits)
    except ConnectionError:  # gone before the handshake had ended
        return web.Response(status=400)
    finally:
        _log.info("call ended: protocol=%s seconds=%.1f active=%d", request.path, time.monotonic() - begin_s, engine.stats().num_active)


def _middleware(access: Access):  # noqa: ANN202 - aiohttp's own
    @web.middleware
    async def guard(request: web.Request, handler: _Handler) -> web.StreamResponse:
        _check_host(request, access)
        if request.path in (*_PROTOCOLS, "/metrics"):
            _check_origin(request, access)
            _check_token(request, access)
        response = await handler(request)
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    return guard


def _check_host(request: web.Request, access: Access) -> None:
    """Without a token, only this machine's own names are answered, so that no web page reaches the server under a name of its own."""
    if access.token is None and not is_loopback(urlsplit(f"//{request.host}").hostname or ""):
        raise web.HTTPForbidden(text="this server answers as localhost only\n")


def _check_origin(request: web.Request, access: Access) -> None:
    origin = request.headers.get(hdrs.ORIGIN)
    if origin is not None and urlsplit(origin).netloc != request.host and origin not in access.origins:
        raise web.HTTPForbidden(text="pages of this origin may not call; start the server with --origin to let them\n")


def _check_token(request: web.Request, access: Access) -> None:
    if access.token is None:
        return
    sent = [request.headers.get(hdrs.AUTHORIZATION, "").removeprefix("Bearer ")]
    protocols = request.headers.get(hdrs.SEC_WEBSOCKET_PROTOCOL, "").split(",")
    sent += [p.strip().removeprefix(_SUBPROTOCOL_TOKEN) for p in protocols if p.strip().startswith(_SUBPROTOCOL_TOKEN)]
    if not any([hmac.compare_digest(one.encode(), access.token.encode()) for one in sent]):  # all of them, in constant time
        raise web.HTTPUnauthorized(text="the token is missing or wrong\n", headers={"WWW-Authenticate": "Bearer"})


def is_loopback(host: str) -> bool:
    """Whether a name or address is this machine's own."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
