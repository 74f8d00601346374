"""A second device that is no GPU: its tensors lie on the processor, and refuse what a GPU would refuse.

Registering a device changes torch for good, so what uses this runs in a process of its own (test_devices.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

NAME = "elsewhere"
_setup_privateuseone_for_python_backend(NAME)
DEVICE = torch.device(NAME, 0)

aten = torch.ops.aten
COPIES = (aten.copy_, aten._to_copy, aten.to)  # which may go from one device to another
INDEXED = (aten.index, aten.index_put, aten.index_put_)  # which take indices from the processor
INNER = 0  # of scaled_dot_product_attention: plain products


class Elsewhere(torch.Tensor):
    """A tensor there; `held` has its values."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, real: torch.Tensor) -> Elsewhere:
        made: Elsewhere = torch.Tensor._make_wrapper_subclass(
            cls,
            real.size(),
            strides=real.stride(),
            storage_offset=real.storage_offset(),
            dtype=real.dtype,
            device=DEVICE,
        )
        made.held = real
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def untyped_storage(self) -> Any:
        return self.held.untyped_storage()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Elsewhere:
        if id(self) not in memo:
            made = Elsewhere(self.held.clone()).requires_grad_(self.requires_grad)
            made.__dict__.update({name: value for name, value in self.__dict__.items() if name != "held"})
            memo[id(self)] = made
        found: Elsewhere = memo[id(self)]
        return found

    def tolist(self) -> Any:
        found: Any = self.held.tolist()  # which torch does for its own class alone, and so is the next
        return found

    def __format__(self, spec: str) -> str:
        return format(self.item() if self.dim() == 0 else repr(self), spec)

    def __repr__(self, **_: Any) -> str:
        return f"{self.held!r} on {DEVICE}"


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Do something where its tensors lie, or where it is told to put what it makes.

    Raises:
        RuntimeError: its tensors lie in several places.
    """
    packet = func.overloadpacket
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.Tensor)]
    there = {id(value.held): value for value in tensors if isinstance(value, Elsewhere)}
    device = next((value for value in tree_leaves((args, kwargs)) if isinstance(value, torch.device)), None)
    if packet not in COPIES and there:
        checked = tensors[:1] + tree_leaves(args[2:]) if packet in INDEXED else tensors
        strange = [v for v in checked if isinstance(v, torch.Tensor) and not isinstance(v, Elsewhere) and v.dim()]
        # One number may come from the processor, unless all others come from there too.
        if strange:
            raise RuntimeError(f"{func}: {tuple(strange[0].shape)} on {strange[0].device}, others on {DEVICE}")
    if (generator := kwargs.get("generator")) is not None and (there or is_there(device)):
        raise RuntimeError(f"{func}: a generator of {generator.device} for tensors on {DEVICE}")
    if packet is aten._fused_sdp_choice:
        return INNER
    put_there = is_there(device) if device is not None else bool(there)
    if packet is aten.copy_:
        put_there = isinstance(args[0], Elsewhere)
    if is_there(device):
        args, kwargs = tree_map_only(torch.device, lambda _: torch.device("cpu"), (args, kwargs))
    args, kwargs = tree_map_only(Elsewhere, lambda value: value.held, (args, kwargs))
    found = func(*args, **kwargs)
    if not put_there:
        return found
    # What is looked at in another way stays as usable by gradients as it is itself.
    inference = torch.is_inference_mode_enabled() and not (
        func.is_view and not any(value.is_inference() for value in tensors)
    )
    with torch.inference_mode(inference):
        return tree_map_only(
            torch.Tensor, lambda value: there[id(value)] if id(value) in there else Elsewhere(value), found
        )


def is_there(device: Any) -> bool:
    return isinstance(device, torch.device) and device.type == NAME


# What torch itself asks of a device, below all modes: `torch.tensor(..., device=...)` does.


def empty(size: Any, **options: Any) -> Elsewhere:
    return Elsewhere(torch.empty(size, dtype=options.get("dtype")))


def empty_strided(size: Any, stride: Any, **options: Any) -> Elsewhere:
    return Elsewhere(torch.empty_strided(size, stride, dtype=options.get("dtype")))


def copy_from(source: torch.Tensor, target: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
    pair = [value.held if isinstance(value, Elsewhere) else value for value in (target, source)]
    pair[0].copy_(pair[1])
    return target


KERNELS = torch.library.Library("aten", "IMPL")
for name, kernel in (("empty.memory_format", empty), ("empty_strided", empty_strided), ("_copy_from", copy_from)):
    KERNELS.impl(name, kernel, "PrivateUse1")


class Factories(TorchDispatchMode):
    """What is made there out of nothing, or of tensors of the processor."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        there = any(isinstance(value, Elsewhere) or is_there(value) for value in tree_leaves((args, kwargs)))
        return run(func, args, kwargs) if there else func(*args, **kwargs)


@contextlib.contextmanager
def device() -> Iterator[torch.device]:
    """The second device, as long as this lasts."""
    with Factories():
        yield DEVICE
