"""Exported networks, run by ONNX Runtime, OpenVINO or torch as if they were the network that they were made of.

A folder that `exporting` wrote holds the file of its format, configuration and preprocessor of the network, and
export.json, which says what goes in and what comes out.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from ..errors import CheckpointError, DependencyError, InputError, first_line, unknown
from ..support.files import given, read_json
from ..support.untyped import Foreign, Json
from .formats import FORMATS, Run
from .planned import SECTION
from .silenced import silenced
from .untrusted import check_sizes

DESCRIPTION = "export.json"
_DEFAULTS = {"attention_mask": torch.ones_like, "token_type_ids": torch.zeros_like}


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
            InputError: an input is missing, or of a size that the file does not take.
        """
        from transformers.utils.generic import ModelOutput

        if (ids := inputs.get("input_ids")) is not None:
            inputs = {name: fill(ids) for name, fill in _DEFAULTS.items()} | inputs
        if missing := [name for name in self.input_names if name not in inputs]:
            raise InputError(f"this exported network takes {', '.join(self.input_names)}; {missing[0]!r} is missing.")
        try:
            made = self._run([inputs[name] for name in self.input_names])
        except Exception as error:  # the runtimes share no class of errors
            shapes = ", ".join(f"{name} {tuple(inputs[name].shape)}" for name in self.input_names)
            raise InputError(
                f"this exported network does not take the inputs {shapes}: {first_line(error)}"
            ) from error
        found = [torch.as_tensor(value) for value in made]
        return found[0] if self.single else ModelOutput(dict(zip(self.output_names, found, strict=True)))


def of_export(folder: Path) -> bool:
    """Whether a folder holds an exported network."""
    return (folder / DESCRIPTION).is_file()


def open_exported(folder: str | Path, *, trusted: bool = False) -> Runtime:
    """Open what `optin.export` wrote, on as many threads as torch uses.

        logits = optin.open_exported("onnx")(**batch).logits

    Args:
        trusted: needed for torch-export, whose files are loaded by unpickling: they can run any code.

    Raises:
        InputError: no such folder, an unknown format, or a torch-export that is not trusted.
        CheckpointError: the file is damaged.
        DependencyError: the runtime is not installed.
    """
    path = given(folder)
    if path.is_dir() and not of_export(path):
        raise InputError(f"{path} holds no exported network. Write one with optin.export(model, batch, folder).")
    description = read_json(path / DESCRIPTION)
    kind = description.get("format") if isinstance(description, dict) else None
    if not isinstance(kind, str) or kind not in FORMATS:
        raise InputError(unknown("format", f"{kind}"[:60], FORMATS))
    known = _names(description.get("inputs")) and _names(description.get("outputs"))
    if not (known and isinstance(description.get("single"), bool)):
        raise CheckpointError(f"{path / DESCRIPTION} does not say which tensors go in and out.")
    form = FORMATS[kind]
    file = path / form.file
    if not file.is_file():
        raise InputError(f"no such file: {file}")
    if form.unpickled and not trusted:
        raise InputError(
            f"{file} is loaded by unpickling, which can run any code. If you trust it: "
            "optin.open_exported(folder, trusted=True)."
        )
    try:
        return Runtime(path, description, form.open(file))
    except ImportError as error:
        raise DependencyError(f"this needs the package {error.name!r}: pip install 'optin[export]'") from None
    except (RuntimeError, ValueError, OSError) as error:
        raise CheckpointError(f"{file} cannot be opened: {first_line(error)}") from error


def _names(value: Json) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(name, str) for name in value)


def _config(folder: Path) -> object:
    """The configuration of a network of transformers, which may be of a class of the user's own; None for others."""
    from transformers import CONFIG_MAPPING, AutoConfig, PretrainedConfig

    file = folder / "config.json"
    if not file.is_file() or not isinstance(known := read_json(file), dict) or "model_type" not in known:
        return None
    check_sizes({name: value for name, value in known.items() if name != SECTION})  # a plan counts MACs
    try:
        with silenced():
            if known["model_type"] not in CONFIG_MAPPING:  # a class of the user's own
                return PretrainedConfig.from_pretrained(folder)
            return AutoConfig.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # what the library says of a tampered configuration has no common class but this
        raise CheckpointError(f"{file} cannot be read: {first_line(error)}") from error
