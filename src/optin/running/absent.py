"""What is left of a part whose units are all gone: nothing runs, and a constant takes its place."""

from __future__ import annotations

import inspect

from torch import Tensor, nn

from ..space.removal import Absence
from ..space.units import UnitGroup, around, lies_in
from ..support.untyped import Foreign
from .consumers import out_axis, stored_transposed
from .elastic import mixed
from .modules import become

LEFT = "_optin_left"  # where a module that is passed over remembers the map inside it, what it returns and reads


class _Gone(nn.Module):
    """A module of any class that computes no more."""

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Pickle knows the class that it was."""
        twin, was = type(self).__bases__
        return _gone_again, (twin, was), vars(self)


class Constant(_Gone):
    """A linear map of nothing: its bias at every position."""

    def forward(self, x: Tensor) -> Tensor:
        """Shape (*position, anything) to (*position, out)."""
        module: Foreign = self
        made = x.new_zeros(*x.shape[:-1], module.weight.shape[out_axis(self)])
        return made if module.bias is None else made + module.bias


class PassedOver(_Gone):
    """A module around such a map, or in front of one."""

    def forward(self, *args: Foreign, **kwargs: Foreign) -> object:
        """What the map makes of nothing, or nothing for it to read."""
        inside, outputs, first = vars(self)[LEFT]
        nothing = (args[0] if args else kwargs[first])[..., :0]
        made = self.get_submodule(inside)(nothing) if inside else nothing
        return (made, *[None] * (outputs - 1)) if outputs else made


def _gone_again(twin: type[nn.Module], was: type[nn.Module]) -> nn.Module:
    kind = mixed(twin, was)
    return kind.__new__(kind)


def pass_over(model: nn.Module, absence: Absence) -> None:
    """Have a network that lost all units of a group go on without the part."""
    consumer, module = model.get_submodule(absence.consumer), model.get_submodule(absence.module)
    become(consumer, mixed(Constant, type(consumer)))
    if module is not consumer:
        inside = absence.consumer[len(absence.module) + 1 :] if lies_in(absence.consumer, absence.module) else ""
        setattr(module, LEFT, (inside, absence.outputs, next(iter(inspect.signature(module.forward).parameters))))
        become(module, mixed(PassedOver, type(module)))


def places(group: UnitGroup, consumer: str) -> list[str]:
    """What may be passed over where a group is gone, the most first.

    That is the smallest module around all that makes and reads its units, that around what makes them, or what reads
    them alone.
    """
    owners = [cut.parameter.rpartition(".")[0] for cut in group.cuts]
    makers = [path for path in owners if path != consumer]
    wider = [path for path in (around([*makers, consumer]), around(makers)) if path not in ("", consumer)]
    return [*wider, consumer]


def can_pass_over(model: nn.Module, group: UnitGroup, absence: Absence) -> bool:
    """Whether what a description passes over is a part of the group."""
    return lies_flat(model, group, absence.consumer) and absence.module in places(group, absence.consumer)


def lies_flat(model: nn.Module, group: UnitGroup, consumer: str) -> bool:
    """Whether a module is a linear map, a row per position, that reads all units of a group and nothing else."""
    module: Foreign = model.get_submodule(consumer)
    if not (isinstance(module, nn.Linear) or stored_transposed(module)):
        return False
    axis = out_axis(module)
    read = [cut.block for cut in group.cuts if cut.parameter == f"{consumer}.weight" and cut.dim != axis]
    features: int = module.weight.shape[1 - axis]
    return features == group.size * sum(read)


def is_gone(module: nn.Module) -> bool:
    """Whether it computes no more."""
    return isinstance(module, _Gone)
