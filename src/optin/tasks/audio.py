"""Recordings from folders: with what is said in them, or a folder for each class."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np

from ..errors import DependencyError, InputError, first_line
from ..space.options import Task
from ..support.untyped import Foreign
from .data import data_path, file_errors, listed, part_names
from .images import is_junk
from .rows import FORMATS, read_rows
from .specs import TaskSpec

PLAIN = (".wav",)
OTHERS = (".flac", ".ogg", ".mp3", ".aiff", ".aif")  # which the package soundfile reads
LISTS = ("metadata", "transcripts")  # names of the file that says what is said
FILES = ("file_name", "file", "path", "audio", "name")
WORDS = ("transcription", "transcript", "text", "sentence")


@dataclass(frozen=True, slots=True)
class Recordings:
    """Recordings, and what is known of each.

    Attributes:
        files: of each.
        texts: what is said, where that is known.
        labels: class index of each, where classes are known.
        classes: their names.
        origin: the folder that they were read from.
    """

    files: Sequence[Path]
    texts: Sequence[str] | None = None
    labels: Sequence[int] | None = None
    classes: tuple[str, ...] = ()
    origin: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return len(self.files)

    def select(self, indices: Sequence[int]) -> Self:
        """The recordings at some indices, in that order."""
        return dataclasses.replace(
            self,
            files=[self.files[index] for index in indices],
            texts=None if self.texts is None else [self.texts[index] for index in indices],
            labels=None if self.labels is None else [self.labels[index] for index in indices],
        )

    def read(self, index: int, rate: int) -> np.ndarray:
        """One recording in mono, float32, at so many samples a second.

        Raises:
            InputError: it cannot be read, or holds nothing.
        """
        return read_sound(self.files[index], rate)


def load_recordings(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Recordings:
    """Read one part ("calibration" or "evaluation") of a folder, or the whole if it has no parts.

    Of classes every folder is one. What is said stands beside the recordings in transcripts.txt, as "name: text", or
    in a table (metadata or transcripts; csv, tsv, jsonl, parquet) with a column of their names and one of the texts.

    Raises:
        InputError: no recordings, recordings without what is said, or what is said of recordings that are not there.
    """
    if options.data is None:
        raise InputError("recordings come from a folder: say which with --data.")
    root = data_path(options.data)
    if not root.is_dir():
        raise InputError(f"recordings come from a folder, and {root} is a file.")
    with file_errors(options.data):
        folder = next((root / name for name in part_names(spec.split(options, part)) if (root / name).is_dir()), root)
        files = sound_files(folder)
        if not files:
            raise InputError(f"{folder} holds no recordings: expected {', '.join((*PLAIN, *OTHERS))}.")
        origin = str(folder.resolve())
        if not spec.kind.writes:
            return _of_classes(folder, files, origin, labelled)
        said = _said(folder, options, spec)
        if said is None:
            if labelled:
                raise InputError(
                    f"{folder} does not say what is said: put a transcripts.txt ('name: text') there, or a "
                    "metadata.csv with the columns file_name and text. To prune without it: --no-evaluate."
                )
            return Recordings(files, origin=origin)
        return _paired(folder, files, said, origin)


def sound_files(folder: Path) -> list[Path]:
    """All recordings in a folder and those in it, by their names."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in (*PLAIN, *OTHERS)
        and not any(is_junk(part) for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _of_classes(folder: Path, files: Sequence[Path], origin: str, labelled: bool) -> Recordings:
    names = [file.relative_to(folder).parts[0] if file.parent != folder else None for file in files]
    classes = tuple(sorted({name for name in names if name is not None}))
    if labelled and None in names:
        raise InputError(f"{files[names.index(None)]} has no class: put each class into a folder of its own.")
    labels = [classes.index(name) for name in names if name is not None]
    return Recordings(files, None, labels if len(labels) == len(files) else None, classes, origin=origin)


def _said(folder: Path, options: Task, spec: TaskSpec) -> dict[str, str] | None:
    """What is said, by the names that a list gives to the recordings; None without a list."""
    places = [folder / f"{name}{ending}" for name in LISTS for ending in FORMATS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        return None
    if file.suffix == ".txt":
        lines = [line for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
        pairs = [line.partition(":") for line in lines]
        if wrong := next((line for line, pair in zip(lines, pairs, strict=True) if not pair[1]), None):
            raise InputError(f"{file} must hold lines like 'name: text', not {wrong[:60]!r}.")
        return _unique([(name.strip(), text.strip()) for name, _, text in pairs], file)
    rows = read_rows(file, spec)
    names = list(rows.column_names)
    of_files = next((name for name in FILES if name in names), None)
    of_texts = options.text or next((name for name in WORDS if name in names), None)
    if of_files is None or of_texts is None or of_texts not in names:
        raise InputError(
            f"{file} needs a column of the recordings' names ({', '.join(FILES)}) and one of what is said "
            f"({', '.join(WORDS)}, or --text COLUMN), and has {listed(names)}."
        )
    return _unique([(str(one), str(other)) for one, other in zip(rows[of_files], rows[of_texts], strict=True)], file)


def _unique(pairs: Sequence[tuple[str, str]], file: Path) -> dict[str, str]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise InputError(f"{file} speaks of {twice!r:.60} twice.")
    return found


def _paired(folder: Path, files: Sequence[Path], said: dict[str, str], origin: str) -> Recordings:
    """Recordings of which something is said; others are left out, and said."""
    names = {}
    for file in files:
        place = file.relative_to(folder)
        keys = (str(place), str(place.with_suffix("")), place.name, place.stem)
        if (key := next((key for key in keys if key in said), None)) is not None:
            names[file] = key
    unheard = said.keys() - set(names.values())
    if unheard:
        raise InputError(
            f"{len(unheard)} of {len(said)} texts are of recordings that {folder} does not hold "
            f"({min(unheard)!r:.60})."
        )
    if len(names) < len(files):
        silent = next(file for file in files if file not in names)
        warnings.warn(
            f"nothing says what is said in {len(files) - len(names)} of {len(files)} recordings, which are left out "
            f"({silent.name!r:.60} is the first).",
            stacklevel=2,
        )
    kept = list(names)
    texts = [said[names[file]] for file in kept]
    if (empty := next((file for file, text in zip(kept, texts, strict=True) if not text.strip()), None)) is not None:
        raise InputError(f"the text of {empty.name!r:.60} is empty: fill it, or remove the line.")
    return Recordings(kept, texts, origin=origin)


def read_sound(file: Path, rate: int) -> np.ndarray:
    """A file in mono, float32, at so many samples a second.

    Raises:
        InputError: it cannot be read, or holds nothing.
        DependencyError: another format than WAV without the package that reads it.
    """
    found, values = _wav(file) if file.suffix.lower() in PLAIN else _other(file)
    if values.size == 0:
        raise InputError(f"{file} holds no sound.")
    if not np.isfinite(values).all():
        raise InputError(f"{file} holds NaN or infinite samples.")
    mono = values.mean(1) if values.ndim > 1 else values
    if found != rate:
        from scipy.signal import resample_poly

        shared = math.gcd(found, rate)
        mono = resample_poly(mono, rate // shared, found // shared)
    return np.ascontiguousarray(mono, np.float32)


def _wav(file: Path) -> tuple[int, np.ndarray]:
    from scipy.io import wavfile

    try:
        with warnings.catch_warnings(action="ignore"):  # of chunks that are no sound
            rate, values = wavfile.read(file)
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror or first_line(error)}") from error
    except Exception as error:  # what scipy says of damaged files has no common class but this
        raise InputError(f"cannot read {file}: {first_line(error)}") from error
    if rate < 1:
        raise InputError(f"cannot read {file}: it claims {rate} samples a second.")
    if values.dtype == np.uint8:
        return rate, (values.astype(np.float32) - 128) / 128
    if np.issubdtype(values.dtype, np.integer):
        return rate, values.astype(np.float32) / -float(np.iinfo(values.dtype).min)
    return rate, values.astype(np.float32)


def _other(file: Path) -> tuple[int, np.ndarray]:
    try:
        import soundfile
    except ImportError:
        raise DependencyError(f"{file.suffix} needs the package 'soundfile': pip install 'optin[speech]'") from None
    try:
        values, rate = soundfile.read(file, dtype="float32")
    except Exception as error:  # as above
        raise InputError(f"cannot read {file}: {first_line(error)}") from error
    known: Foreign = values
    return int(rate), known
