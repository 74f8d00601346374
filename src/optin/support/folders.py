"""Folders of results: they appear whole or not at all, and nothing that optin did not write is ever lost.

Every folder holds the file `.optin`, its marker: which kind of result it is, and which files optin wrote there.
"""

from __future__ import annotations

import ctypes
import filecmp
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath

from ..errors import InputError, OptinError
from .files import disk_errors, given, json_text, locked, read_json, write_text

MARKER = ".optin"
SUFFIX = 8  # letters that `tempfile` adds to a name
LONGEST = 200  # bytes of a name: what is written beside a result has its name and some letters more
PATIENCE = 300  # hundredths of a second to wait for another process at most


def check_new(target: Path, kind: str, overwrite: bool = False, inputs: Iterable[str | Path | None] = ()) -> Path:
    """Where a result may be written, with every link followed; all that can be said against it is said here.

    Args:
        kind: of the result: "network", "scores", ...
        overwrite: replace what optin wrote there, if it is a result of the same kind.
        inputs: files and folders that the run reads; what is None or does not exist is none.

    Raises:
        InputError: it is not empty, is no folder, holds another kind of result, or lies in, is or holds an input.
    """
    place = given(target)
    if len(os.fsencode(place.name)) > LONGEST:
        raise InputError(
            f"the name {place.name[:40]!r}... is too long: give a folder one of {LONGEST} letters at most."
        )
    try:
        place = place.resolve()
        check_apart(place, inputs)
        _check_place(place)
        if not place.is_dir():
            if place.exists():
                raise InputError(f"{target} is a file: choose a folder.")
        elif any(place.iterdir()):
            _check_occupied(place, kind, overwrite)
    except (OSError, RuntimeError) as error:
        raise InputError(f"cannot write to {target}: {error}") from None
    return place


def _check_place(place: Path) -> None:
    """Refuse what cannot be exchanged with a finished folder."""
    if place.is_symlink():  # what is resolved is none
        raise InputError(f"{place} is a link that leads back to itself: choose a folder.")
    here = Path.cwd()
    if place == here or place in here.parents:
        raise InputError(f"{place} is the folder that you are in, or holds it: choose one inside of it.")
    if place.is_mount():
        raise InputError(f"{place} is a disk of its own, which cannot be exchanged: choose a folder inside of it.")
    there = next(folder for folder in place.parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"cannot write to {there}: choose another place.")


