"""How long each part of a run took."""

from __future__ import annotations

import time


class Clock:
    """Seconds between calls of `lap`, by name."""

    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Note the seconds since the last call."""
        now = time.perf_counter()
        self.laps[name] = round(now - self._last, 3)
        self._last = now
