"""What the benchmarks measure a job against: forward passes, and memory."""

from __future__ import annotations

import resource
import time
from typing import Any

import torch


@torch.inference_mode()
def forward_seconds(model: Any, batches: Any) -> float:
    """Time of one pass over a calibration set."""
    start = time.perf_counter()
    for batch in batches:
        model(**batch)
    return time.perf_counter() - start


def peak() -> int:
    """Largest resident size of this process so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
