"""Labelled images from folders, IDX files, CIFAR's binary files, parquet files and the hub. Nothing is unpickled.

Images are decoded one by one when they are asked for, and always come as RGB. Of parquet files only the bytes within
are read: a path may name any file or address.
"""

from __future__ import annotations

import glob
import gzip
import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..errors import InputError, first_line
from ..space.options import Task
from ..support.untyped import Foreign
from .data import (
    data_path,
    datasets_library,
    file_errors,
    file_of,
    hub_name,
    hub_origin,
    hub_rows,
    listed,
    part_names,
    shown,
)
from .decoding import SUFFIXES, decode, open_image, pillow
from .decoding import Unreadable as Unreadable
from .rows import check_expansion, open_parquet
from .specs import TaskSpec

# Part -> stems of the file names: the training and the test half of a set as first published.
_IDX = {"train": ("train",), "validation": ("t10k", "test"), "test": ("t10k", "test")}
_CIFAR = {"train": ("data_batch_*.bin", "train.bin"), "validation": ("test*.bin",), "test": ("test*.bin",)}
_PIXELS = 3 * 32 * 32
_JUNK = ("__MACOSX",)  # what archives and desktops leave, beside all that begins with a dot


@dataclass(frozen=True)
class Images:
    """A set of images.

    Attributes:
        read: an image by its index, as `PIL.Image` in RGB; raises `Unreadable`.
        count: how many there are.
        labels: class index of each, where the data has them.
        classes: names of the classes by index; empty where the data has only numbers.
        origin: the folder, file or part of a data set that they were read from; None where they were not.
    """

    read: Callable[[int], Foreign]
    count: int
    labels: list[int] | None
    classes: tuple[str, ...] = ()
    origin: str | None = field(default=None, kw_only=True)

    def __len__(self) -> int:
        return self.count

    def select(self, indices: Sequence[int]) -> Images:
        """The images at some indices, in that order."""
        chosen = list(indices)
        labels = None if self.labels is None else [self.labels[index] for index in chosen]
        return Images(lambda index: self.read(chosen[index]), len(chosen), labels, self.classes, origin=self.origin)

    def problem(self) -> str:
        """Why the first image that cannot be read cannot; empty if all can."""
        for index in range(len(self)):
            try:
                self.read(index)
            except Unreadable as error:
                return str(error)
        return ""


