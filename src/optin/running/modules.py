"""Small helpers around `nn.Module`: evaluation mode, hooks that always come off, hidden states in and out."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import itertools
import types
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from ..errors import InputError, NumericalError
from ..support.untyped import Arguments
from .nesting import nested

ALIGNED = 64  # bytes that torch's own tensors begin at multiples of


def call(model: nn.Module, inputs: Mapping[str, object]) -> Any:
    """What a network returns for inputs by name, those that lie in others by theirs: see `optin.running.nesting`."""
    return model(**nested(inputs))


def modules_run(model: nn.Module, run: Callable[[], object]) -> list[str]:
    """The modules that run when something is done with a network, in the order in which they begin."""
    found: dict[str, None] = {}
    noted = (
        module.register_forward_pre_hook(lambda *_, name=name: found.setdefault(name))
        for name, module in model.named_modules()
    )
    with hooks(*noted), inference_mode_of(model), torch.inference_mode():
        run()
    return list(found)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter: inputs are moved there."""
    return next(model.parameters()).device


def in_precision(model: nn.Module, dtype: torch.dtype) -> None:
    """Turn the real numbers of a network into another precision; `Module.to` makes complex ones real too."""
    for value in itertools.chain(model.parameters(), model.buffers()):
        if value.is_floating_point():
            value.data = value.data.to(dtype)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of all parameters and buffers that a checkpoint holds; tied ones count once."""
    return sum(value.nbytes for value in {id(value): value for value in stored_tensors(model).values()}.values())


def stored_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The parameters and buffers that a checkpoint holds, by name."""
    return {name: value for name, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def fingerprint(model: nn.Module) -> str:
    """SHA-256 of the names, types, shapes and values of all weights and buffers: which network scores belong to."""
    return digest({name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)})


def digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and values, in the order given."""
    found = hashlib.sha256()
    for name, value in tensors.items():
        found.update(f"{name} {value.dtype} {tuple(value.shape)};".encode())
        data: Any = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
        found.update(data)
    return found.hexdigest()


@contextlib.contextmanager
def inference_mode_of(model: nn.Module) -> Iterator[None]:
    """Dropout off, no gradient for any weight, torch's own attention module by module; restored afterwards."""
    training = [module for module in model.modules() if module.training]
    wanted = [weight for weight in model.parameters() if weight.requires_grad and not weight.is_inference()]
    # The fast path of nn.TransformerEncoderLayer runs no submodule, so that hooks on them would see nothing.
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    if training:
        model.eval()
    for weight in wanted:
        weight.requires_grad_(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module in training:
            module.training = True
        for weight in wanted:
            weight.requires_grad_(True)


def align(model: nn.Module) -> None:
    """Put weights that lie anywhere in a file to where torch puts its own: kernels round by where a tensor begins."""
    for value in [*model.parameters(), *model.buffers()]:
        if value.device.type == "cpu" and value.data_ptr() % ALIGNED:
            value.data = value.data.clone()


def forget(model: nn.Module) -> None:
    """Empty the caches of tensors in modules (`attention_bias_cache` of LeViT): they hold what other weights made."""
    for module in model.modules():
        for name, value in vars(module).items():
            cache = "cache" in name and isinstance(value, dict)
            if cache and all(isinstance(entry, Tensor) for entry in value.values()):
                value.clear()


@contextlib.contextmanager
def without_autocast() -> Iterator[None]:
    """Everything in the precision that it has, whatever the caller is in."""
    with contextlib.ExitStack() as stack:
        for kind in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
            stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def hooks(*handles: RemovableHandle) -> Iterator[None]:
    """Remove hooks when the block ends, however it ends."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def patched_forward(module: nn.Module, forward: Callable[..., object]) -> Iterator[None]:
    """Replace what a module computes, for this object only and for a while."""
    own = module.__dict__.get("forward")
    module.forward = forward
    try:
        yield
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def become(module: nn.Module, kind: type[nn.Module]) -> None:
    """Exchange the class of a module; where accelerate put a forward on the object, that is to call the new one."""
    module.__class__ = kind
    if "_old_forward" in vars(module):
        vars(module)["_old_forward"] = types.MethodType(kind.forward, module)


def first_of(module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> Any:
    """The first argument of a module's forward, given by place or by name: what a consumer reads."""
    return args[0] if args else kwargs[_first_name(module, kwargs)]


def with_first(
    module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], value: object
) -> tuple[tuple[Any, ...], Arguments]:
    """The arguments of a call with another first one."""
    if args:
        return (value, *args[1:]), kwargs
    return args, {**kwargs, _first_name(module, kwargs): value}


def _first_name(module: nn.Module, kwargs: dict[str, object]) -> str:
    name = next(iter(inspect.signature(module.forward).parameters), "")
    return name if name in kwargs else next(iter(kwargs))


def shared_names(model: nn.Module) -> dict[str, list[str]]:
    """All names of each parameter that has several, by each of them."""
    names: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(value), []).append(name)
    return {name: known for known in names.values() if len(known) > 1 for name in known}


def tensor_of(model: nn.Module, name: str) -> Tensor:
    """A parameter or a buffer by its name."""
    path, _, leaf = name.rpartition(".")
    value: Tensor = getattr(model.get_submodule(path), leaf)
    return value


def check_weights(model: nn.Module) -> None:
    """Refuse a broken network before any work.

    Raises:
        NumericalError: names the first parameter that holds NaN or infinity.
        InputError: its weights were made where no gradients are.
    """
    for name, parameter in model.named_parameters():
        if parameter.is_inference():
            raise InputError(
                f"the weights of {name!r} were made in torch.inference_mode, so that no gradient can pass them. "
                "Make or load the network outside of it."
            )
        if parameter.is_meta:
            raise NumericalError(f"the weights of {name!r} are not loaded (meta device). Load them first.")
        if not torch.isfinite(parameter).all():
            raise NumericalError(f"the weights of {name!r} contain NaN or infinity. Repair the checkpoint first.")
