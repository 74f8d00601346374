"""`optin export`: a network in other runtimes, compared with itself and timed beside itself."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..describing.inputs import example_inputs, image_input
from ..errors import InputError
from ..recipe import Recipe
from ..running.batch import Batch
from ..storage.exporting import EXPORT, check_formats, export_all
from ..storage.planned import input_shape, section_of
from ..storage.runtimes import open_exported
from ..support.files import given
from ..support.folders import check_new
from ..support.progress import Track, silent
from ..support.untyped import Figures
from ..tasks import load_processor, load_tokenizer, task_spec
from .benchmark import side_by_side
from .placement import Job, Placement, as_pooled, local
from .quality import evaluated, measure, measured_on


def run_export(
    source: str,
    formats: Sequence[str],
    recipe: Recipe,
    placement: Placement,
    *,
    out: Path | None = None,
    batch: int = 8,
    reference: str | None = None,
    quality: bool = True,
    track: Track = silent,
    overwrite: bool = False,
) -> Figures:
    """`optin export`: a network in other runtimes, compared with itself and timed beside itself.

    With data, inputs are real.

    Args:
        out: one folder per format is made there; in the network's own folder if not given.
        batch: examples in the forward that is timed.
        reference: the dense network, exported for the time of the run, timed and evaluated as well.
        quality: with data, evaluate the network in every runtime.
    """
    source, reference = local(source), None if reference is None else local(reference)
    home = Path(source) if out is None else given(out)
    if out is None and not home.is_dir():
        raise InputError(f"{source} is no folder here. For a network of the hub say where to, with --out.")
    check_formats(formats)
    # Formats may lie in the network's own folder, and nowhere else in what is read.
    inputs = [recipe.task.data, reference, None if home.resolve() == Path(source).resolve() else source]
    for name in formats:
        check_new(home / name, EXPORT, overwrite, inputs)
    model, preprocessor, batch_inputs = _export_inputs(source, recipe, placement, batch)
    spec = task_spec(recipe.task.name)
    real = recipe.task.data is not None
    found = evaluated(recipe) if real and quality else None
    recipe = as_pooled(recipe, preprocessor)
    examples = None if found is None else measured_on(model, preprocessor, recipe, found)
    with tempfile.TemporaryDirectory() as scratch:
        places = {"pruned" if section_of(model) else "given": (model, home)}
        if reference is not None:
            places = {"dense": (placement.load(reference, spec.kind), Path(scratch)), **places}
        rows: list[dict[str, object]] = []
        networks: list[nn.Module] = []
        for network, (original, place) in places.items():
            rows.append({"network": network, "runtime": "torch"})
            networks.append(original)
            targets = {name: place / name for name in formats}
            for figures in export_all(original, batch_inputs, targets, preprocessor, track, overwrite):
                name = figures.pop("format")
                rows.append({"network": network, "runtime": name, **figures})
                networks.append(open_exported(place / name, trusted=True))
        times = side_by_side(networks, batch_inputs, track=track)
        for row, runnable, measured in zip(rows, networks, zip(*times, strict=True), strict=True):
            row["ms"] = statistics.median(measured)
            if examples is not None:
                row |= measure(runnable, preprocessor, recipe, examples, networks[0], track)
    shape = " x ".join(str(size) for size in next(iter(batch_inputs.values())).shape)
    return {"inputs": f"{shape}, {'real' if real else 'random'}", "rows": rows}


def _export_inputs(source: str, recipe: Recipe, placement: Placement, batch: int) -> tuple[nn.Module, object, Batch]:
    """The network, what prepares its inputs if that is known, and inputs: of the data, or random without any."""
    if recipe.task.data is not None:
        options = {"model": source, "calibration__examples": batch, "calibration__batch_size": batch}
        job = Job.of(recipe.override(**options), placement)
        return job.model, job.preprocessor, next(iter(job.batches))
    model = placement.load(source)
    try:
        preprocessor = load_processor(source) if image_input(model) else load_tokenizer(source)
    except InputError:
        preprocessor = None
    length, width = input_shape(model)
    return model, preprocessor, example_inputs(model, length, batch, width)