def load_images(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Images:
    """Read one part ("calibration" or "evaluation") of a data set.

    A folder may hold class folders, parts with class folders, IDX files (MNIST), CIFAR's binary files or
    parquet files; a file may be parquet.

    Raises:
        InputError: nothing that can be read, empty classes, or labels that do not match the images.
    """
    split = spec.split(options, part)
    if (name := hub_name(spec, options.data)) is not None:
        return _rows(hub_rows(name, split), options, labelled, hub_origin(name, split))
    assert options.data is not None
    with file_errors(options.data):
        images = _load(data_path(options.data), split, options, labelled)
    if len(images) == 0:
        raise InputError(f"{options.data} holds no images.")
    return images


def _load(path: Path, split: str, options: Task, labelled: bool) -> Images:
    if path.is_file():
        return _parquet(path, options, labelled)
    for read in (_idx, _cifar):
        if (found := read(path, split)) is not None:
            return found
    folder = next((path / name for name in part_names(split) if (path / name).is_dir()), path)
    if any(child.is_dir() for child in _children(folder)):
        return _folders(folder)
    if flat := image_files(folder):
        if labelled:
            raise InputError(f"the images in {folder} have no labels: put each class into a folder of its own.")
        return Images(lambda index: open_image(flat[index]), len(flat), None, origin=str(folder.resolve()))
    if any(path.glob("*.parquet")):
        return _parquet(file_of(path, split), options, labelled)
    pickled = " CIFAR's Python version is pickled: take the binary one." if any(path.glob("data_batch_*")) else ""
    raise InputError(
        f"{path} holds no images: expected class folders, IDX files, CIFAR's binary files or parquet files.{pickled}"
    )


def _children(folder: Path) -> Iterator[Path]:
    """What lies in a folder, by name, without what archives and desktops leave there."""
    return (child for child in sorted(folder.iterdir()) if not is_junk(child.name))


def is_junk(name: str) -> bool:
    """Whether a name is one of those that archives and desktops leave beside the data."""
    return name.startswith(".") or name in _JUNK


def _folders(folder: Path) -> Images:
    """One folder per class, as ImageNet is laid out."""
    classes = [child for child in _children(folder) if child.is_dir()]
    files: list[Path] = []
    labels: list[int] = []
    for label, child in enumerate(classes):
        found = image_files(child)
        if not found:
            raise InputError(f"the class folder {child} holds no images: fill it or remove it.")
        files += found
        labels += [label] * len(found)
    names = tuple(child.name for child in classes)
    return Images(lambda index: open_image(files[index]), len(files), labels, names, origin=str(folder.resolve()))


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and those in it, by their names."""
    return sorted(
        file
        for file in folder.rglob("*")
        if file.suffix.lower() in SUFFIXES
        and not any(is_junk(part) for part in file.relative_to(folder).parts)
        and file.is_file()
    )


def _idx(folder: Path, split: str) -> Images | None:
    """MNIST and its relatives: one file of images and one of labels, gzipped or not."""
    stems = _IDX.get(split, (split,))
    found = (file for stem in stems for file in sorted(folder.glob(f"{glob.escape(stem)}-images-idx3-ubyte*")))
    images = next((file for file in found if file.is_file()), None)
    if images is None:
        return None
    pixels = _idx_array(images, 3)
    file = images.with_name(images.name.replace("-images-idx3", "-labels-idx1"))
    labels = _idx_array(file, 1).tolist() if file.is_file() else None
    if labels is not None and len(labels) != len(pixels):
        raise InputError(f"{file} has {len(labels)} labels for the {len(pixels)} images of {images}.")
    if 0 in pixels.shape[1:]:
        raise InputError(f"{images} holds images without pixels.")
    return Images(
        lambda index: pillow()[0].fromarray(pixels[index]).convert("RGB"),
        len(pixels),
        labels,
        origin=str(images.resolve()),
    )


def _idx_array(file: Path, axes: int) -> Foreign:
    """The values of an IDX file of bytes, no more of which is read or unpacked than its header says."""
    start = 4 + 4 * axes
    try:
        with gzip.open(file) if file.suffix == ".gz" else file.open("rb") as handle:
            head = handle.read(start)
            if len(head) < start or head[:4] != bytes((0, 0, 8, axes)):
                raise ValueError("not an IDX file of bytes")
            sizes = [int(size) for size in np.frombuffer(head, ">u4", axes, 4)]
            size = math.prod(sizes)
            check_expansion(file, size)
            data = handle.read(size + 1)
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"cannot read {file}: {first_line(error)}") from error
    if len(data) != size:
        had = f"{len(data):,}" if len(data) < size else "more"
        raise InputError(f"cannot read {file}: its header says {size:,} bytes, and there are {had}.")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def _cifar(folder: Path, split: str) -> Images | None:
    """CIFAR-10 and CIFAR-100, binary version: label bytes, then 3 x 32 x 32 pixels."""
    files = [file for pattern in _CIFAR.get(split, ()) for file in sorted(folder.glob(pattern)) if file.is_file()]
    if not files:
        return None
    listing = next(
        (file for file in (folder / "batches.meta.txt", folder / "fine_label_names.txt") if file.is_file()), None
    )
    head = 2 if (folder / "fine_label_names.txt").exists() or files[0].name in ("train.bin", "test.bin") else 1
    rows = []
    for file in files:
        data = np.frombuffer(file.read_bytes(), np.uint8)
        if len(data) == 0 or len(data) % (head + _PIXELS):
            raise InputError(f"{file} is not a binary file of CIFAR: {len(data):,} bytes.")
        rows.append(data.reshape(-1, head + _PIXELS))
    records = np.concatenate(rows)
    pixels = records[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = () if listing is None else tuple(listing.read_text(encoding="utf-8", errors="replace").split())
    labels = check_labels(records[:, head - 1].tolist(), classes)
    return Images(
        lambda index: pillow()[0].fromarray(pixels[index].copy()),
        len(pixels),
        labels,
        classes,
        origin=str(folder.resolve()),
    )


def _parquet(file: Path, options: Task, labelled: bool) -> Images:
    if file.suffix != ".parquet":
        raise InputError(f"cannot read images from {file}: expected a folder or a parquet file.")
    open_parquet(file)
    datasets = datasets_library()
    try:
        rows = datasets.Dataset.from_parquet(glob.escape(str(file)), cache_dir=None)
    except Exception as error:  # what the library says of damaged files has no common class but this
        raise InputError(f"cannot read {file}: {first_line(error)}") from error
    return _rows(rows, options, labelled, str(file.resolve()))


def _rows(rows: Foreign, options: Task, labelled: bool, origin: str) -> Images:
    """A `datasets` table with a column of images."""
    found = list(rows.column_names)
    column = options.text or next((name for name in ("image", "img") if name in found), None)
    if column is None or column not in found:
        raise InputError(f"the data has no column {column or 'image'!r}, but {listed(found)}.")
    label = options.label or next((name for name in ("label", "fine_label", "labels") if name in found), None)
    if labelled and (label is None or label not in found):
        raise InputError(f"the data has no column {label or 'label'!r}, but {listed(found)}.")
    if len(rows) == 0:
        raise InputError("the data holds no images.")
    classes = tuple(getattr(rows.features.get(label), "names", None) or ())
    labels = _labels_of(rows, label, classes) if labelled else None
    return Images(_reader(rows, column), len(rows), labels, classes, origin=origin)


def _labels_of(rows: Foreign, label: object, classes: Sequence[str]) -> list[int]:
    feature = type(rows.features[label]).__name__
    if feature not in ("Value", "ClassLabel"):
        raise InputError(f"the label column {label!r} must hold class numbers, not {feature}.")
    return check_labels(list(rows[label]), classes)


def _reader(rows: Foreign, column: str) -> Callable[[int], object]:
    datasets = datasets_library()
    try:
        encoded = rows.select_columns([column]).cast_column(column, datasets.Image(decode=False))
    except Exception as error:  # as above
        raise InputError(f"the column {column!r} holds no images: {first_line(error)}") from error

    def read(index: int) -> Foreign:
        value = encoded[index][column]
        if value is None or value["bytes"] is None:
            raise Unreadable(f"row {index + 1}: no bytes of an image; paths are not followed")
        return decode(value["bytes"], f"row {index + 1}")

    return read


def check_labels(labels: Sequence[Foreign], classes: Sequence[str] = ()) -> list[int]:
    """Class numbers that are class numbers.

    Raises:
        InputError: names the first row that holds something else.
    """
    for row, value in enumerate(labels, 1):
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise InputError(f"row {row} has the label {shown(value)}: expected class numbers, from 0 up.")
        if classes and value >= len(classes):
            raise InputError(f"row {row} has the label {value}, and there are only {len(classes)} names of classes.")
    return list(labels)
