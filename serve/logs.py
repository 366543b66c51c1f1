"""Logs of the server: an event a line, no more a second than can be read, and nothing of what callers send."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

FORMAT = "%(asctime)s level=%(levelname)s logger=%(name)s %(message)s"
LINES_PER_S = 20


class RateLimit(logging.Filter):
    """Lets so many records pass in a second; the first of a later second says how many did not.

    Args:
        per_s: Records a second.
        clock: Seconds.
    """

    def __init__(self, per_s: int = LINES_PER_S, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._per_s, self._clock = per_s, clock
        self._second = self._num_passed = self._num_dropped = 0

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether `record` passes."""
        second = int(self._clock())
        if second != self._second:
            self._second, self._num_passed = second, 0
        if self._num_passed >= self._per_s:
            self._num_dropped += 1
            return False
        self._num_passed += 1
        if self._num_dropped:
            record.msg, record.args = f"{record.getMessage()} lines_dropped_before={self._num_dropped}", ()
            self._num_dropped = 0
        return True


def without_content(record: logging.LogRecord) -> bool:
    """A filter of aiohttp's log: of a request it cannot parse there is a line at level INFO, and nothing of what it holds."""
    from aiohttp.http_exceptions import HttpProcessingError

    if not record.exc_info or not isinstance(record.exc_info[1], HttpProcessingError):
        return True
    record.levelno, record.levelname = logging.INFO, "INFO"
    record.msg, record.args = f"request refused: reason={type(record.exc_info[1]).__name__}", ()
    record.exc_info = record.exc_text = None
    return logging.getLogger(record.name).isEnabledFor(logging.INFO)


def log_to_stderr(level: str) -> None:
    """Log lines of at least this level, to stderr."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(FORMAT))
    handler.addFilter(RateLimit())
    logging.basicConfig(level=level.upper(), handlers=[handler])
