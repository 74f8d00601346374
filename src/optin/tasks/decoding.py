"""One image from a file or from bytes; nobody vouches for either.

Plain raster formats only, one frame, turned as its EXIF says. Images come as RGB in 8 bits; 16 bits are scaled by
their range. Masks come as the numbers that they hold.
"""

from __future__ import annotations

import contextlib
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ..errors import DependencyError, InputError, first_line
from ..support.untyped import Foreign

# Others start programs (EPS), hold many files (PSD, FITS) or are known by no name that we read.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")


class Unreadable(InputError):
    """One image that cannot be decoded; the others can still be used."""


def open_image(file: Path) -> Foreign:
    """An image in RGB; raises `Unreadable`."""
    with _opened(file, str(file)) as image:
        return _rgb(image, str(file))


def decode(data: bytes, name: str) -> Foreign:
    """An image in RGB from the bytes of a file; raises `Unreadable`, which calls it `name`."""
    with _opened(io.BytesIO(data), name) as image:
        return _rgb(image, name)


def mask_values(file: Path) -> Foreign:
    """The numbers of a mask: grey ones and those of a palette as they are, colours as three; raises `Unreadable`."""
    with _opened(file, str(file)) as image:
        if image.mode == "F":
            raise InputError(f"the mask {file} holds floating point numbers: save the classes as whole ones.")
        plain = image.mode in ("1", "L", "P") or image.mode.startswith("I")
        return np.asarray(image if plain else image.convert("RGB"))


@contextlib.contextmanager
def _opened(source: Path | io.BytesIO, name: str) -> Iterator[Foreign]:
    library, operations = pillow()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd files that can be read; what cannot be read is raised
            with library.open(source, formats=FORMATS) as opened:
                turned = operations.exif_transpose(opened)
                turned.info["format"] = opened.format
                yield turned
    except InputError:
        raise
    except MemoryError as error:
        raise Unreadable(f"{name}: it does not fit into the memory") from error
    except Exception as error:  # decoders of damaged files raise whatever they stumble over
        raise Unreadable(f"{name}: {first_line(error)}") from error


def _rgb(image: Foreign, name: str) -> object:
    if image.mode == "F":
        raise Unreadable(f"{name}: floating point pixels have no range of their own; save it in 8 or 16 bits")
    if not image.mode.startswith("I"):
        return image.convert("RGB")
    if image.mode == "I" and image.info["format"] not in ("PNG", "PPM"):  # there 16 bits come in this mode
        raise Unreadable(f"{name}: pixels of 32 bits have no range of their own; save it in 8 or 16 bits")
    values = np.asarray(image).astype(np.float32) / 257  # 65535 becomes 255
    return pillow()[0].fromarray(values.round().clip(0, 255).astype(np.uint8)).convert("RGB")


def pillow() -> tuple[Foreign, Foreign]:
    """The modules `Image` and `ImageOps`.

    Raises:
        DependencyError: pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise DependencyError("images need the package 'pillow': pip install 'optin[vision]'") from None
    return Image, ImageOps
