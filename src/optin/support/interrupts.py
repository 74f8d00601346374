"""Ctrl-C and SIGTERM: an exit code and no traceback, at any moment of a command."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any

CODES = {signal.SIGINT: 130, signal.SIGTERM: 143}
_loading = False


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """For the time of a command. Until `loaded` an interrupt ends the process at once: libraries that are being
    imported would swallow an exception or abort, and there is nothing to clean up."""
    global _loading
    before: dict[signal.Signals, Any] = {}
    with contextlib.suppress(ValueError):  # outside of the main thread signals are none of ours
        for number in CODES:
            before[number] = signal.signal(number, _leave)
        _loading = True
    try:
        yield
    finally:
        _loading = False
        for number, handler in before.items():
            signal.signal(number, handler)


def loaded() -> None:
    """From here on an interrupt is an exception, so that what was begun is cleaned up."""
    global _loading
    if _loading:
        _loading = False
        signal.signal(signal.SIGINT, signal.default_int_handler)
        signal.signal(signal.SIGTERM, _stop)


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"interrupted\n")
    os._exit(CODES[signal.Signals(number)])


def _stop(number: int, frame: FrameType | None) -> None:
    print("interrupted", file=sys.stderr)  # noqa: T201
    sys.exit(CODES[signal.Signals(number)])
