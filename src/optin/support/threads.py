"""How many threads a process may use: no more than its container is given time for.

torch counts the processors of the machine. A container that is given the time of two of sixty-four would run
sixty-four threads on them, which wait for each other.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from ..errors import InputError

MOST = 1024


def use_threads(count: int | None = None) -> int:
    """Have torch compute on so many threads; by default on as many as the quota allows, or OMP_NUM_THREADS says.

    Returns:
        how many they are now.

    Raises:
        InputError: fewer than 1, or more than any machine has.
    """
    if count is not None:
        if not 1 <= count <= MOST:
            raise InputError(f"--threads must be between 1 and {MOST}, not {count}.")
        torch.set_num_threads(count)
    elif "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(min(torch.get_num_threads(), allowed()))
    return torch.get_num_threads()


def allowed() -> int:
    """Processors that this process may use: by its affinity, and by the quota of its control groups."""
    free = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([free, *(math.ceil(quota) for quota in quotas())]))


def quotas(root: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> Iterator[float]:
    """Processors' worth of time that each control group around this process is given, of those with a limit."""
    for folder in _folders(root, own):
        with contextlib.suppress(OSError, ValueError):
            quota, period = (folder / "cpu.max").read_text().split()  # version 2: "max 100000", "200000 100000"
            yield int(quota) / int(period)
        with contextlib.suppress(OSError, ValueError):
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if int(quota) > 0:  # version 1: -1 is no limit
                yield int(quota) / int(period)


def _folders(root: Path, own: Path) -> Iterator[Path]:
    """Of the control groups: the roots, and from this process's own upwards where they are visible."""
    yield from (root, root / "cpu", root / "cpu,cpuacct")
    with contextlib.suppress(OSError, ValueError):
        for line in own.read_text().splitlines():
            _, controllers, path = line.split(":", 2)
            if controllers in ("", "cpu", "cpu,cpuacct"):
                folder = root / controllers / path.lstrip("/")
                yield from (place for place in (folder, *folder.parents) if root in place.parents)
