"""Pictures: which units stayed, which tokens merge in an image, how scenes are segmented, quality against MACs."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from ..describing import describe
from ..describing.inputs import image_input
from ..errors import DependencyError, InputError
from ..running.batch import to_device
from ..running.merging import merging_of
from ..running.modules import device_of, inference_mode_of
from ..space.plans import Plan
from ..storage.loading import manifest
from ..storage.report import measured
from ..support.files import given, write_bytes
from ..support.folders import add_files, check_file, new_folder, read_marker
from ..support.untyped import Foreign
from ..tasks import Images, Kind, Scenes, load_model, load_processor
from ..tasks.images import Unreadable
from ..tasks.segmentation import IGNORED, segment
from ..tasks.specs import SCENES
from ..tasks.vision import encode

# Okabe and Ito, Color Universal Design, 2008; each with a mark of its own.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
LOSSES = ("kl",)  # figures that climb by orders

MOST_FIGURES = 4  # of a task that are drawn side by side
Load = Callable[[str, Kind | None], nn.Module]
CELLS = 96  # columns that a layer's neurons are gathered into


PICTURES_KIND = "pictures"  # of result


def draw(
    folder: str | Path,
    out: str | Path,
    images: object = None,
    count: int = 4,
    reference: nn.Module | None = None,
    *,
    load: Load = load_model,
    overwrite: bool = False,
) -> list[Path]:
    """Draw a pruned checkpoint: kept.svg, and for the first images tokens-N.png or scene-N.png.

    Args:
        images: `optin.tasks.Images`, to show merged tokens on, or `optin.tasks.Scenes`, to segment.
        reference: the dense network, to segment the same scenes.
        load: gets the pruned one, where it is to run.
        overwrite: replace earlier pictures in `out`. In the checkpoint's own folder they are always replaced, and
            nothing else ever is.

    Raises:
        InputError: no such checkpoint, or a folder that holds something else.
        DependencyError: matplotlib is not installed.
    """
    source, target = given(folder).resolve(), given(out).resolve()
    plan = Plan.from_dict(manifest(source))
    check_pictures()
    if target != source:
        with new_folder(target, PICTURES_KIND, overwrite) as work:
            names = [path.name for path in _drawn(source, plan, work, images, count, reference, load)]
        return [Path(out) / name for name in names]
    with tempfile.TemporaryDirectory() as scratch:
        drawn = _drawn(source, plan, Path(scratch), images, count, reference, load)
        _, ours = read_marker(source)
        for path in drawn:
            check_file(source / path.name, path.name in ours, overwrite=True)
        for path in drawn:
            write_bytes(source / path.name, path.read_bytes())
        add_files(source, [path.name for path in drawn])
        return [source / path.name for path in drawn]


def _drawn(
    source: Path, plan: Plan, target: Path, images: Foreign, count: int, reference: nn.Module | None, load: Load
) -> list[Path]:
    written = [draw_units(plan, target / "kept.svg")]
    if isinstance(images, Scenes):
        model, processor = load(str(source), SCENES), load_processor(str(source))
        for index, image in _readable(images, count):
            found = {"truth": torch.as_tensor(images.mask(index))} if images.mask else {}
            if reference is not None:
                found["dense"] = segment(reference, processor, image)
            found["pruned"] = segment(model, processor, image)
            written.append(draw_scene(image, found, images.classes, target / f"scene-{index}.png"))
    elif images is not None and any(plan.tokens):
        model, processor = load(str(source), None), load_processor(str(source))
        for index, image in _readable(images, count):
            batch, _ = encode(processor, images, [index], image_input(model) or "")
            groups = merged_groups(model, batch)
            written.append(draw_tokens(image, groups, target / f"tokens-{index}.png"))
    return written


def _readable(images: Images, count: int) -> Iterator[tuple[int, object]]:
    """The first images, with their indices; those that cannot be read are passed over."""
    for index in range(len(images)):
        if count == 0:
            return
        try:
            image = images.read(index)
        except Unreadable:
            continue
        yield index, image
        count -= 1


def _kind(plan: Plan, name: str) -> str:
    """Of the units of a group; plans of version 0.1.0 say it by the name alone."""
    if plan.description is not None and name in plan.description.by_name:
        return plan.description[name].of.plural
    role = name.rpartition(".")[2]
    return role if role in ("heads", "neurons") else "channels"


def _block(name: str) -> str:
    """The numbers in the name of a group, which tell blocks apart; the name where it has none."""
    return ".".join(re.findall(r"(?<=\.)\d+(?=\.)", name)) or name


def draw_units(plan: Plan, path: Path) -> Path:
    """One row per layer: a square for each head, filled if it stayed; neurons and channels as shares that stayed."""
    pyplot = styled()
    if not plan.keep:
        raise InputError("the plan names no units: there is nothing to draw.")
    kinds: dict[str, list[str]] = {"heads": [], "neurons": [], "channels": []}
    for name in plan.keep:
        kinds[_kind(plan, name)].append(name)
    kinds = {kind: names for kind, names in kinds.items() if names}
    rows = max(len(names) for names in kinds.values())
    widths = {"width_ratios": [1 if kind == "heads" else 3 for kind in kinds]}
    figure, row_of_axes = pyplot.subplots(
        1, len(kinds), figsize=(11, 1.2 + 0.28 * rows), gridspec_kw=widths, layout="constrained", squeeze=False
    )
    axes = row_of_axes[0]
    for axis, (kind, names) in zip(axes, kinds.items(), strict=True):
        columns = min(CELLS, max(plan.sizes[name] for name in names))
        picture = np.full((len(names), columns), np.nan)
        for row, name in enumerate(names):
            stays = np.zeros(plan.sizes[name])
            stays[list(plan.keep[name])] = 1
            cells = np.array_split(stays, min(columns, len(stays)))
            picture[row, : len(cells)] = [cell.mean() for cell in cells]
        axis.imshow(picture, aspect="auto", cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
        axis.grid(visible=False)
        labels = names if kind == "channels" else list(map(_block, names))
        labels = [label.replace("$", r"\$") for label in labels]  # which begins a formula
        axis.set_yticks(range(len(names)), labels)
        axis.set_xticks([])
        kept, of = (sum(values[name] for name in names) for values in (plan.kept, plan.sizes))
        axis.set_title(f"{kind}: {kept:,} of {of:,} stayed")
    axes[0].set_ylabel("layer")
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return path


def draw_tokens(image: Foreign, groups: Tensor, path: Path) -> Path:
    """An image, and beside it the same with every group of merged patches in its mean colour, outlined.

    Args:
        image: `PIL.Image` in RGB.
        groups: shape (rows, columns): the token that stands for each patch.
    """
    pyplot = styled()
    rows, columns = groups.shape
    pixels = np.asarray(image.resize((columns * 16, rows * 16)), dtype=np.float32) / 255
    map_ = groups.numpy().repeat(16, 0).repeat(16, 1)
    merged = np.empty_like(pixels)
    for group in np.unique(map_):
        merged[map_ == group] = pixels[map_ == group].mean(0)
    edges = np.zeros(map_.shape, bool)
    edges[1:] |= map_[1:] != map_[:-1]
    edges[:, 1:] |= map_[:, 1:] != map_[:, :-1]
    merged[edges] = (1, 1, 1)
    figure, axes = pyplot.subplots(1, 2, figsize=(8, 4.4), layout="constrained")
    for axis, picture, title in (
        (axes[0], pixels, f"{groups.numel()} patches"),
        (axes[1], merged, f"{len(groups.unique())} tokens at the end"),
    ):
        axis.imshow(picture)
        axis.set_title(title)
        axis.axis("off")
    figure.savefig(path)
    pyplot.close(figure)
    return path


def draw_scene(image: object, found: Mapping[str, Tensor], names: Sequence[str], path: Path) -> Path:
    """An image and its segmentations side by side; last, where the dense and the pruned network differ.

    Args:
        image: `PIL.Image` in RGB.
        found: the class of every pixel by title ("truth", "dense", "pruned"), shape (height, width).
        names: of the classes, for the legend.
    """
    pyplot = styled()
    palette = pyplot.get_cmap("tab20")
    pictures = {
        title: palette(classes.numpy() % 20)[..., :3] * (classes != IGNORED).numpy()[..., None]
        for title, classes in found.items()
    }
    if {"dense", "pruned"} <= found.keys():
        apart = (found["dense"] != found["pruned"]).numpy()
        pictures[f"difference: {100 * apart.mean():.1f} %"] = pictures["pruned"] * apart[..., None]
    pictures = {"image": np.asarray(image), **pictures}
    figure, axes = pyplot.subplots(1, len(pictures), figsize=(3 * len(pictures), 3.6), layout="constrained")
    for axis, (title, picture) in zip(axes, pictures.items(), strict=True):
        axis.imshow(picture, interpolation="nearest")
        axis.set_title(title)
        axis.axis("off")
    present = sorted({int(value) for classes in found.values() for value in classes.unique()} - {IGNORED})
    labels = [names[index] if index < len(names) else str(index) for index in present]
    patches = [pyplot.Rectangle((0, 0), 1, 1, color=palette(index % 20)) for index in present]
    figure.legend(patches, labels, loc="outside lower center", ncols=8, fontsize=8, frameon=False)
    figure.savefig(path)
    pyplot.close(figure)
    return path


def draw_sweep(found: Mapping[str, Foreign], path: Path) -> Path:
    """Every figure of a sweep against the share of the MACs, the dense network's as a line.

    Args:
        found: what `optin sweep` stores: "dense", the figures of the dense network, and "points", with "macs".
    """
    pyplot = styled()
    points = sorted(found["points"], key=lambda point: float(point["macs"]))
    names = measured(points)[:MOST_FIGURES]
    if not names:
        raise InputError("the points of this sweep hold no figures: there is nothing to draw.")
    figure, axes = pyplot.subplots(1, len(names), figsize=(4 * len(names), 3.2), layout="constrained", squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        axis.plot([100 * point["macs"] for point in points], [point[name] for point in points])
        if name in LOSSES and all(point[name] > 0 for point in points):
            axis.set_yscale("log")
        if found["dense"].get(name) is not None:
            axis.axhline(found["dense"][name], color="grey", linestyle="--", marker="", label="dense")
            axis.legend()
        axis.set_xlabel("MACs, % of the dense network's")
        axis.set_title(name)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
    pyplot.close(figure)
    return path


@torch.inference_mode()
def merged_groups(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Shape (rows, columns): which token stands for each patch of one image at the end of the network.

    Raises:
        InputError: no tokens merge in this network, or its patches form no square.
    """
    merging, space = merging_of(model), describe(model).tokens
    if merging is None or space is None:
        raise InputError("no tokens merge in this network: prune it with --preset tau.")
    with inference_mode_of(model):
        model(**to_device(batch, device_of(model)))
    assert merging.places is not None
    patches = merging.places[0, space.protected :].cpu()
    side = round(len(patches) ** 0.5)
    if side * side != len(patches):
        raise InputError(f"the {len(patches)} patches of this image form no square: nothing to draw them on.")
    return patches.view(side, side)


def check_pictures() -> None:
    """Refuse before any work what could not be drawn after it.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    styled()


def styled() -> Foreign:
    """`matplotlib.pyplot` in the style of all pictures: on white, in colours that the colour-blind tell apart.

    Raises:
        DependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib
    except ImportError:
        raise DependencyError("pictures need the package 'matplotlib': pip install 'optin[pictures]'") from None
    matplotlib.use("Agg")
    from cycler import cycler
    from matplotlib import pyplot

    lines = cycler(color=COLOURS) + cycler(marker=MARKERS)
    style = {
        "svg.hashsalt": "optin",  # the same picture gives the same file
        "savefig.facecolor": "white",
        "axes.prop_cycle": lines,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": "#dddddd",
        "grid.linewidth": 0.6,
        "lines.markersize": 4,
        "lines.linewidth": 1.5,
        "legend.frameon": False,
        "legend.fontsize": 8,
        "axes.titlesize": 10,
    }
    pyplot.style.use(style)
    return pyplot
