"""Networks that are refused by name, before any work: what stands between the weights and what they compute.

Units are removed from the parameters of a plain `nn.Module`. Wrappers, compiled forwards, adapters, quantised or
parametrised weights, hooks that change values and layers that share weights would be cut in one place and not in
another, or be lost when the result is saved.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import PurePath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.utils._pytree import tree_leaves

from ..errors import ArchitectureError, InputError
from ..running.modules import call, inference_mode_of, shared_names
from ..space.units import UnitSpace
from ..support.untyped import Foreign

# What to do about modules of certain packages: the start of a class's module, what it is, what to do.
_FOREIGN = (
    ("peft.", "a live adapter of peft", "Merge it first: model = model.merge_and_unload()"),
    ("bitsandbytes.", "a layer quantised by bitsandbytes", "Load the network in float32 or bfloat16 first"),
    ("torchao.", "a layer of torchao", "Load the network in float32 or bfloat16, prune it, then quantise"),
    ("torch.ao.nn.", "a layer quantised by torch", "Prune the float network, then quantise"),
    ("torch.nn.quantized", "a layer quantised by torch", "Prune the float network, then quantise"),
    ("optimum.quanto", "a layer quantised by quanto", "Prune the float network, then quantise"),
    ("gptqmodel.", "a layer quantised by GPTQ", "Load the network in float32 or bfloat16 first"),
    ("auto_gptq.", "a layer quantised by GPTQ", "Load the network in float32 or bfloat16 first"),
    ("awq.", "a layer quantised by AWQ", "Load the network in float32 or bfloat16 first"),
    ("transformer_engine.", "a layer of Transformer Engine", "Load the network with torch's own layers first"),
)


def check_network(model: object) -> None:
    """Refuse what is no plain network of torch with weights of its own.

    Raises:
        InputError: no network at all; says what to pass.
        ArchitectureError: names the module that stands in the way and says what to do.
    """
    if not isinstance(model, nn.Module):
        raise InputError(_no_network(model))
    kind = f"{type(model).__module__}.{type(model).__name__}"
    if kind.startswith("sentence_transformers."):
        raise InputError("this is a SentenceTransformer: pass its network, model[0].auto_model, or use its folder.")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers) or "FullyShardedDataParallel" in kind:
        raise InputError(f"this network is wrapped in {type(model).__name__}: pass the network inside, model.module.")
    if hasattr(model, "_orig_mod"):
        raise InputError("this network is compiled: pass the one before torch.compile, and compile the result.")
    _check_modules(model)
    _check_parameters(model)


def _no_network(model: object) -> str:
    if isinstance(model, (str, PurePath)):
        return (
            f"{str(model)!r:.80} is a path or a name: load the network first, for example with "
            "AutoModel.from_pretrained, or use the command line: optin prune MODEL."
        )
    if isinstance(model, type):
        return f"{model.__name__} is a class: pass an object of it, with its weights loaded."
    return f"the model must be a network (torch.nn.Module), not {type(model).__name__}."


def _check_modules(model: nn.Module) -> None:
    for name, module in model.named_modules():
        where = f"{name!r} of this network" if name else "this network"
        kind = f"{type(module).__module__}.{type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{where} is compiled by torch.jit: pass the module that it was made of.")
        if getattr(module, "_compiled_call_impl", None) is not None:
            raise InputError(f"{where} is compiled: make it anew without .compile(), and compile the result.")
        for start, what, remedy in _FOREIGN:
            if kind.startswith(start):
                raise ArchitectureError(f"{where} is {what}. {remedy}.")
        if getattr(module, "grad_checkpointing", False) is True:
            raise ArchitectureError(f"{where} checkpoints its gradients: call set_grad_checkpointing(False) first.")
        if "forward" in vars(module) and not _is_placed(module, where):
            raise ArchitectureError(
                f"the forward of {where} was replaced on the object: write a class with that forward."
            )
        _check_weights_of(module, where)


def _is_placed(module: nn.Module, where: str) -> bool:
    """Whether a forward was replaced by accelerate's, which moves what comes to the device of the weights.

    Raises:
        ArchitectureError: the weights are not there between forwards.
    """
    hook: Foreign = getattr(module, "_hf_hook", None)
    hooks = getattr(hook, "hooks", (hook,))
    if any(getattr(one, "offload", False) for one in hooks):
        raise ArchitectureError(
            f"accelerate loads the weights of {where} at every forward: load the network on the CPU without a "
            "device_map, and score block by block (offload: true, --offload)."
        )
    return all(type(one).__name__ == "AlignDevicesHook" for one in hooks)


def _check_weights_of(module: nn.Module, where: str) -> None:
    """Refuse weights that are computed at every forward: what is stored is not what is used."""
    for hook in module._forward_pre_hooks.values():
        kind = type(hook)
        if kind.__module__ == "torch.nn.utils.prune":
            raise ArchitectureError(
                f"{where} has a mask of torch.nn.utils.prune. Make it permanent first: prune.remove(module, name)."
            )
        if kind.__module__ in ("torch.nn.utils.weight_norm", "torch.nn.utils.spectral_norm"):
            raise ArchitectureError(
                f"{where} computes its weights by {kind.__name__}. Make them plain first: "
                "torch.nn.utils.remove_weight_norm or remove_spectral_norm(module)."
            )


def _check_parameters(model: nn.Module) -> None:
    found = False
    for name, parameter in model.named_parameters():
        found = True
        if not parameter.is_floating_point() or parameter.dtype.itemsize < 2:
            raise ArchitectureError(
                f"the weights of {name!r} are {str(parameter.dtype).removeprefix('torch.')}: load the network in "
                "float32 or bfloat16 first, prune it, then quantise."
            )
        if type(parameter.data) is not Tensor or parameter.layout != torch.strided:
            kind = type(parameter.data).__name__
            raise ArchitectureError(
                f"the weights of {name!r} are a {kind}, no plain tensor: load them as such first."
            )
    if getattr(getattr(model, "config", None), "quantization_config", None) is not None:
        raise ArchitectureError("the network is quantised: load it in float32 or bfloat16, prune it, then quantise.")
    if not found:
        raise InputError(f"this {type(model).__name__} has no weights: there is nothing to prune.")


def check_shared(model: nn.Module, space: UnitSpace) -> None:
    """Refuse to cut a tensor that serves under several names, or under a name that only looks like one.

    Raises:
        ArchitectureError: names two modules that share it, or the tensor that is computed.
    """
    twins = shared_names(model)
    own = {name for name, _ in model.named_parameters(remove_duplicate=False)} | dict(model.named_buffers()).keys()
    for group in space:
        for cut in group.cuts:
            if parametrize.is_parametrized(model.get_submodule(cut.parameter.rpartition(".")[0])):
                raise ArchitectureError(
                    f"{cut.parameter!r} is parametrised (weight norm, spectral norm, ...) where units leave. Make it "
                    "plain: torch.nn.utils.parametrize.remove_parametrizations(module, name)."
                )
            if cut.parameter not in own:
                raise ArchitectureError(
                    f"{cut.parameter!r} is no parameter of its module: it is computed, or lies elsewhere. "
                    "Put the plain layer in its place."
                )
            if cut.parameter in twins:
                one, other = twins[cut.parameter][:2]
                raise ArchitectureError(
                    f"{one!r} and {other!r} are one and the same tensor, which cannot be cut for each of them. "
                    "Give every layer weights of its own: copy.deepcopy(module)."
                )


def check_hooks(model: nn.Module, batch: Mapping[str, object]) -> None:
    """Refuse hooks of the user that change what a network computes: a saved network has none.

    Raises:
        ArchitectureError: names the module.
    """
    changing: list[str] = []
    with _watched(model, changing), inference_mode_of(model), torch.inference_mode():
        call(model, batch)
    if changing:
        raise ArchitectureError(
            f"a hook on {changing[0]!r} changes what the network computes, and would be lost with the result. "
            "Remove it, or write what it does into the module's forward."
        )


@contextlib.contextmanager
def _watched(model: nn.Module, changing: list[str]) -> Iterator[None]:
    """Note modules whose hooks return something, other than our own, for a while."""
    replaced: list[tuple[Foreign, int, Callable[..., object]]] = []
    for name, module in model.named_modules():
        for table in (module._forward_hooks, module._forward_pre_hooks):
            for key, hook in list(table.items()):
                if not _ours(hook):
                    replaced.append((table, key, hook))
                    table[key] = _noting(hook, name or type(module).__name__, changing)
    try:
        yield
    finally:
        for table, key, hook in replaced:
            table[key] = hook


def _noting(hook: Callable[..., object], name: str, changing: list[str]) -> Callable[..., object]:
    def note(*args: object, **kwargs: object) -> Any:
        seen = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        before = [value.clone() for value in seen]
        result = hook(*args, **kwargs)
        if result is not None or not all(map(torch.equal, seen, before)):
            changing.append(name)
        return result

    return note


def _ours(hook: object) -> bool:
    kind = getattr(hook, "__self__", hook)
    module = getattr(hook, "__module__", None) or type(kind).__module__
    return str(module).startswith("optin.")
