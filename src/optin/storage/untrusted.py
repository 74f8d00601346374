"""What is checked in a checkpoint before any library meets it: its author need not be a friend.

Nothing is made, expanded or read that the header of the weights has no place for: how many tensors there are, how
many values they hold and how long their axes are.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_module_registration_hook,
    register_module_parameter_registration_hook,
)

from ..errors import CheckpointError, InputError, first_line
from ..support.files import read_json
from ..support.untyped import Json
from .gguf import is_gguf

LARGEST = 10**7  # number in a configuration: beyond any vocabulary, width or image
LONGEST = 10**5  # entries of one list in a configuration
BLOCKS = 1000  # that a network may have whatever its weights, since blocks may share them
CLASSES = 1000  # that a configuration may name whatever its weights, since the head may be another network's
COUNTS = ("layers", "depth", "groups", "num_blocks", "num_stages")  # in the names of numbers of parts
LABELS = ("num_labels", "num_classes", "classes")
MODULES, SPARE_MODULES = 40, 20_000  # per tensor, and beside
SHRUNK, SPARE_VALUES = 200, 10**7  # how many times as large as the pruned network a dense one may be, and beside
ATTENTIONS = ("eager", "sdpa", "flash_attention_2", "flash_attention_3", "flex_attention")
FETCHING = ("checkpoint_path", "cache_dir", "weights", "weights_backbone")  # and what begins with "pretrained"
ADAPTER = "adapter_config.json"


@dataclass(frozen=True, eq=False)
class Stored:
    """The tensors of a folder, as the headers of its files list them.

    Attributes:
        shapes: by name.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @property
    def values(self) -> int:
        """Of all tensors."""
        return sum(map(math.prod, self.shapes.values()))

    @property
    def longest(self) -> int:
        """Of all axes."""
        return max((side for shape in self.shapes.values() for side in shape), default=0)

    def check_plan(self, section: object) -> None:
        """Refuse a plan that keeps more units, or speaks of larger groups, than these weights are left of.

        Raises:
            CheckpointError: says how many.
        """
        groups = section.get("groups") if isinstance(section, dict) else None
        entries = groups.values() if isinstance(groups, dict) else ()
        sizes = [group.get("size") for group in entries if isinstance(group, dict)]
        total = sum(size for size in sizes if isinstance(size, int))
        if total > SHRUNK * self.values + SPARE_VALUES or len(sizes) > MODULES * (len(self.shapes) + BLOCKS):
            raise CheckpointError(
                f"the plan speaks of {total} units in {len(sizes)} groups, and the weights have {self.values} values."
            )

    @contextlib.contextmanager
    def bounded(self) -> Iterator[None]:
        """While this runs, no network is made that these weights could not be of: too many parts, or values.

        Raises:
            CheckpointError: as soon as it is too much.
        """
        modules, values = MODULES * len(self.shapes) + SPARE_MODULES, SHRUNK * self.values + SPARE_VALUES

        def count_module(owner: nn.Module, name: str, module: nn.Module | None) -> None:
            nonlocal modules
            modules -= 1
            if modules < 0:
                raise CheckpointError(f"config.json asks for more modules than {len(self.shapes)} tensors can fill.")

        def count_values(owner: nn.Module, name: str, parameter: Tensor | None) -> None:
            nonlocal values
            values -= 0 if parameter is None else parameter.numel()
            if values < 0:
                raise CheckpointError(f"config.json asks for far more weights than the {self.values} values stored.")

        handles = (
            register_module_module_registration_hook(count_module),
            register_module_parameter_registration_hook(count_values),
        )
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def check_network(self, model: nn.Module) -> None:
        """Refuse a network, before it has any memory, that needs far more values than are stored.

        Raises:
            CheckpointError: says how many.
        """
        wanted = sum(value.numel() for value in {id(value): value for value in model.parameters()}.values())
        if wanted > 2 * self.values + SPARE_VALUES:
            raise CheckpointError(f"config.json asks for {wanted} weights, and {self.values} values are stored.")


def check_folder(folder: Path, config: Json) -> Stored:
    """Refuse what is damaged, asks for absurd memory, reads outside of the folder or runs other code than installed.

    Args:
        config: what config.json holds.

    Returns:
        What the headers of the weights list.

    Raises:
        CheckpointError: says what is wrong.
    """
    stored = stored_in(folder)
    if (folder / ADAPTER).exists():
        raise CheckpointError(
            f"{folder} holds an adapter ({ADAPTER}), whose weights are none of the network's: merge it into the "
            "network first (merge_and_unload of peft) and save that."
        )
    for name, value in _entries({key: value for key, value in config.items() if key not in ("optin", "answers")}):
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_size(name, value, stored)
        if isinstance(value, list):
            _check_size(name, sum(part for part in value if isinstance(part, int)), stored, parts=True)
        if isinstance(value, (list, dict)) and len(value) > max(LONGEST, stored.longest):
            raise CheckpointError(f"config.json has {len(value)} entries in {name!r:.60}, which no network has.")
        # Other names are those of kernels, which the library fetches from the hub and runs.
        if "_implementation" in name and value not in (None, *ATTENTIONS):
            raise CheckpointError(
                f"config.json asks for the kernels {value!r:.60}, which may be code from elsewhere."
            )
        if name == "quantization_config" and value is not None:
            raise CheckpointError(
                "config.json asks for a quantised network, which optin neither prunes nor writes: take the network "
                "in floating point."
            )
    return stored


