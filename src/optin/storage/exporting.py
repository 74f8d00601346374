"""Networks out of Python: to ONNX, OpenVINO and torch.export, each compared with the network that it was made of.

One trace of `torch.export` serves every format; the number of examples stays free, and of texts their length, where
the network lets it.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..describing.inputs import completed, max_positions
from ..errors import CheckpointError, DependencyError, InputError, OptinError, first_line, unknown
from ..running.batch import Batch, size_of, split, without_labels
from ..running.merging import merging_of
from ..running.modules import call, inference_mode_of
from ..support.files import given, json_text, write_text
from ..support.folders import check_new, new_folder, scratch_beside
from ..support.progress import Track, silent
from ..support.untyped import Figures, Foreign
from .formats import FORMATS, Traced
from .runtimes import DESCRIPTION, open_exported
from .saving import save_configuration
from .silenced import silenced

EXPORT = "export"  # kind of result
TOLERANCE = 1e-4  # of the largest output, or of 1 if that is more


class _ByPlace(nn.Module):
    """A network with inputs and outputs by their place instead of their name."""

    def __init__(self, network: nn.Module, inputs: tuple[str, ...], outputs: tuple[str, ...] | None) -> None:
        super().__init__()
        self.network, self.inputs, self.outputs = network, inputs, outputs

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        found = call(self.network, dict(zip(self.inputs, values, strict=True)))
        return (found,) if self.outputs is None else tuple(found[name] for name in self.outputs)


def export(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    folder: str | Path,
    to: str = "onnx",
    preprocessor: object = None,
    *,
    overwrite: bool = False,
) -> Figures:
    """Write a network for another runtime, and compare the outputs there with its own.

        found = optin.export(result.model, batch, "onnx")
        found["difference"], found["file"]

    Args:
        model: on the CPU, in float32 or float64, as these runtimes take it.
        batch: real inputs, by which the network is traced and compared; at least two examples. Of images and merged
            tokens only those of this size will do afterwards; texts that are of one length here (of an encoder and
            its decoder, say) will have to be so then.
        to: "onnx", "onnx-int8" (weights and activations of linear maps in 8 bits), "openvino" or "torch-export".
        preprocessor: a tokenizer or image processor to write beside it.
        overwrite: replace an earlier export in the folder.

    Returns:
        "format", "file", "bytes", "fixed" (the inputs whose second axis keeps its size, though it might be the length
        of a text), "difference": the largest, of all outputs on `batch` and on one shorter example.
        Where tokens merge it is that of the median example: of similarities that are equal up to rounding, another
        runtime may take another first, and the example comes out otherwise.

    Raises:
        InputError: an unknown format, too few examples, a folder that is not empty, inputs that are no tensors, or
            a network that cannot be traced or written.
        OptinError: the exported network computes something else; nothing is written.
        DependencyError: a package is missing.
    """
    (figures,) = export_all(model, batch, {to: given(folder)}, preprocessor, overwrite=overwrite)
    return figures


def export_all(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    targets: Mapping[str, Path],
    preprocessor: Foreign = None,
    track: Track = silent,
    overwrite: bool = False,
) -> Iterator[Figures]:
    """`export` to a folder per format, from one trace."""
    inputs = _inputs(model, batch)
    check_formats(targets)
    _check(model, inputs)
    for target in targets.values():
        check_new(target, EXPORT, overwrite)
    _check_space(model, list(targets.values()))
    beside = next(iter(targets.values()))
    with scratch_beside(beside, EXPORT) as scratch, inference_mode_of(model), torch.no_grad(), _silence():
        answer = _answer(model, inputs)
        single, names = _outputs(answer)
        program = _trace(_ByPlace(model, tuple(inputs), None if single else names), inputs, _longest(model))
        fixed = _fixed(program, inputs)
        samples = [inputs, _shorter(inputs, fixed)]
        expected = [answer, _answer(model, samples[1])]
        traced = Traced(program, list(inputs), list(names), scratch)
        for to, target in track(targets.items(), "export", len(targets)):
            form = FORMATS[to]
            description = {"format": to, "inputs": traced.inputs, "outputs": traced.outputs, "single": single}
            with new_folder(target, EXPORT, overwrite) as work:
                save_configuration(model, work)
                if preprocessor is not None:
                    preprocessor.save_pretrained(work)
                write_text(work / DESCRIPTION, json_text(description))
                _write(traced, work, to)
                other = open_exported(work, trusted=True)
                apart = torch.cat([_apart(e, other(**x)) for e, x in zip(expected, samples, strict=True)])
                difference = float(apart.median() if merging_of(model) else apart.max())
                if form.exact and not difference <= TOLERANCE:
                    raise OptinError(
                        f"the network exported to {to} differs from the original by {difference:.1e}, more than "
                        f"{TOLERANCE:g}. Nothing was written; please report this network."
                    )
                write_text(work / DESCRIPTION, json_text({**description, "difference": difference}))
            size = sum(file.stat().st_size for file in target.glob(f"{Path(form.file).stem}.*"))
            file = str(target / form.file)
            yield {"format": to, "file": file, "bytes": size, "fixed": fixed, "difference": difference}


def check_formats(formats: Iterable[str]) -> None:
    """Refuse formats that are not known, or whose packages are not there.

    Raises:
        InputError: no such format.
        DependencyError: names the package.
    """
    for to in formats:
        if to not in FORMATS:
            raise InputError(unknown("format", str(to), FORMATS))
        _check_packages(to)


def _inputs(model: nn.Module, batch: object) -> Batch:
    """The tensors of a batch, without labels but with what a decoder makes of them, as the network takes them.

    Raises:
        InputError: it is no mapping of tensors.
    """
    if not isinstance(batch, Mapping):
        raise InputError(f"a batch must be a mapping of the network's inputs, not {type(batch).__name__}.")
    inputs = without_labels(completed(model, dict(batch)))
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise InputError(f"the input {name!r:.60} must be a tensor of examples, not {type(value).__name__}.")
    if not inputs:
        raise InputError("the batch holds no inputs.")
    return inputs


def _check_space(model: nn.Module, places: Iterable[Path]) -> None:
    """Whether the weights fit where they are written: some libraries end the process where a disk is full."""
    needed = 2 * sum(value.nbytes for value in model.state_dict().values() if isinstance(value, Tensor))
    for place in places:
        there = next(folder for folder in (place, *place.resolve().parents) if folder.is_dir())
        if shutil.disk_usage(there).free < needed:
            raise CheckpointError(f"cannot write {place}: the disk is full, and {needed:,} bytes are needed.")


def _check(model: nn.Module, inputs: Batch) -> None:
    """Everything that can be said before the network runs."""
    if size_of(inputs) < 2:
        raise InputError("an export needs at least two examples, to tell their number from a constant.")
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype not in (torch.float32, torch.float64):
        raise InputError(
            f"a network on {weight.device} in {weight.dtype} cannot be exported: pass model.to('cpu', torch.float32)."
        )


def _check_packages(to: str) -> None:
    for package in FORMATS[to].packages:
        try:
            importlib.import_module(package)
        except ImportError:
            raise DependencyError(f"this needs the package {package!r}: pip install 'optin[export]'") from None


def _answer(model: nn.Module, sample: Batch) -> object:
    try:
        return call(model, sample)
    except (ValueError, RuntimeError, TypeError, IndexError, KeyError) as error:
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in sample.items())
        raise InputError(f"the network does not take the inputs {shapes}: {first_line(error)}") from error


def _outputs(found: object) -> tuple[bool, tuple[str, ...]]:
    """Whether a network returned one tensor, and the names of its outputs."""
    if isinstance(found, Tensor):
        return True, ("output",)
    if not isinstance(found, Mapping):
        raise InputError(
            f"a network that returns a {type(found).__name__} cannot be exported: return outputs by name."
        )
    return False, tuple(name for name, value in found.items() if isinstance(value, Tensor))


def _longest(model: nn.Module) -> int | None:
    """Tokens at most; where positions are relative and any length would do, as many as the network was made for."""
    config: object = getattr(model, "config", None)
    limit: int | None = max_positions(model) or getattr(config, "max_position_embeddings", None)
    return limit


def _trace(network: nn.Module, inputs: Batch, limit: int | None) -> Foreign:
    """The operations of a network, for any number of examples; for texts of any length, or of those that it takes."""
    examples, sizes = torch.export.Dim("batch"), {value.shape[1] for value in inputs.values() if value.dim() == 2}
    lengths = {size: torch.export.Dim(f"length_{place}", max=limit) for place, size in enumerate(sorted(sizes))}
    for of in (lengths, dict.fromkeys(sizes, torch.export.Dim.AUTO)):
        axes = tuple({0: examples} | ({1: of[x.shape[1]]} if x.dim() == 2 else {}) for x in inputs.values())
        try:
            return torch.export.export(network, tuple(inputs.values()), dynamic_shapes=(axes,), strict=False)
        except OptinError:
            raise
        except Exception as error:  # whatever the forward meets
            refused = error
    raise InputError(f"this network cannot be traced by torch.export: {first_line(refused)}") from refused


def _fixed(program: Foreign, inputs: Batch) -> list[str]:
    """The inputs with a second axis and no third that keeps its size."""
    from torch.fx.experimental.symbolic_shapes import free_symbols

    values = {node.name: node.meta["val"] for node in program.graph.nodes if node.op == "placeholder"}
    traced = zip(inputs, program.graph_signature.user_inputs, strict=True)
    return [name for name, key in traced if values[key].dim() == 2 and not free_symbols(values[key].shape[1])]


def _write(traced: Traced, folder: Path, to: str) -> None:
    try:
        FORMATS[to].write(traced, folder / FORMATS[to].file)
    except (OSError, OptinError):
        raise  # of the disk
    except Exception as error:  # the exporters share no class of errors
        raise InputError(f"this network cannot be written as {to}: {first_line(error)}") from error


def _shorter(inputs: Batch, fixed: Collection[str]) -> Batch:
    """The first example alone; of a text its first half, so that another length is tried as well."""
    one = next(split(inputs, 1))
    if "attention_mask" not in one:
        return one
    texts = [name for name, value in one.items() if value.dim() == 2 and name not in fixed]
    halves = {one[name].shape[1]: max(2, one[name].shape[1] // 2) for name in texts}
    halves[one["attention_mask"].shape[1]] = max(2, int(one["attention_mask"].sum()) // 2)
    return {name: value[:, : halves[value.shape[1]]] if name in texts else value for name, value in one.items()}


def _apart(expected: Foreign, got: Foreign) -> Tensor:
    """How far each example is from what was expected, in the output that is furthest: shape (example,)."""
    pairs = [(expected, got)] if isinstance(expected, Tensor) else [(expected[name], got[name]) for name in got]
    return torch.stack([_rows(a - b) / a.abs().max().clamp(min=1) for a, b in pairs]).amax(0)


def _rows(value: Tensor) -> Tensor:
    """The largest magnitude in each example: shape (example,)."""
    return value.abs().reshape(len(value), -1).amax(1)


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """The exporters tell much that a user can do nothing about; what is wrong with the result is measured."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), silenced():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
