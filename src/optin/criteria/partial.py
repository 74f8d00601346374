"""Sums that survive a kill: a long scoring continues where its last finished part ended."""

from __future__ import annotations

import hashlib
import time
from dataclasses import dataclass, field
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_bytes

SHARE = 0.1  # of the time that may go into writing, where `commit` may wait


@dataclass
class Partial:
    """Sums by name over the first `done` parts of the work, kept in `path` if there is one.

    Attributes:
        waits_until: before that time `commit` need not write, on the clock of `time.monotonic`.
    """

    path: Path | None
    fingerprint: str
    sums: dict[str, Tensor]
    done: int = 0
    waits_until: float = field(default=0.0, repr=False)

    @classmethod
    def open(cls, path: Path | None, sums: dict[str, Tensor], identity: str) -> Partial:
        """The sums as given, zero, or as an earlier run of the same `identity` left them in `path`.

        Raises:
            CheckpointError: the file belongs to another run or is damaged.
        """
        fresh = cls(path, hashlib.sha256(identity.encode()).hexdigest(), sums)
        if path is None or not path.exists():
            return fresh
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fresh.fingerprint:
                    raise CheckpointError(
                        f"{path} holds the partial scores of another run. Remove it or choose another folder."
                    )
                names = file.keys()
                found = {name: file.get_tensor(name) for name in names}
                for name, value in sums.items():
                    value.copy_(found.pop(name).reshape(value.shape))
                sums.update(found)
                fresh.done = int(metadata["done"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). Remove it to score from the start.") from None
        return fresh

    def add(self, part: dict[str, Tensor]) -> None:
        """Add sums by name; a name that is new is kept as it is."""
        for name, value in part.items():
            if name in self.sums:
                self.sums[name] += value.to(self.sums[name])
            else:
                self.sums[name] = value

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() >= self.waits_until

    def commit(self, done: int, may_wait: bool = False) -> None:
        """Say that the sums now cover `done` parts; write them, unless that `may_wait` and would take too long."""
        self.done = done
        start = time.monotonic()
        if self.path is not None and (self.due or not may_wait):
            tensors = {name: value.cpu().contiguous() for name, value in self.sums.items()}
            write_bytes(self.path, save(tensors, {"fingerprint": self.fingerprint, "done": str(done)}))
            end = time.monotonic()
            self.waits_until = end + (end - start) / SHARE
