"""Sums that survive a kill: a long scoring continues where its last finished micro-batch ended."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..files import write_bytes


@dataclass
class Partial:
    """Sums per part and group over the first `done` micro-batches, kept in `path` if there is one."""

    path: Path | None
    fingerprint: str
    sums: dict[str, dict[str, Tensor]]
    done: int = 0

    @classmethod
    def open(
        cls, path: Path | None, parts: Sequence[str], units: Mapping[str, Sequence[int]], identity: str
    ) -> Partial:
        """Zeros, or what an earlier run of the same `identity` left in `path`.

        Raises:
            CheckpointError: the file belongs to another run or is damaged.
        """
        zeros = {
            part: {name: torch.zeros(len(chosen), dtype=torch.float64) for name, chosen in units.items()}
            for part in parts
        }
        fresh = cls(path, hashlib.sha256(identity.encode()).hexdigest(), zeros)
        if path is None or not path.exists():
            return fresh
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fresh.fingerprint:
                    raise CheckpointError(
                        f"{path} holds the partial scores of another run. Remove it or choose another folder."
                    )
                for part, groups in zeros.items():
                    for name, value in groups.items():
                        value.copy_(file.get_tensor(f"{part}/{name}"))
                fresh.done = int(metadata["done"])
        except (SafetensorError, KeyError, ValueError, RuntimeError) as error:
            raise CheckpointError(f"{path} is damaged ({error}). Remove it to score from the start.") from None
        return fresh

    def commit(self, done: int) -> None:
        """Say that the sums now cover `done` micro-batches."""
        self.done = done
        if self.path is not None:
            flat = {f"{part}/{name}": value for part, groups in self.sums.items() for name, value in groups.items()}
            write_bytes(self.path, save(flat, {"fingerprint": self.fingerprint, "done": str(done)}))
