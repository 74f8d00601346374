"""Of many cases `make test` takes some, and `make test-slow` the others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def slow_but(kept: Iterable[Any] | Callable[[Any], bool], cases: Iterable[Any]) -> list[Any]:
    """Parameters: all cases, of which those that are not `kept` are marked slow."""
    known = None if callable(kept) else list(kept)

    def stays(case: Any) -> bool:
        return kept(case) if callable(kept) else case in known

    return [
        case if stays(case) else pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
        for case in cases
    ]
