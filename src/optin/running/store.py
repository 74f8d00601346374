"""Tensors kept between passes: in memory up to a limit, beyond it in a temporary folder on disk."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from collections.abc import Hashable
from pathlib import Path
from types import TracebackType

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..support.files import disk_errors

LIMIT = 128 * 2**20  # bytes
ON_GPU, SHARE = 4 * 2**30, 0.25  # bytes at most, of a GPU's memory, and of what is free there


class Store:
    """A mapping whose memory does not grow beyond `limit` bytes, or beyond a share of what is free on a GPU.

    Its files go when it is closed, as a context manager or with the last reference to it.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.bytes = 0  # in memory
        self._memory: dict[Hashable, Tensor] = {}
        # A device, not an empty tensor that has one: each would pin the memory freed around it.
        self._files: dict[Hashable, tuple[Path, torch.device]] = {}
        self._count = 0
        self._folder: Path | None = None

    def __setitem__(self, key: Hashable, value: Tensor) -> None:
        old = self._memory.pop(key, None)
        if old is not None:
            self.bytes -= _bytes(old)
        if key in self._files:
            self._files.pop(key)[0].unlink()
        if self.bytes + _bytes(value) <= self._limit_on(value.device):
            self._memory[key] = value
            self.bytes += _bytes(value)
            return
        with disk_errors(Path(tempfile.gettempdir())):
            if self._folder is None:
                self._folder = Path(tempfile.mkdtemp(prefix="optin-"))
                self._close = weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
            self._count += 1
            path = self._folder / f"{self._count}.safetensors"
            save_file({"value": value.contiguous()}, path)
        self._files[key] = (path, value.device)

    def _limit_on(self, device: torch.device) -> float:
        """A GPU's memory is worth more than the way over the disk."""
        if device.type != "cuda":
            return self.limit
        free, _ = torch.cuda.mem_get_info(device)
        return max(self.limit, min(ON_GPU, self.bytes + SHARE * free))

    def __getitem__(self, key: Hashable) -> Tensor:
        if key in self._memory:
            return self._memory[key]
        path, device = self._files[key]
        return load_file(path)["value"].to(device)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._memory or key in self._files

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Forget everything and delete the files."""
        self._memory.clear()
        self._files.clear()
        self.bytes = 0
        if self._folder is not None:
            self._close()
            self._folder = None


def _bytes(value: Tensor) -> int:
    return value.numel() * value.element_size()
