"""Images with a class for every pixel: Cityscapes as downloaded, and folders of images and masks."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..describing.inputs import image_input
from ..errors import InputError, first_line
from ..running.batch import to_device
from ..running.modules import device_of, inference_mode_of
from ..running.outputs import answers
from ..space.options import Task
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from .data import data_path, file_errors, part_names, shown
from .decoding import mask_values, open_image
from .images import Images, Unreadable, image_files
from .metrics import divergence, intersections
from .rows import unique
from .specs import TaskSpec

IGNORED = 255  # the class of pixels that count for nothing
COMPARED = 8  # scenes whose sizes are compared with their masks' before any work
PIXELS = 4096  # of an image at which outputs are compared with the dense network's

# The 19 classes that Cityscapes is judged by, by the numbers in its files.
CITYSCAPES = {
    7: "road", 8: "sidewalk", 11: "building", 12: "wall", 13: "fence", 17: "pole", 19: "traffic light",
    20: "traffic sign", 21: "vegetation", 22: "terrain", 23: "sky", 24: "person", 25: "rider", 26: "car", 27: "truck",
    28: "bus", 31: "train", 32: "motorcycle", 33: "bicycle",
}  # fmt: skip


@dataclass(frozen=True)
class Scenes(Images):
    """Images whose labels are masks.

    Attributes:
        mask: the classes of an image's pixels by its index, shape (height, width), int64; raises `Unreadable`.
    """

    mask: Callable[[int], object] | None = None

    def select(self, indices: Sequence[int]) -> Scenes:
        """The scenes at some indices, in that order."""
        chosen, mask = list(indices), self.mask
        masks = None if mask is None else lambda index: mask(chosen[index])
        return Scenes(
            lambda index: self.read(chosen[index]), len(chosen), None, self.classes, masks, origin=self.origin
        )


def load_scenes(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Scenes:
    """Read one part ("calibration" or "evaluation") of a folder.

    The folder is Cityscapes as downloaded (leftImg8bit and, for labels, gtFine), or holds, for every part or at once,
    the folders images and masks with files of the same names. Masks are grey or have a palette: the value of a pixel
    is its class, and 255 counts for nothing. Or they are coloured, and classes.json says how: {"road": [0, 0, 9]}.

    Raises:
        InputError: nothing that can be read, or masks missing.
    """
    split = spec.split(options, part)
    if options.data is None:
        raise InputError("scenes come from a folder: say which with --data.")
    root = data_path(options.data)
    if not root.is_dir():
        raise InputError(f"scenes come from a folder, and {root} is a file.")
    names = part_names(split)
    with file_errors(options.data):
        city = next((root / "leftImg8bit" / name for name in names if (root / "leftImg8bit" / name).is_dir()), None)
        if city is not None:
            return _cityscapes(root, city, labelled)
        folder = next((root / name for name in names if (root / name).is_dir()), root)
        return _pairs(folder, _colours(root / "classes.json"), labelled)


def _pairs(folder: Path, colours: dict[str, tuple[int, int, int]], labelled: bool) -> Scenes:
    """Images and masks in two folders."""
    files = image_files(folder / "images") if (folder / "images").is_dir() else []
    if not files:
        raise InputError(f"{folder} holds no scenes: expected leftImg8bit or the folders images and masks.")
    places = [file.relative_to(folder / "images").with_suffix("") for file in files]
    masks = _masks(folder / "masks")
    found = [masks.get(str(place)) or masks.get(place.name) for place in places]
    if labelled and (missing := [file.name for file, mask in zip(files, found, strict=True) if mask is None]):
        raise InputError(f"{folder / 'masks'} lacks the mask of {missing[0]!r} ({len(missing)} in all).")
    known = [mask for mask in found if mask is not None]
    mask = (lambda index: _read_mask(known[index], colours)) if len(known) == len(files) else None
    origin = str(folder.resolve())
    return Scenes(lambda index: open_image(files[index]), len(files), None, tuple(colours), mask, origin=origin)


def _masks(folder: Path) -> dict[str, Path]:
    """Masks by their places below the folder, without suffixes.

    Raises:
        InputError: two of one name.
    """
    masks: dict[str, Path] = {}
    for file in image_files(folder) if folder.is_dir() else []:
        place = str(file.relative_to(folder).with_suffix(""))
        if place in masks:
            raise InputError(f"{masks[place]} and {file} are masks of one name: remove one.")
        masks[place] = file
    return masks


def evaluate(
    model: nn.Module,
    processor: object,
    scenes: Scenes,
    *,
    reference: nn.Module | None = None,
    tile: int | None = None,
    track: Track = silent,
) -> dict[str, float]:
    """Mean IoU over the classes that occur, IoU of each, pixel accuracy; with a reference the KL of its outputs.

    Outputs are scaled to the size of the mask. Scenes that cannot be read are left out and counted ("skipped").

    Args:
        tile: pixels of the sides of the squares that larger scenes are cut into; takes less memory.

    Raises:
        InputError: masks missing, of another size than their images, or with classes that the model does not know.
    """
    if scenes.mask is None:
        raise InputError("evaluation needs masks: put them into a folder masks beside images.")
    confusion: Tensor | None = None
    kl, skipped = 0.0, 0
    for index in track(range(len(scenes)), "evaluate", len(scenes)):
        try:
            image, mask = scenes.read(index), torch.as_tensor(scenes.mask(index))
        except Unreadable:
            skipped += 1
            continue
        logits = _scores(model, processor, image, tile)
        classes = logits.shape[1]
        check_scene(index, (image.height, image.width), mask, classes)
        found = intersections(_scaled(logits, *mask.shape).argmax(1)[0], mask, classes, IGNORED)
        confusion = found if confusion is None else confusion + found
        if reference is not None:
            step = max(1, round((logits[0, 0].numel() / PIXELS) ** 0.5))
            both = (_scores(reference, processor, image, tile), logits)
            rows = [x[0, :, ::step, ::step].flatten(1).T for x in both]
            kl += float(divergence(*rows))
    if confusion is None:
        raise InputError(f"none of the {len(scenes)} scenes can be read: {scenes.problem()}")
    figures = _figures(confusion, scenes.classes)
    if reference is not None:
        figures["kl"] = kl / (len(scenes) - skipped)
    return figures | ({"skipped": skipped} if skipped else {})


def check_scenes(scenes: Scenes, classes: int) -> None:
    """Refuse masks that do not fit their images or the network, all of them, before any work.

    Raises:
        InputError: names the first such scene.
    """
    if scenes.mask is None:
        raise InputError("evaluation needs masks: put them into a folder masks beside images.")
    readable = 0
    for index in range(len(scenes)):
        with contextlib.suppress(Unreadable):
            mask = torch.as_tensor(scenes.mask(index))
            # Sizes are compared where it is cheap: of the first scenes, whose images are decoded for it.
            image = scenes.read(index) if index < COMPARED else None
            check_scene(index, tuple(mask.shape) if image is None else (image.height, image.width), mask, classes)
            readable += 1
    if readable == 0:
        raise InputError(f"none of the {len(scenes)} scenes can be read: {scenes.problem()}")


def check_scene(index: int, size: tuple[int, ...], mask: Tensor, classes: int) -> None:
    """Refuse a mask that does not fit.

    Args:
        size: height and width of the image.

    Raises:
        InputError: another size, or classes that the network does not know.
    """
    if mask.shape != size:
        raise InputError(
            f"scene {index + 1} has {size[1]} x {size[0]} pixels and its mask "
            f"{' x '.join(map(str, reversed(mask.shape)))}: they do not belong together."
        )
    known = mask[mask != IGNORED]
    if not len(known):
        return
    lowest, highest = int(known.min()), int(known.max())
    if lowest < 0 or highest >= classes:
        raise InputError(
            f"scene {index + 1} has class {lowest if lowest < 0 else highest} and the model {classes} classes."
        )


def _figures(confusion: Tensor, names: Sequence[str]) -> dict[str, float]:
    hits, truth, found = confusion.diagonal(), confusion.sum(1), confusion.sum(0)
    union = truth + found - hits
    shares = {index: float(hits[index] / union[index]) for index in range(len(union)) if truth[index] > 0}
    labels = names if len(names) == len(union) else [str(index) for index in range(len(union))]
    return {
        "miou": sum(shares.values()) / max(len(shares), 1),
        "pixel-accuracy": float(hits.sum() / truth.sum().clamp_min(1)),
        **{f"iou {labels[index]}": share for index, share in shares.items()},
    }


def segment(model: nn.Module, processor: object, image: Foreign) -> Tensor:
    """The class of every pixel of an image, shape (height, width)."""
    return _scaled(_scores(model, processor, image), image.height, image.width).argmax(1)[0]


@torch.inference_mode()
def _scores(model: nn.Module, processor: Foreign, image: Foreign, tile: int | None = None) -> Tensor:
    """Shape (1, class, height, width): as the network gives them, or of all pixels where the image is cut."""
    if tile is None or max(image.size) <= tile:
        pixels = processor(images=[image], return_tensors="pt")["pixel_values"]
        with inference_mode_of(model):
            inputs = to_device({image_input(model) or "": pixels}, device_of(model))
            return answers(model(**inputs)).float().cpu()
    total, count = torch.zeros(()), torch.zeros(1, 1, image.height, image.width)
    for top in _starts(image.height, tile):
        for left in _starts(image.width, tile):
            part = image.crop((left, top, min(left + tile, image.width), min(top + tile, image.height)))
            found = _scaled(_scores(model, processor, part), part.height, part.width)
            if not total.dim():
                total = found.new_zeros(1, found.shape[1], image.height, image.width)
            place = (..., slice(top, top + part.height), slice(left, left + part.width))
            total[place] += found.log_softmax(1)
            count[place] += 1
    return total / count


def _starts(size: int, tile: int) -> list[int]:
    """Where tiles begin that cover `size` pixels and overlap evenly, by a quarter at least."""
    if size <= tile:
        return [0]
    count = -(-(size - tile) // max(1, tile * 3 // 4)) + 1
    return [round(index * (size - tile) / (count - 1)) for index in range(count)]


def _scaled(scores: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(scores, (height, width), mode="bilinear", align_corners=False)


def _cityscapes(root: Path, folder: Path, labelled: bool) -> Scenes:
    files = sorted(folder.rglob("*_leftImg8bit.png"))
    if not files:
        raise InputError(f"{folder} holds no *_leftImg8bit.png.")
    truth = root / "gtFine" / folder.name
    suffix = "_gtFine_labelIds.png"
    masks = {file.name.removesuffix(suffix): file for file in truth.rglob(f"*{suffix}")}
    stems = [file.name.removesuffix("_leftImg8bit.png") for file in files]
    if labelled and (missing := [stem for stem in stems if stem not in masks]):
        raise InputError(f"{truth} lacks the mask of {missing[0]!r} ({len(missing)} in all).")
    complete = all(stem in masks for stem in stems)
    mask = (lambda index: _cityscapes_mask(masks[stems[index]])) if complete else None
    names, origin = tuple(CITYSCAPES.values()), str(folder.resolve())
    return Scenes(lambda index: open_image(files[index]), len(files), None, names, mask, origin=origin)


def _cityscapes_mask(file: Path) -> object:
    values = mask_values(file)
    if values.ndim != 2 or values.min() < 0 or values.max() > IGNORED:
        raise InputError(f"{file} is no mask of Cityscapes: expected one number from 0 to 255 for every pixel.")
    table = np.full(IGNORED + 1, IGNORED, np.int64)
    table[list(CITYSCAPES)] = range(len(CITYSCAPES))
    return table[values]


def _colours(file: Path) -> dict[str, tuple[int, int, int]]:
    """Class names and their colours, in the order of the classes; empty if there is no such file."""
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)
        colours = {str(name): _colour(value) for name, value in found.items()}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{file} must map class names to colours [red, green, blue]: {first_line(error)}") from error
    if len(set(colours.values())) < len(colours):
        raise InputError(f"{file} gives two classes one colour: a mask could not tell them apart.")
    return colours


def _colour(value: Foreign) -> tuple[int, int, int]:
    red, green, blue = value
    if not all(type(part) is int and 0 <= part <= 255 for part in (red, green, blue)):
        raise ValueError(f"{shown(value)} is no colour")
    return red, green, blue


def _read_mask(file: Path, colours: dict[str, tuple[int, int, int]]) -> object:
    pixels = mask_values(file)
    if pixels.ndim == 2:
        return pixels.astype(np.int64)
    if not colours:
        raise InputError(f"the mask {file} is coloured: name its colours in classes.json beside images and masks.")
    codes = pixels[..., :3].astype(np.int64) @ np.array([65536, 256, 1])
    mask = np.full(codes.shape, -1, np.int64)
    for index, (red, green, blue) in enumerate(colours.values()):
        mask[codes == 65536 * red + 256 * green + blue] = index
    if (unknown := codes[mask < 0]).size:
        code = int(unknown[0])
        colour = [code // 65536, code // 256 % 256, code % 256]
        raise InputError(f"the mask {file} has the colour {colour}, which classes.json does not name.")
    return mask