def fetches(argument: str) -> bool:
    """Whether an argument of a network makes its library fetch or read weights."""
    return argument in FETCHING or argument.startswith("pretrained")


def check_arguments(folder: Path, arguments: Mapping[str, object]) -> None:
    """Refuse arguments of a network that make its library fetch or read other weights than those beside them.

    Raises:
        CheckpointError: names the argument.
    """
    for name in arguments:
        if fetches(name):
            raise CheckpointError(f"{folder / 'config.json'} asks for weights from elsewhere: {name!r}.")


def stored_in(folder: Path) -> Stored:
    """The tensors of the safetensors files of a folder; truncated or damaged files are reported as such.

    Nothing outside of the folder is read: an index of parts may name only files that lie beside it.

    Raises:
        CheckpointError: no such files, or damaged ones.
    """
    files = sorted(file for file in folder.glob("*.safetensors") if file.is_file())
    if not files:
        raise CheckpointError(f"{folder} holds no safetensors weights.")
    for index in folder.glob("*.index.json"):
        parts = read_json(index)
        named = parts.get("weight_map") if isinstance(parts, dict) else None
        if not isinstance(named, dict) or not set(map(str, named.values())) <= {file.name for file in files}:
            raise CheckpointError(f"{index} names weights that do not lie beside it.")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        try:
            with safe_open(file, "pt") as handle:
                names = handle.keys()
                shapes |= {name: tuple(handle.get_slice(name).get_shape()) for name in names}
        except (SafetensorError, OSError) as error:
            raise CheckpointError(f"{file} is damaged: {first_line(error)}") from None
    return Stored(shapes)


def _check_size(name: str, value: float, stored: Stored, parts: bool = False) -> None:
    """Numbers beyond all networks, and more parts and classes than there are weights for.

    Args:
        parts: the number is the sum of a list, of which only numbers of parts are added up by anyone.
    """
    if isinstance(value, int) and abs(value) > LARGEST and not parts:
        raise CheckpointError(f"config.json asks for {name!r:.60} of {value}, which no network has.")
    if any(word in name for word in COUNTS) and value > max(len(stored.shapes), BLOCKS):
        raise CheckpointError(
            f"config.json asks for {name!r:.60} of {value}, and there are only {len(stored.shapes)} tensors."
        )
    if name in LABELS and not parts and value > max(stored.longest, CLASSES):
        raise CheckpointError(
            f"config.json asks for {name!r} of {value}, and no axis of the weights is longer than {stored.longest}."
        )


def _entries(value: object, name: str = "") -> Iterator[tuple[str, object]]:
    """Everything in a configuration, with the name that it stands under; parts after the whole."""
    yield name, value
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _entries(part, str(key))
    elif isinstance(value, list):
        for part in value:
            yield from _entries(part, name)


def check_sizes(config: object) -> None:
    """Refuse absurd numbers in the configuration of a network whose weights are elsewhere.

    Raises:
        CheckpointError: names one.
    """
    for name, value in _entries(config):
        if name in LABELS and isinstance(value, (int, float)) and value > LONGEST:
            raise CheckpointError(f"config.json asks for {name!r} of {value}, which no network has.")
        if isinstance(value, int) and abs(value) > LARGEST:
            raise CheckpointError(f"config.json asks for {name!r:.60} of {value}, which no network has.")


SOURCES = (  # what is given in the place of a folder with safetensors, and what to do about it
    ((".gguf",), "in GGUF: pass the file itself, if it is a decoder, or the network that it was made of"),
    ((".onnx",), "exported to ONNX, which cannot be pruned: take the network that it was made of"),
    (
        (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"),
        "pickled or of another framework, which can run any code: load it where you trust it and write it with "
        "model.save_pretrained (safetensors)",
    ),
)


def check_source(source: str) -> None:
    """Refuse a local network that is in no form that optin reads, and a configuration that asks for absurd sizes.

    Raises:
        InputError: says what it is, and what to do.
        CheckpointError: see `check_folder`.
    """
    place = Path(source)
    if is_gguf(source):
        return
    if place.is_file():
        raise InputError(f"{source} is {_form([place.name]) or 'a file: pass the folder that holds config.json'}.")
    if not place.is_dir():
        if place.suffix in [ending for endings, _ in SOURCES for ending in endings] or place.is_absolute():
            raise InputError(f"no such folder here: {source}.")
        return
    names = [path.name for path in place.iterdir()]
    if "export.json" in names:  # of `optin.storage.runtimes`, which checks it
        return
    if ADAPTER in names:
        raise InputError(
            f"{source} holds an adapter ({ADAPTER}): merge it into its network first (merge_and_unload of peft) and "
            "save that."
        )
    if not any(name.endswith(".safetensors") for name in names):
        form = _form(names)
        raise InputError(
            f"the network in {source} is {form}."
            if form
            else f"{source} holds no safetensors weights: pass the folder that holds config.json and the weights."
        )
    config = read_json(place / "config.json")
    if not isinstance(config, dict):
        raise CheckpointError(f"{place / 'config.json'} is no configuration of a network.")
    check_folder(place, config)


def _form(names: list[str]) -> str | None:
    for endings, words in SOURCES:
        if found := sorted(name for name in names if name.endswith(endings)):
            return f"{words} ({found[0]})"
    return None
