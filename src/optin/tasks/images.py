"""Labelled images from folders, IDX files, CIFAR's binary files, parquet files and the hub. Nothing is unpickled.

Images are decoded one by one when they are asked for, and always come as RGB.
"""

from __future__ import annotations

import gzip
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DependencyError, InputError, first_line
from ..recipe import Task
from .data import hub_rows, local_rows, part_names
from .specs import TaskSpec

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
# Part -> stems of the file names: the training and the test half of a set as first published.
_IDX = {"train": ("train",), "validation": ("t10k", "test"), "test": ("t10k", "test")}
_CIFAR = {"train": ("data_batch_*.bin", "train.bin"), "validation": ("test*.bin",), "test": ("test*.bin",)}
_PIXELS = 3 * 32 * 32


class Unreadable(InputError):
    """One image that cannot be decoded; the others can still be used."""


@dataclass(frozen=True)
class Images:
    """A set of images.

    Attributes:
        read: an image by its index, as `PIL.Image` in RGB; raises `Unreadable`.
        count: how many there are.
        labels: class index of each, where the data has them.
        classes: names of the classes by index; empty where the data has only numbers.
    """

    read: Callable[[int], Any]
    count: int
    labels: list[int] | None
    classes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return self.count

    def select(self, indices: Sequence[int]) -> Images:
        """The images at some indices, in that order."""
        chosen = list(indices)
        labels = None if self.labels is None else [self.labels[index] for index in chosen]
        return Images(lambda index: self.read(chosen[index]), len(chosen), labels, self.classes)


def load_images(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Images:
    """Read one part ("calibration" or "evaluation") of a data set.

    A folder may hold class folders, parts with class folders, IDX files (MNIST), CIFAR's binary files or
    parquet files; a file may be parquet.

    Raises:
        InputError: nothing that can be read, empty classes, or labels that do not match the images.
    """
    split = spec.split(options, part)
    if options.data is None:
        return _rows(hub_rows(spec, split), options, spec, labelled)
    path = Path(options.data)
    if not path.exists():
        raise InputError(f"no such file or folder: {path}")
    if path.is_file():
        return _rows(local_rows(path, split, spec), options, spec, labelled)
    for read in (_idx, _cifar):
        if (found := read(path, split)) is not None:
            return found
    folder = next((path / name for name in part_names(split) if (path / name).is_dir()), path)
    if any(child.is_dir() for child in folder.iterdir()):
        return _folders(folder)
    if flat := image_files(folder):
        if labelled:
            raise InputError(f"the images in {folder} have no labels: put each class into a folder of its own.")
        return Images(lambda index: open_image(flat[index]), len(flat), None)
    if any(path.glob("*.parquet")):
        return _rows(local_rows(path, split, spec), options, spec, labelled)
    raise InputError(
        f"{path} holds no images: expected class folders, IDX files, CIFAR's binary files or parquet files."
    )


def _folders(folder: Path) -> Images:
    """One folder per class, as ImageNet is laid out."""
    classes = sorted(child for child in folder.iterdir() if child.is_dir() and not child.name.startswith("."))
    files: list[Path] = []
    labels: list[int] = []
    for label, child in enumerate(classes):
        found = image_files(child)
        if not found:
            raise InputError(f"the class folder {child} holds no images: fill it or remove it.")
        files += found
        labels += [label] * len(found)
    return Images(lambda index: open_image(files[index]), len(files), labels, tuple(child.name for child in classes))


def image_files(folder: Path) -> list[Path]:
    """All images in a folder and those in it, by their names."""
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def open_image(file: Path) -> Any:
    """An image in RGB; raises `Unreadable`."""
    image = _pillow()
    try:
        with image.open(file) as opened:
            return opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, image.DecompressionBombError) as error:
        raise Unreadable(f"{file}: {first_line(error)}") from None


def _idx(folder: Path, split: str) -> Images | None:
    """MNIST and its relatives: one file of images and one of labels, gzipped or not."""
    stems = _IDX.get(split, (split,))
    images = next((file for stem in stems for file in sorted(folder.glob(f"{stem}-images-idx3-ubyte*"))), None)
    if images is None:
        return None
    pixels = _idx_array(images, 3)
    file = images.with_name(images.name.replace("-images-idx3", "-labels-idx1"))
    labels = _idx_array(file, 1).tolist() if file.exists() else None
    if labels is not None and len(labels) != len(pixels):
        raise InputError(f"{file} has {len(labels)} labels for the {len(pixels)} images of {images}.")
    return Images(lambda index: _pillow().fromarray(pixels[index]).convert("RGB"), len(pixels), labels)


def _idx_array(file: Path, axes: int) -> Any:
    try:
        data = gzip.decompress(file.read_bytes()) if file.suffix == ".gz" else file.read_bytes()
        kind, sizes = data[:4], np.frombuffer(data, ">u4", axes, 4)
        if kind != bytes((0, 0, 8, axes)):
            raise ValueError("not an IDX file of bytes")
        return np.frombuffer(data, np.uint8, offset=4 + 4 * axes).reshape(sizes)
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"cannot read {file}: {first_line(error)}") from None


def _cifar(folder: Path, split: str) -> Images | None:
    """CIFAR-10 and CIFAR-100, binary version: label bytes, then 3 x 32 x 32 pixels."""
    files = [file for pattern in _CIFAR.get(split, ()) for file in sorted(folder.glob(pattern))]
    if not files:
        return None
    names = next(iter(sorted(folder.glob("batches.meta.txt")) + sorted(folder.glob("fine_label_names.txt"))), None)
    head = 2 if (folder / "fine_label_names.txt").exists() or files[0].name in ("train.bin", "test.bin") else 1
    rows = []
    for file in files:
        data = np.frombuffer(file.read_bytes(), np.uint8)
        if len(data) == 0 or len(data) % (head + _PIXELS):
            raise InputError(f"{file} is not a binary file of CIFAR: {len(data):,} bytes.")
        rows.append(data.reshape(-1, head + _PIXELS))
    records = np.concatenate(rows)
    pixels = records[:, head:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    classes = tuple(names.read_text().split()) if names is not None else ()
    labels = records[:, head - 1].tolist()
    return Images(lambda index: _pillow().fromarray(pixels[index].copy()), len(pixels), labels, classes)


def _rows(rows: Any, options: Task, spec: TaskSpec, labelled: bool) -> Images:
    """A `datasets` table with a column of images."""
    if len(rows) == 0:
        raise InputError("the data holds no images.")
    import datasets

    column = options.text or next((name for name in ("image", "img") if name in rows.column_names), None)
    if column is None or column not in rows.column_names:
        raise InputError(f"the data has no column 'image' or 'img', but {', '.join(rows.column_names)}.")
    label = options.label or next((n for n in ("label", "fine_label", "labels") if n in rows.column_names), None)
    if labelled and (label is None or label not in rows.column_names):
        raise InputError(f"the data has no column 'label', but {', '.join(rows.column_names)}.")
    labels = None if label is None else [int(value) for value in rows[label]]
    feature: Any = None if label is None else rows.features[label]
    decoded = rows.cast_column(column, datasets.Image())

    def read(index: int) -> Any:
        try:
            return decoded[index][column].convert("RGB")
        except (OSError, ValueError, AttributeError, SyntaxError) as error:
            raise Unreadable(f"row {index + 1}: {first_line(error)}") from None

    return Images(read, len(rows), labels, tuple(getattr(feature, "names", ()) or ()))


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise DependencyError("images need the package 'pillow': pip install 'optin[vision]'") from None
    return Image