def check_apart(target: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse a place that is, holds or lies in something that is read.

    Raises:
        InputError: says which.
    """
    place = target.resolve()
    for source in inputs:
        if source is None or not Path(source).exists():
            continue
        read = Path(source).resolve()
        if place == read or place in read.parents or read in place.parents:
            raise InputError(f"{target} is, holds or lies in {source}, which is read: choose another place.")


def check_file(target: Path, ours: bool, overwrite: bool) -> None:
    """Whether a file may be written.

    Args:
        ours: what is there, if anything is, was written by optin.

    Raises:
        InputError: something is there that was not, or that may not be replaced.
    """
    if not os.path.lexists(target):
        return
    if not ours:
        raise InputError(f"{target} exists and was not written by optin: choose another name.")
    if not overwrite:
        raise InputError(f"{target} exists: choose another name, or --overwrite.")


def _check_occupied(folder: Path, kind: str, overwrite: bool) -> None:
    if not overwrite:
        raise InputError(f"{folder} is not empty: choose another folder, or --overwrite (overwrite=True).")
    marker = folder / MARKER
    if not marker.exists():
        raise InputError(f"{folder} is not empty and was not written by optin: choose another folder.")
    if marker.is_file() and marker.stat().st_size == 0:
        raise InputError(
            f"{folder} was written by optin 0.1.0, which did not list its files: remove it, or choose another folder."
        )
    found, _ = read_marker(folder)
    if found != kind:
        raise InputError(f"{folder} holds a result of another kind ({found}, not {kind}): choose another folder.")


def read_marker(folder: Path) -> tuple[str | None, set[str]]:
    """Which kind of result a folder holds, and the files of it that optin wrote. Its content is not trusted."""
    try:
        found = read_json(folder / MARKER)
    except OptinError:
        return None, set()
    if not isinstance(found, dict) or not isinstance(found.get("kind"), str):
        return None, set()
    names = found.get("files")
    listed = {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()
    return found["kind"][:40], {name for name in listed if _lies_inside(name)}


def _lies_inside(name: str) -> bool:
    path = PurePosixPath(name)
    return bool(path.parts) and not path.is_absolute() and ".." not in path.parts and "\0" not in name


def add_files(folder: Path, names: Iterable[str]) -> None:
    """Say in the marker of a folder that these files are optin's too; where there is none, nothing."""
    kind, listed = read_marker(folder)
    if kind is not None:
        _mark(folder, kind, listed | set(names))


def mark(folder: Path, kind: str) -> None:
    """Say which kind of result a folder holds: all that lies in it."""
    _mark(folder, kind, _files(folder) - {MARKER})


def _mark(folder: Path, kind: str, names: Iterable[str]) -> None:
    write_text(folder / MARKER, json_text({"kind": kind, "files": sorted(names)}, indent=1))


@contextmanager
def new_folder(target: Path, kind: str, overwrite: bool = False) -> Iterator[Path]:
    """A folder to fill, which takes the place of `target` when the block ends without an error.

    Everything is written beside `target` first and flushed to disk, then exchanged with it. What lies in an old
    `target` and was not written by optin comes along.

    Raises:
        InputError: as `check_new`.
        CheckpointError: the disk is full or not writable.
    """
    place = check_new(target, kind, overwrite)
    with disk_errors(target), scratch_beside(place, kind) as work:
        yield work
        work.chmod(0o755)
        mark(work, kind)
        _flush(work)
        with _alone(place.parent):
            check_new(target, kind, overwrite)  # whoever came first in the meantime is not run over
            bring(place, work)
            _swap(work, place)
            bring(work, place)


@contextmanager
def scratch_beside(target: Path, kind: str) -> Iterator[Path]:
    """A folder for what is needed on the way to a target, beside it; what killed processes left there goes first.

    Raises:
        CheckpointError: the disk is full or not writable.
    """
    place = target.resolve()
    with disk_errors(target):
        place.parent.mkdir(parents=True, exist_ok=True)
        with _alone(place.parent):
            remove_stale(place)
        scratch, lock = _work_folder(place, kind)
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let no other process of optin exchange anything in a folder; it has the turn for moments only."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        for _ in range(PATIENCE):
            if locked(descriptor):
                break
            time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _work_folder(place: Path, kind: str) -> tuple[Path, int]:
    """A new folder beside a place, whose lock says that its process is at work."""
    while True:
        work = Path(tempfile.mkdtemp(dir=place.parent, prefix=f".{place.name}.new-"))
        try:
            lock = os.open(work, os.O_RDONLY)
        except FileNotFoundError:  # another process took it for one that was left behind
            continue
        locked(lock)
        try:
            if work.exists():
                _mark(work, kind, ())
                return work, lock
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
        os.close(lock)


def remove_stale(place: Path) -> None:
    """Remove what killed processes left beside a place; what was in its place until then is put back."""
    prefix = f".{place.name}.new-"
    for folder in sorted(place.parent.iterdir()):
        name = folder.name
        letters = name.removeprefix(prefix).removesuffix(".old")
        if not name.startswith(prefix) or len(letters) != SUFFIX or folder.is_symlink() or not folder.is_dir():
            continue
        if any(folder.iterdir()) and not (folder / MARKER).is_file():
            continue
        lock = os.open(folder, os.O_RDONLY)
        try:
            if not locked(lock):
                continue
            if name.endswith(".old") and not place.exists():
                folder.replace(place)
            else:
                shutil.rmtree(folder, ignore_errors=True)
        finally:
            os.close(lock)


def bring(old: Path, new: Path) -> None:
    """Take along what lies in an old folder and was not written by optin; where names meet, under another one."""
    if not old.is_dir():
        return
    _, ours = read_marker(old)
    for name in sorted(_files(old) - ours - {MARKER}):
        source, target, number = old / name, new / name, 0
        while os.path.lexists(target) and not _same(source, target):
            number += 1
            target = (new / name).with_name(f"{source.name}.old-{number}")
        if not os.path.lexists(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(source, target, follow_symlinks=False)
            except OSError:
                shutil.copy2(source, target, follow_symlinks=False)
    for folder in _empty_folders(old):
        (new / folder).mkdir(parents=True, exist_ok=True)


def _same(one: Path, other: Path) -> bool:
    """Whether two files are one, or copies of each other."""
    return os.path.samestat(one.lstat(), other.lstat()) or (
        one.is_file() and other.is_file() and filecmp.cmp(one, other, shallow=False)
    )


def _files(folder: Path) -> set[str]:
    """What lies in a folder at any depth and is no folder; links are not followed."""
    return {
        (Path(parent) / name).relative_to(folder).as_posix()
        for parent, folders, files in os.walk(folder)
        for name in [*files, *(name for name in folders if (Path(parent) / name).is_symlink())]
    }


def _empty_folders(folder: Path) -> list[Path]:
    return [
        Path(parent).relative_to(folder)
        for parent, folders, files in os.walk(folder)
        if not folders and not files and Path(parent) != folder
    ]


def _flush(folder: Path) -> None:
    readable = (folder / MARKER).stat().st_mode  # as the user's own files are; some libraries keep theirs to the user
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
        bring(old, target)
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step where the system can (Linux); False where it cannot."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)
