"""Removal curves on disk: safetensors beside a JSON file that says what they are."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..errors import CheckpointError, InputError, first_line
from ..space.scores import Curve, Scores
from ..support.files import given, json_text, read_json, write_text
from ..support.folders import mark, new_folder
from ..support.untyped import Figures, Foreign

SCORES = "scores"  # kind of result; beside a network they lie in a folder of that name


def save_scores(scores: Scores, folder: str | Path, *, overwrite: bool = False) -> Path:
    """Write removal curves as safetensors beside a JSON file that says what they are.

        optin.save_scores(scores, "scores")

    Args:
        overwrite: replace scores that optin wrote there.

    Raises:
        InputError: the folder is not empty.
        CheckpointError: it cannot be written.
    """
    with new_folder(given(folder), SCORES, overwrite) as work:
        _write_scores(scores, work)
    return Path(folder)


def keep_scores(scores: Scores, work: Path) -> None:
    """Put scores into a folder of another result that is being written."""
    folder = work / SCORES
    folder.mkdir()
    _write_scores(scores, folder)
    mark(folder, SCORES)


def _write_scores(scores: Scores, folder: Path) -> None:
    tensors = {}
    for name, curve in scores.curves.items():
        tensors[f"{name}/order"], tensors[f"{name}/cost"] = curve.order.contiguous(), curve.cost.contiguous()
    if scores.tokens is not None:
        tensors["tokens"] = scores.tokens.contiguous()
    tensors |= {f"{name}/gradients": value.contiguous() for name, value in scores.gradients.items()}
    save_file(tensors, folder / "scores.safetensors")
    description = {
        "architecture": scores.architecture,
        "length": scores.length,
        **({} if scores.width is None else {"width": scores.width}),
        "groups": {name: len(curve.order) for name, curve in scores.curves.items()},
        "provenance": scores.provenance,
    }
    write_text(folder / "scores.json", json_text(description))


def load_scores(folder: str | Path) -> Scores:
    """Read what `save_scores` wrote. Input is not trusted.

        scores = optin.load_scores("scores")

    Raises:
        InputError: no such files, or scores that do not say which network they are of.
        CheckpointError: damaged or inconsistent files.
    """
    path = given(folder)
    file = path / "scores.safetensors"
    description = read_json(path / "scores.json")
    try:
        found = _described(description)
        if not file.is_file():
            raise InputError(f"no such file: {file}")
        with safe_open(file, "pt") as handle:
            stored = set(handle.keys())
            curves = {name: _curve(handle, name, size) for name, size in description["groups"].items()}
            tokens = handle.get_tensor("tokens") if "tokens" in stored else None
            gradients = {
                name: handle.get_tensor(f"{name}/gradients") for name in curves if f"{name}/gradients" in stored
            }
    except (SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"the scores in {path} are damaged: {first_line(error)}. Score again.") from None
    for name, value in gradients.items():
        if value.shape[1:] != (len(curves[name].order),) or not bool(torch.isfinite(value).all()):
            raise CheckpointError(f"the scores in {path} are damaged: their gradients do not fit. Score again.")
    if tokens is not None and not (tokens.dim() == 2 and bool(torch.isfinite(tokens).all())):
        raise CheckpointError(f"the scores in {path} are damaged: no finite table of token costs. Score again.")
    if not isinstance(found["provenance"].get("network"), str):
        raise InputError(
            f"the scores in {path} do not say which weights they are of (scores of optin 0.1.0): score again."
        )
    return Scores(curves=curves, tokens=tokens, gradients=gradients, **found)


def _described(description: object) -> Figures:
    """What is in scores.json beside the groups; ValueError where something is of another type."""
    kinds = {"architecture": str, "length": int, "groups": dict, "provenance": dict, "width": int}
    if not isinstance(description, dict):
        raise ValueError("scores.json is no mapping")
    for name, kind in kinds.items():
        value = description.get(name)
        if type(value) is not kind and not (name == "width" and name not in description):
            raise ValueError(f"{name!r} must be {kind.__name__}")
        if kind is int and name in description and not 0 < description[name] <= 10**7:
            raise ValueError(f"{name!r} must be a length")
    return {name: description[name] for name in kinds if name != "groups" and name in description}


def _curve(handle: Foreign, name: str, size: object) -> Curve:
    """One removal curve; ValueError where it is none of so many units. Shapes are looked at before a value is."""
    shapes = [handle.get_slice(f"{name}/{part}").get_shape() for part in ("order", "cost")]
    if type(size) is not int or size < 1 or shapes != [[size], [size + 1]]:
        raise ValueError(f"{name!r:.60} holds no removal curve of {size!r:.40} units")
    curve = Curve(handle.get_tensor(f"{name}/order"), handle.get_tensor(f"{name}/cost"))
    ordered = curve.order.dtype == torch.int64 and torch.equal(curve.order.sort().values, torch.arange(size))
    costed = curve.cost.dtype == torch.float64 and bool(torch.isfinite(curve.cost).all())
    if not (ordered and costed):
        raise ValueError(f"{name!r:.60} holds no removal curve of {size} units")
    return curve
