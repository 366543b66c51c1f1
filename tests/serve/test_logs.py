"""What the server's log lets through."""

from __future__ import annotations

import logging

import pytest

from serve.logs import RateLimit, without_content


def record(message: str, error: Exception | None = None) -> logging.LogRecord:
    return logging.LogRecord("aiohttp.server", logging.ERROR, "", 0, message, (), (type(error), error, None) if error else None)


def test_a_flood_of_lines_is_cut_and_counted() -> None:
    now = [0.0]
    limit = RateLimit(3, lambda: now[0])
    assert [limit.filter(record("x")) for _ in range(10)] == [True] * 3 + [False] * 7
    now[0] = 1.5
    late = record("y")
    assert limit.filter(late) and late.getMessage() == "y lines_dropped_before=7"
    after = record("z")
    assert limit.filter(after) and after.getMessage() == "z"


def test_what_a_broken_request_holds_is_not_logged() -> None:
    pytest.importorskip("aiohttp", reason="the extra `serve` is not installed")
    from aiohttp.http_exceptions import BadStatusLine

    logger = logging.getLogger("aiohttp.server")
    before = logger.level
    try:
        for level, passes in ((logging.INFO, True), (logging.WARNING, False)):
            logger.setLevel(level)
            broken = record("Error handling request from 1.2.3.4", BadStatusLine("Authorization: Bearer secret"))
            assert without_content(broken) is passes
            assert "secret" not in logging.Formatter().format(broken) and broken.levelno == logging.INFO
        fault = record("Error handling request", RuntimeError("ours"))
        assert without_content(fault) and "ours" in logging.Formatter().format(fault)
    finally:
        logger.setLevel(before)
