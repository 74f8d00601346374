"""What the benchmarks measure a job against, forward passes and memory, and where they keep their figures."""

from __future__ import annotations

import json
import resource
import time
from pathlib import Path
from typing import Any

import torch

from optin.support.files import write_text

RESULTS = Path(__file__).parent.parent / "docs" / "results"


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


class Stored(dict[str, Any]):
    """Figures by name, kept in docs/results/NAME.json: a run that was stopped finds what it had done.

    Runs of one benchmark beside each other find each other's figures.
    """

    def __init__(self, name: str) -> None:
        self.file, self.tables = RESULTS / f"{name}.json", RESULTS / f"{name}.md"
        super().__init__()
        self.reload()

    def reload(self) -> None:
        """Take over what the file holds."""
        if self.file.exists():
            self.update(json.loads(self.file.read_text()))

    def __setitem__(self, name: str, value: Any) -> None:
        self.reload()
        super().__setitem__(name, value)
        write_text(self.file, json.dumps(self, indent=1) + "\n")

    def show(self, tables: str) -> None:
        """Print the tables made of the figures, and store them in docs/results/NAME.md."""
        print(tables)
        self.tables.write_text(tables)
