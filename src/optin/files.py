"""Files and folders: read with clear errors, written atomically."""

from __future__ import annotations

import ctypes
import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from .errors import CheckpointError, InputError


def cache_folder() -> Path:
    """Where trained networks and scores are kept between runs: $OPTIN_CACHE or ~/.cache/optin."""
    folder = Path(os.environ.get("OPTIN_CACHE", Path.home() / ".cache" / "optin"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_json(path: Path) -> Any:
    """Parse a JSON file.

    Raises:
        InputError: no such file.
        CheckpointError: not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from None


def write_text(path: Path, text: str) -> None:
    """Replace a text file: a kill at any moment leaves either the old or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file: a kill at any moment leaves either the old or the new one."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        work = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            with work.open("xb") as handle:
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
            work.replace(path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise


@contextmanager
def new_folder(target: Path) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target` when the block ends without an error.

    Everything is written beside `target` first and flushed to disk, then renamed. An old `target` is
    renamed away in the same breath and deleted afterwards; a folder that optin did not write is refused.

    Raises:
        InputError: `target` is a file, or a folder with other content.
        CheckpointError: the disk is full or not writable.
    """
    if target.exists() and not (target.is_dir() and _replaceable(target)):
        raise InputError(f"{target} exists and was not written by optin: choose another folder or remove it.")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.new-"))
        try:
            yield work
            work.chmod(0o755)
            _flush(work)
            _swap(work, target)
        finally:
            shutil.rmtree(work, ignore_errors=True)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full or unwritable disk into one clear line."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        # safetensors wraps what the system said into words.
        full = f"os error {errno.ENOSPC})" in str(error) or getattr(error, "errno", None) == errno.ENOSPC
        reason = "the disk is full" if full else str(error)
        raise CheckpointError(f"cannot write {path}: {reason}. Nothing was changed there.") from error


MARKER = ".optin"


def _replaceable(folder: Path) -> bool:
    return not any(folder.iterdir()) or (folder / MARKER).exists()


def _flush(folder: Path) -> None:
    marker = folder / MARKER
    marker.touch()
    readable = marker.stat().st_mode  # as the user's own files are; some libraries keep theirs to the user alone
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(readable)
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def _swap(work: Path, target: Path) -> None:
    """Put `work` in the place of `target`; what was there is left at `work`, to be deleted."""
    if not target.exists():
        work.replace(target)
    elif not _exchange(work, target):
        old = work.with_name(work.name + ".old")
        target.replace(old)
        work.replace(target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step where the system can (Linux); False where it cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
