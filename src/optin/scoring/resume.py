"""Sums that survive a kill: a long scoring continues where its last finished part ended."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ..errors import CheckpointError
from ..running.modules import digest
from ..support.files import write_bytes

GROWING = ("weights/", "waiting/")  # begin the names of what is not known before its part is done
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
    def open(cls, path: Path | None, sums: dict[str, Tensor], identity: str, parts: int) -> Partial:
        """The sums as given, zero, or as an earlier run of the same `identity` left them in `path`.

        Args:
            parts: of all the work.

        Raises:
            CheckpointError: the file belongs to another run or is damaged.
        """
        fresh = cls(path, hashlib.sha256(identity.encode()).hexdigest(), sums)
        if path is None or not path.exists():
            return fresh
        if not path.is_file():
            raise CheckpointError(f"{path} is no file to keep partial scores in. Choose another folder.")
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                if metadata.get("fingerprint") != fresh.fingerprint:
                    raise CheckpointError(
                        f"{path} holds the partial scores of another run. Remove it or choose another folder."
                    )
                names = file.keys()
                found = {name: file.get_tensor(name) for name in names}
            fresh.done = _checked(found, metadata, sums, parts)
            for name, value in sums.items():
                value.copy_(found.pop(name))
            sums.update(found)
        except (SafetensorError, KeyError, ValueError, RuntimeError, OSError) as error:
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
            metadata = {
                "fingerprint": self.fingerprint,
                "done": str(done),
                "sums": digest(dict(sorted(tensors.items()))),
            }
            write_bytes(self.path, save(tensors, metadata))
            end = time.monotonic()
            self.waits_until = end + (end - start) / SHARE


def tokens_beside(path: Path) -> Path:
    """Where the partial costs of tokens are kept: beside the partial sums of the criterion."""
    return path.with_name(f"{path.name}-tokens")


def blocks_beside(path: Path) -> Path:
    """Where the sums of single blocks are kept: a folder beside the file that says which are done."""
    return path.with_name(f"{path.name}-blocks")


def forget(path: Path) -> None:
    """Remove what a scoring kept in `path`, once its scores are kept elsewhere."""
    for kept in (path, tokens_beside(path)):
        kept.unlink(missing_ok=True)
    shutil.rmtree(blocks_beside(path), ignore_errors=True)


def _checked(found: Mapping[str, Tensor], metadata: Mapping[str, str], sums: Mapping[str, Tensor], parts: int) -> int:
    """How many parts stored sums cover, if they are what was written and fit the work; ValueError if not."""
    done = int(metadata["done"])
    if not 0 <= done <= parts:
        raise ValueError(f"{done} of {parts} parts done")
    if metadata["sums"] != digest(dict(sorted(found.items()))):
        raise ValueError("its sums are not those that were written")
    if unknown := sorted(name for name in found if name not in sums and not name.startswith(GROWING)):
        raise ValueError(f"sums of {unknown[0]!r:.60}, which is not asked for")
    for name, value in found.items():
        if name in sums and (value.shape != sums[name].shape or value.dtype != sums[name].dtype):
            raise ValueError(f"sums of {name!r:.60} in another shape")
        if not bool(torch.isfinite(value).all()):
            raise ValueError(f"sums of {name!r:.60} that are no numbers")
    return done
