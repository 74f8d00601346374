"""What a scoring block by block has done: tensors in files, of which nothing stays in memory."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import weakref
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..errors import CheckpointError
from ..running.modules import digest
from ..support.files import disk_errors
from .resume import Partial, blocks_beside


class Shelf:
    """Parts of a work that are done, each some tensors by name; one that is read is checked to be what was written.

    Args:
        path: the file that says what is done, with a folder for the tensors beside it: they outlive a kill. None
            keeps them in a temporary folder.
        identity: what the parts depend on.
        parts: of all the work.

    Raises:
        CheckpointError: the file belongs to another run or is damaged.
    """

    def __init__(self, path: Path | None, identity: str, parts: int) -> None:
        self.path = path
        self._partial = Partial.open(path, {}, identity, parts)
        if path is None:
            with disk_errors(Path(tempfile.gettempdir())):
                self._folder = Path(tempfile.mkdtemp(prefix="optin-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        else:
            self._folder = blocks_beside(path)

    def put(self, part: str, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Write a part, one tensor after the other; `done` says that it is there."""
        with disk_errors(self._folder):
            self._folder.mkdir(exist_ok=True)
            for name, value in tensors:
                whole = value.detach().cpu().contiguous()
                save_file({"value": whole}, self._file(part, name))
                self._partial.sums[_key(part, name)] = _digest(whole)

    def done(self, parts: int, without: str | None = None) -> None:
        """Say how many parts are done; what another one holds is needed no more."""
        gone = [] if without is None else list(self[without])
        for name in gone:
            del self._partial.sums[_key(without or "", name)]
        self._partial.commit(parts)
        for name in gone:
            self._file(without or "", name).unlink(missing_ok=True)

    def __len__(self) -> int:
        """How many parts are done."""
        return self._partial.done

    def __getitem__(self, part: str) -> Mapping[str, Tensor]:
        """The tensors of a part by name, each read when it is asked for."""
        return _Shelved(self, part)

    def names(self, part: str) -> list[str]:
        """Of the tensors of a part."""
        begin = _key(part, "")
        return [key.removeprefix(begin) for key in self._partial.sums if key.startswith(begin)]

    def read(self, part: str, name: str) -> Tensor:
        """One tensor.

        Raises:
            CheckpointError: it is not there, or not what was written.
        """
        try:
            value = load_file(self._file(part, name))["value"]
            if torch.equal(_digest(value), self._partial.sums[_key(part, name)]):
                return value
            reason = "a file is not what was written"
        except (SafetensorError, KeyError, OSError) as error:
            reason = str(error)
        raise CheckpointError(f"{self._folder} is damaged ({reason}). Remove {self.path} to score from the start.")

    def _file(self, part: str, name: str) -> Path:
        return self._folder / f"{hashlib.sha256(_key(part, name).encode()).hexdigest()[:32]}.safetensors"


class _Shelved(Mapping[str, Tensor]):
    """See `Shelf`."""

    def __init__(self, shelf: Shelf, part: str) -> None:
        self.shelf, self.part = shelf, part

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return self.shelf.read(self.part, name)

    def __contains__(self, name: object) -> bool:
        return name in self.shelf.names(self.part)

    def __iter__(self) -> Iterator[str]:
        return iter(self.shelf.names(self.part))

    def __len__(self) -> int:
        return len(self.shelf.names(self.part))


def _key(part: str, name: str) -> str:
    return f"waiting/{part}/{name}"


def _digest(value: Tensor) -> Tensor:
    """SHA-256 as bytes."""
    return torch.tensor(list(bytes.fromhex(digest({"": value}))), dtype=torch.uint8)
