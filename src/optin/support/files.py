"""Files: read with clear errors and within bounds, written atomically. Folders of results are in `folders.py`."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from ..errors import CheckpointError, InputError, first_line
from .untyped import Json

LARGEST_JSON = 16 * 2**20  # bytes
DEEPEST = 50  # lists and mappings in each other
DIGITS = 40  # of an integer
LONGEST_NAME = 255  # bytes that file systems take
HUB = "hub:"  # before the name of a data set of the hub
WORK = ".optin-"  # in the names of files that are being written


def placed(source: str) -> str:
    """Where data is, as a user writes it: a path, or `hub:NAME`."""
    return source if source.startswith(HUB) else str(given(source))


def given(path: str | os.PathLike[str]) -> Path:
    """A path as a user gives it: `~` is the home folder, and no part of it is longer than a file system takes.

    Raises:
        InputError: no path, or one that no system has.
    """
    try:
        text = os.fspath(path)
    except TypeError:
        raise InputError(f"a path must be a text, not {type(path).__name__}.") from None
    if not isinstance(text, str) or not text or "\0" in text:
        raise InputError(f"{text!r:.60} is no path.")
    try:
        found = Path(text).expanduser()
    except RuntimeError as error:
        raise InputError(f"cannot use the path {text!r:.60}: {first_line(error)}") from None
    for part in found.parts:
        if len(os.fsencode(part)) > LONGEST_NAME:
            raise InputError(f"the name {part[:40]!r}... is too long: {LONGEST_NAME} letters are the most.")
    return found


def cache_folder() -> Path:
    """Where trained networks and scores are kept between runs: $OPTIN_CACHE or ~/.cache/optin.

    Raises:
        InputError: it cannot be made or found.
    """
    place = os.environ.get("OPTIN_CACHE") or "~/.cache/optin"
    try:
        folder = given(place)
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, "it cannot be written")
    except (OSError, InputError) as error:
        raise InputError(
            f"cannot use the cache folder {place}: {getattr(error, 'strerror', None) or error}. "
            "Set OPTIN_CACHE to a folder that can be written."
        ) from None
    return folder


def read_text(path: Path, most: int, kind: str) -> str:
    """The text of a regular file of at most so many bytes.

    Args:
        kind: what the file is to be, for the messages: "JSON".

    Raises:
        InputError: no such file, a folder or something else that is no file, or one that may not be read.
        CheckpointError: too large, or no UTF-8.
    """
    try:
        # A pipe without a writer would be waited for; opened like this, it is only looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    except FileNotFoundError:
        raise InputError(f"no such file: {path}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"cannot read {str(path)[:200]}: {getattr(error, 'strerror', error)}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        what = "a folder" if stat.S_ISDIR(mode) else "no regular file"
        raise InputError(f"{path} is {what}; a {kind} file was expected.")
    with os.fdopen(descriptor, "rb") as handle:
        data = handle.read(most + 1)
    if len(data) > most:
        raise CheckpointError(f"{path} is larger than {most:,} bytes, which no {kind} file of optin is.")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{path} is not {kind}: {error}") from None


def read_json(path: Path) -> Json:
    """Parse a JSON file. Input is not trusted: size, depth, numbers and keys are checked.

    Raises:
        InputError: no such file, or no file that can be read.
        CheckpointError: not JSON, a key twice, a number that is none, or more than a file of optin holds.
    """
    text = read_text(path, LARGEST_JSON, "JSON")
    try:
        found = json.loads(
            text, object_pairs_hook=_once, parse_int=_integer, parse_float=_number, parse_constant=_number
        )
        _check_parts(found)
    except (ValueError, RecursionError) as error:  # of which those of json are
        raise CheckpointError(f"{path} is not JSON that optin reads: {first_line(error)}") from None
    return found


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in found if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.60} is there twice")
    return found


def _integer(text: str) -> int:
    if len(text) > DIGITS:
        raise ValueError(f"an integer of {len(text)} digits")
    return int(text)


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is no finite number")
    return value


def _check_parts(value: object) -> None:
    """Without recursion: how deep it is, and that its texts can be written again."""
    level, depth = [value], 0
    while level:
        if depth > DEEPEST:
            raise ValueError(f"lists and mappings lie in each other more than {DEEPEST} deep")
        inside: list[object] = []
        for part in level:
            if isinstance(part, str):
                part.encode()  # half a character of two is refused
            elif isinstance(part, list):
                inside += part
            elif isinstance(part, dict):
                inside += [*part.keys(), *part.values()]
        level, depth = inside, depth + 1


def json_text(data: object, indent: int | None = 2) -> str:
    """Data as JSON; a figure that is no number, or infinite, becomes null, since JSON has none."""
    return json.dumps(_finite(data), indent=indent, allow_nan=False) + "\n"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_text(path: Path, text: str) -> None:
    """Replace a text file: a kill at any moment leaves either the old or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, data: bytes) -> None:
    """Replace a file: a kill at any moment leaves either the old or the new one.

    What a killed process left behind of the same file is removed.
    """
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(path)
        work = path.with_name(f".{path.name}{WORK}{os.urandom(4).hex()}")
        try:
            with work.open("xb") as handle:
                locked(handle.fileno())  # until it is closed, or its process has ended in whatever way
                handle.write(data)
                handle.flush()
                os.fsync(handle.fileno())
                work.replace(path)
        except BaseException:
            work.unlink(missing_ok=True)
            raise


def _remove_stale(path: Path) -> None:
    prefix = f".{path.name}{WORK}"
    for work in path.parent.iterdir():
        if work.name.startswith(prefix) and len(work.name) == len(prefix) + 8:
            with contextlib.suppress(OSError), work.open("rb") as handle:
                if locked(handle.fileno()):
                    work.unlink()


def locked(descriptor: int) -> bool:
    """Take the lock of an open file or folder; False where another process has it. Its end gives it back."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


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
