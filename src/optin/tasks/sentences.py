"""Folders of the package sentence-transformers: how their embeddings are pooled, and what a pruned one must keep.

Read are the plain files that such a folder consists of, for the modules Transformer, Pooling, Dense and Normalize of
that package; nothing of it is imported, and a folder with modules of its own is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError, first_line
from ..running.outputs import gathered
from ..support.files import write_bytes
from ..support.untyped import Foreign
from .data import shown

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
TRANSFORMER = "sentence_bert_config.json"
_KINDS = ("Transformer", "Pooling", "Dense", "Normalize")
LARGEST = 1 << 28  # bytes of one file
# Its name of a pooling -> ours. Divided by the root of their number instead, sums have the same direction.
_POOLINGS = {"mean": "mean", "mean_sqrt_len_tokens": "mean", "cls": "first", "lasttoken": "last"}
_LEGACY = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
_KEPT = ("max_seq_length", "do_lower_case", "transformer_task", "modality_config", "module_output_name")

Fetch = Callable[[str], Path | None]  # a file of the folder by its name; None where there is none
Layer = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SentenceTokenizer:
    """A tokenizer that prepares texts as sentence-transformers would, and takes its files along.

    Attributes:
        pooling: as in `Trajectory.pooling`.
        prompt: what texts are begun with.
        lower: whether they are put into small letters.
        limit: tokens at most; None leaves it to the tokenizer.
        layers: maps behind the pooling.
        files: what `save_pretrained` writes beside the tokenizer, by place in the folder.
    """

    tokenizer: Foreign
    pooling: str
    prompt: str = ""
    lower: bool = False
    limit: int | None = None
    layers: tuple[Layer, ...] = ()
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)

    def __call__(self, texts: Sequence[str], pairs: object = None, **options: object) -> object:
        """Tokenise."""
        prepared = [self.prompt + text for text in texts]
        return self.tokenizer([text.lower() for text in prepared] if self.lower else prepared, pairs, **options)

    @property
    def model_max_length(self) -> int:
        """Tokens at most."""
        own = int(self.tokenizer.model_max_length)
        return own if self.limit is None else min(own, self.limit)

    def embed(self, hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
        """Sentence embeddings of unit length: pooled, then through all that follows."""
        values = gathered(hidden, mask, pooling).float()
        for layer in self.layers:
            values = layer(values)
        return F.normalize(values, dim=-1)

    def save_pretrained(self, folder: Foreign) -> None:
        """Write the tokenizer and the files of sentence-transformers."""
        self.tokenizer.save_pretrained(folder)
        for name, data in self.files.items():
            write_bytes(Path(folder) / name, data)


def sentence_tokenizer(tokenizer: object, fetch: Fetch, source: str) -> Foreign:
    """The tokenizer as the folder uses it; the same if the folder is none of sentence-transformers.

    Raises:
        InputError: modules, poolings or options that cannot be kept; damaged files.
    """
    found = _read(fetch, MODULES, source)
    if found is None:
        return tokenizer
    files = {MODULES: found}
    steps = _steps(_parsed(found, f"{source}/{MODULES}"), source)
    pooling_file = f"{steps[1][1]}/config.json"
    files[pooling_file] = _required(fetch, pooling_file, source)
    pooling, with_prompt = _pooling(_mapping(files[pooling_file], f"{source}/{pooling_file}"), source)
    layers: list[Layer] = []
    for kind, place in steps[2:]:
        if kind == "Dense":
            config, weights = (f"{place}/{name}" for name in ("config.json", "model.safetensors"))
            files |= {name: _required(fetch, name, source) for name in (config, weights)}
            layers.append(_dense(files[config], files[weights], f"{source}/{place}"))
        else:
            layers.append(_unit_length)
    options = _transformer(fetch, source, files)
    prompt = _prompt(fetch, source, files)
    if prompt and not with_prompt:
        raise InputError(f"{source} leaves its prompt out of the pooling, which optin cannot. Take the prompt out.")
    limit = options.get("max_seq_length")
    return SentenceTokenizer(
        tokenizer,
        pooling,
        prompt,
        bool(options.get("do_lower_case")),
        limit if type(limit) is int and limit > 0 else None,
        tuple(layers),
        files,
    )


def _steps(modules: object, source: str) -> list[tuple[str, str]]:
    """Kind and folder of every module, in order."""
    steps = []
    for module in modules if isinstance(modules, list) else ():
        kind, place = (module.get("type"), module.get("path")) if isinstance(module, dict) else (None, None)
        package, _, name = str(kind).rpartition(".")
        if package.partition(".")[0] != "sentence_transformers" or name not in _KINDS:
            raise InputError(
                f"{source}/{MODULES} names the module {shown(kind)}: known are {', '.join(_KINDS)} "
                "of sentence-transformers."
            )
        if not isinstance(place, str) or (name != "Transformer" and not re.fullmatch(r"\w+", place, re.ASCII)):
            raise InputError(f"{source}/{MODULES} must name a folder in it for every module, not {shown(place)}.")
        steps.append((name, place))
    names = [name for name, _ in steps]
    if names[:2] != ["Transformer", "Pooling"] or {"Transformer", "Pooling"} & set(names[2:]):
        raise InputError(f"{source}/{MODULES} must begin with one Transformer and one Pooling.")
    if steps[0][1]:
        raise InputError(
            f"{source} keeps its network in {shown(steps[0][1])}: load it with sentence-transformers and save it "
            "again, which puts the network beside modules.json."
        )
    return steps


def _pooling(config: Mapping[str, object], source: str) -> tuple[str, bool]:
    """Our name of the pooling, and whether a prompt is pooled too."""
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in _LEGACY.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or str(modes[0]) not in _POOLINGS:
        raise InputError(
            f"{source} pools by {shown(modes)}, which optin cannot follow: known are {', '.join(_POOLINGS)}, "
            "one at a time."
        )
    return _POOLINGS[modes[0]], config.get("include_prompt", True) is not False


def _dense(settings: bytes, weights: bytes, place: str) -> Layer:
    config = _mapping(settings, f"{place}/config.json")
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    known = re.fullmatch(r"torch\.nn\.modules\.(activation|linear)\.(\w+)", name, re.ASCII)
    kind = getattr(nn, known[2], None) if known else None
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise InputError(f"{place} names the activation {shown(name)}: expected one of torch.nn.")
    if config.get("use_residual") or config.get("module_input_name", "sentence_embedding") != "sentence_embedding":
        raise InputError(f"{place} is no plain linear map of the embedding, which optin cannot follow.")
    try:
        tensors = safetensors.torch.load(weights)
        weight, bias, activation = tensors["linear.weight"], tensors.get("linear.bias"), kind()
        activation(F.linear(torch.zeros(1, weight.shape[1]), weight.float(), None if bias is None else bias.float()))
    except (SafetensorError, KeyError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise InputError(f"{place} holds no linear map that can be used: {first_line(error)}") from error

    def apply(values: Tensor) -> Tensor:
        device = values.device
        found: Tensor = activation(
            F.linear(values, weight.float().to(device), None if bias is None else bias.float().to(device))
        )
        return found

    return apply


def _unit_length(values: Tensor) -> Tensor:
    return F.normalize(values, dim=-1)


def _transformer(fetch: Fetch, source: str, files: dict[str, bytes]) -> Mapping[str, object]:
    data = _read(fetch, TRANSFORMER, source)
    if data is None:
        return {}
    options = _mapping(data, f"{source}/{TRANSFORMER}")
    strange = next((name for name, value in options.items() if value and name not in _KEPT), None)
    if strange is not None or options.get("transformer_task", "feature-extraction") != "feature-extraction":
        raise InputError(
            f"{source}/{TRANSFORMER} asks for {shown(strange or 'transformer_task')}: optin cannot keep it."
        )
    files[TRANSFORMER] = data
    return options


def _prompt(fetch: Fetch, source: str, files: dict[str, bytes]) -> str:
    """What texts are begun with if nothing else is said."""
    data = _read(fetch, PROMPTS, source)
    if data is None:
        return ""
    files[PROMPTS] = data
    config = _mapping(data, f"{source}/{PROMPTS}")
    name, prompts = config.get("default_prompt_name"), config.get("prompts")
    if name is None:
        return ""
    prompt = prompts.get(name) if isinstance(prompts, dict) and isinstance(name, str) else None
    if not isinstance(prompt, str):
        raise InputError(f"{source}/{PROMPTS} has no prompt {shown(name)}, which it names as the default.")
    return prompt


def _required(fetch: Fetch, name: str, source: str) -> bytes:
    data = _read(fetch, name, source)
    if data is None:
        advice = "" if name.endswith("json") else " Load it with sentence-transformers and save it again."
        raise InputError(f"{source} lacks {name}, which its {MODULES} asks for.{advice}")
    return data


def _read(fetch: Fetch, name: str, source: str) -> bytes | None:
    file = fetch(name)
    if file is None:
        return None
    try:
        if file.stat().st_size > LARGEST:
            raise InputError(f"{source}/{name} has {file.stat().st_size:,} bytes: {LARGEST:,} are the most.")
        return file.read_bytes()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}.") from error


def _mapping(data: bytes, place: str) -> Mapping[str, object]:
    found = _parsed(data, place)
    if not isinstance(found, dict):
        raise InputError(f"{place} must be a mapping of options to values.")
    return found


def _parsed(data: bytes, place: str) -> object:
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{place} is not JSON: {first_line(error)}") from error
