"""Exported networks, run by ONNX Runtime, OpenVINO or torch as if they were the network that they were made of.

A folder that `exporting` wrote holds the file of its format, configuration and preprocessor of the network, and
export.json, which says what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DependencyError, InputError, first_line, unknown
from ..support.files import given, read_json
from ..support.untyped import Foreign, Json
from .silenced import silenced
from .untrusted import check_sizes

DESCRIPTION = "export.json"
FILES = {
    "onnx": "model.onnx",
    "onnx-int8": "model_quantized.onnx",
    "openvino": "openvino_model.xml",
    "torch-export": "model.pt2",
}
_DEFAULTS = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}
Run = Callable[[Sequence[Tensor]], Sequence[object]]  # inputs in their order to outputs in theirs


class Runtime(nn.Module):
    """An exported network in the place of the dense or pruned one: the same keyword inputs, the same outputs.

    Attributes:
        config: of the network, if it is one of transformers.
        input_names, output_names: in the order of the file.
        single: the network returns one tensor and not outputs by name.
    """

    def __init__(self, folder: Path, description: Mapping[str, Json], run: Run) -> None:
        super().__init__()
        self.config = _config(folder)
        self.input_names: tuple[str, ...] = tuple(description["inputs"])
        self.output_names: tuple[str, ...] = tuple(description["outputs"])
        self.single = bool(description["single"])
        self._run = run
        # Inputs are moved to the device of the first parameter, and these files take theirs from the host.
        self.host = nn.Parameter(torch.empty(0), requires_grad=False)

    def forward(self, **inputs: Tensor) -> Foreign:
        """What the network returns; its inputs are those of `input_names`, others are left out.

        Masks and token types that are not given are those that networks take then: ones and zeros.

        Raises:
            InputError: an input is missing.
        """
        from transformers.utils.generic import ModelOutput

        if (ids := inputs.get("input_ids")) is not None:
            inputs = {name: fill(ids) for name, fill in _DEFAULTS.items()} | inputs
        if missing := [name for name in self.input_names if name not in inputs]:
            raise InputError(f"this exported network takes {', '.join(self.input_names)}; {missing[0]!r} is missing.")
        found = [torch.as_tensor(value) for value in self._run([inputs[name] for name in self.input_names])]
        return found[0] if self.single else ModelOutput(dict(zip(self.output_names, found, strict=True)))


def of_export(folder: Path) -> bool:
    """Whether a folder holds an exported network."""
    return (folder / DESCRIPTION).is_file()


def open_exported(folder: str | Path, *, trusted: bool = False) -> Runtime:
    """Open what `optin.export` wrote, on as many threads as torch uses.

    Args:
        trusted: needed for torch-export, whose files are loaded by unpickling: they can run any code.

    Raises:
        InputError: no such folder, an unknown format, or a torch-export that is not trusted.
        CheckpointError: the file is damaged.
        DependencyError: the runtime is not installed.
    """
    path = given(folder)
    description = read_json(path / DESCRIPTION)
    kind = description.get("format") if isinstance(description, dict) else None
    if not isinstance(kind, str) or kind not in FILES:
        raise InputError(unknown("format", f"{kind}"[:60], FILES))
    known = _names(description.get("inputs")) and _names(description.get("outputs"))
    if not (known and isinstance(description.get("single"), bool)):
        raise CheckpointError(f"{path / DESCRIPTION} does not say which tensors go in and out.")
    file = path / FILES[kind]
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    if kind == "torch-export" and not trusted:
        raise InputError(
            f"{file} is loaded by unpickling, which can run any code. If you trust it: "
            "optin.open_exported(folder, trusted=True)."
        )
    openers = {"onnx": _onnx, "onnx-int8": _onnx, "openvino": _openvino, "torch-export": _torch_export}
    try:
        return Runtime(path, description, openers[kind](file))
    except ImportError as error:
        raise DependencyError(f"this needs the package {error.name!r}: pip install 'optin[export]'") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{file} cannot be opened: {first_line(error)}") from error


def _names(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _config(folder: Path) -> object:
    """The configuration of a network of transformers; None for others."""
    from transformers import AutoConfig

    file = folder / "config.json"
    if not file.is_file() or not isinstance(known := read_json(file), dict) or "model_type" not in known:
        return None
    check_sizes(known)
    try:
        with silenced():
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what the library says of a tampered configuration has no common class but this
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error


def _onnx(file: Path) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    try:
        session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions have no common class but this
        raise ValueError(first_line(error)) from error
    names = [entry.name for entry in session.get_inputs()]

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        feeds = {name: value.detach().numpy() for name, value in zip(names, inputs, strict=True)}
        found: Sequence[object] = session.run(None, feeds)
        return found

    return run


def _openvino(file: Path) -> Run:
    import openvino

    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}
    compiled = openvino.Core().compile_model(str(file), "CPU", options)

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        found = compiled([value.detach().numpy() for value in inputs])
        return [found[output] for output in compiled.outputs]

    return run


def _torch_export(file: Path) -> Run:
    network: Foreign = torch.export.load(str(file)).module()

    def run(inputs: Sequence[Tensor]) -> Sequence[Foreign]:
        found: Sequence[Foreign] = network(*inputs)
        return found

    return run
