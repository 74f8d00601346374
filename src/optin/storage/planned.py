"""A network and the plan that it was cut to: the plan stands in its configuration, and makes it small again."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Mapping

from torch import nn

from ..describing import architecture_of, describe
from ..describing.inputs import default_length, planned_inputs
from ..describing.queries import QUERIES
from ..errors import ArchitectureError, CheckpointError, InputError
from ..running.merging import Merging
from ..running.modules import device_of
from ..running.surgery import check_description, fits, shrink
from ..space.plans import Cost, Plan
from ..space.units import UnitSpace
from ..support.untyped import Foreign, Json
from . import modeling_optin
from .libraries import is_other
from .untrusted import Stored

SECTION = "optin"

GENERAL = ("PreTraining", "TextEncoding", "MultimodalLM")  # end the names of Auto classes that another stands for too


def cut_to_plan(model: nn.Module, plan: Plan, space: UnitSpace | None = None) -> Plan:
    """Cut a network to a plan in place, and let its tokens merge as the plan says.

    Args:
        space: its description; that which the plan holds if not given, or found anew for one that holds none.

    Returns:
        The plan by the names of today, with its description, for one of 0.1.0 that had neither.

    Raises:
        CheckpointError: the plan does not fit the network.
    """
    space = space or _description(model, plan)
    plan = dataclasses.replace(plan.renamed(space), description=plan.description or space)
    shrink(model, space, plan)
    if any(plan.tokens) and space.tokens is not None:
        Merging(model, space.tokens, plan.tokens)
    return plan


def _description(model: nn.Module, plan: Plan) -> UnitSpace:
    """The description that a plan holds, checked, or one made anew."""
    kinds = (architecture_of(model), type(model).__name__)
    if plan.description is not None and plan.architecture not in kinds:
        raise CheckpointError(f"the plan is for {plan.architecture!r}, the network is {kinds[0] or kinds[1]!r}.")
    if plan.description is not None and fits(model, plan.description):
        check_description(model, plan.description)
        return plan.description
    inputs = None if device_of(model).type == "meta" else planned_inputs(model, plan, 2)  # made with the weights
    return describe(model, inputs)


def record_plan(model: nn.Module, plan: Plan, original: Mapping[str, int] | None = None) -> None:
    """Write the plan into the model's configuration, so that the model can be saved by any means.

    A network that has none gets it as an attribute.

    A network pruned before gets the composition of both plans: its dense sizes stay those of the first.

    Args:
        original: MACs and parameters of the network before it was pruned first, at the size of this plan.
    """
    earlier = section_of(model)
    combined = plan if earlier is None else compose(Plan.from_dict(earlier), plan)
    if original is not None:
        combined = dataclasses.replace(combined, dense=Cost(original["macs"], original["parameters"]))
    setattr(getattr(model, "config", model), SECTION, combined.to_dict())
    if not is_other(model) and auto_class(model) is not None:
        # An object of its class still, that writes what the Auto classes need whoever saves it: see `shrinking`.
        model.__class__ = shrinking(type(model).__name__)


def section_of(model: nn.Module) -> Json:
    """The plan that a network was cut to, as `record_plan` wrote it; None for a dense one."""
    return getattr(getattr(model, "config", model), SECTION, None)


def input_shape(model: nn.Module) -> tuple[int, int | None]:
    """The length, and for images that are not square the width, that a pruned network was planned for.

    Of a dense one, what it takes by itself.
    """
    section = section_of(model)
    return (section["length"], section.get("width")) if section else (default_length(model), None)


def compose(first: Plan, second: Plan) -> Plan:
    """One plan for pruning by `first` and the result by `second`."""
    first = first.renamed(second.description) if second.description is not None else first
    description = first.description
    new = [group for group in second.description or () if group.name not in first.sizes]  # whole the first time
    if description is not None and new:
        description = dataclasses.replace(description, groups=(*description.groups, *new))
    before = {name: range(size) for name, size in second.sizes.items()} | dict(first.keep)
    return Plan(
        architecture=first.architecture,
        sizes=dict(second.sizes) | dict(first.sizes),
        keep=dict(first.keep)
        | {name: tuple(before[name][unit] for unit in units) for name, units in second.keep.items()},
        dense=first.dense if first.size == second.size else second.dense,
        pruned=Cost(second.pruned.macs, second.pruned.parameters),
        length=second.length,
        provenance={**second.provenance, "earlier": dict(first.provenance)},
        tokens=second.tokens or first.tokens,
        width=second.width,
        latency=second.latency,
        description=description,
    )


def check_heads(model: nn.Module, space: UnitSpace) -> None:
    """Refuse heads that were units of another kind when the network was pruned before.

    Raises:
        InputError: says how they can go on.
    """
    section, kinds = section_of(model), (".heads", QUERIES)
    before = set() if section is None else set(Plan.from_dict(section).sizes)
    for group in space:
        for own, other in (kinds, kinds[::-1]):
            if group.name.endswith(own) and f"{group.name.removesuffix(own)}{other}" in before:
                raise InputError(
                    f"the heads of {group.name.removesuffix(own)!r} were pruned as {other[1:]} before: prune them so "
                    f"again ({'with' if other == QUERIES else 'without'} 'queries'), or leave them whole (exclude)."
                )


@functools.cache
def shrinking(name: str) -> type[nn.Module]:
    """A subclass of the transformers class `name` whose objects are cut to `config.optin` when they are made.

    `save_pretrained` of its objects, and with it the Trainer, puts `modeling_optin.py` beside the weights and says so
    in config.json, as transformers does for every class from a module of one's own.

    Raises:
        ArchitectureError: transformers has no such model class.
    """
    return shrinking_within(name)


def shrinking_within(name: str, stored: Stored | None = None) -> type[nn.Module]:
    """`shrinking`; with what the weights are, to refuse a configuration that asks for far more."""
    import transformers

    parent: Foreign = getattr(transformers, name, None) if name.isidentifier() else None
    base: object = parent
    if not (isinstance(base, type) and issubclass(base, transformers.PreTrainedModel)):
        raise ArchitectureError(f"transformers {transformers.__version__} has no model class {name!r}.")

    def __init__(self: Foreign, config: Foreign, *args: object, **kwargs: object) -> None:
        with contextlib.nullcontext() if stored is None else stored.bounded():
            base.__init__(self, config, *args, **kwargs)
            section = getattr(config, SECTION, None)
            if section is not None:
                setattr(config, SECTION, cut_to_plan(self, Plan.from_dict(section)).to_dict())
        if stored is not None:
            stored.check_network(self)

    def init_continuous_batching(self: Foreign, *args: object, **kwargs: object) -> object:
        _check_equal_caches(self)
        return parent.init_continuous_batching(self, *args, **kwargs)

    # Weights on disk have the names of the library's own class, which it translates for its own classes only.
    own: dict[str, object] = {"is_custom_code": classmethod(lambda cls: False), "_auto_class": auto_class(base)}
    if hasattr(parent, "init_continuous_batching"):
        own["init_continuous_batching"] = init_continuous_batching
    return type(name, (base,), {"__init__": __init__, "__module__": modeling_optin.__name__, **own})


def _check_equal_caches(model: nn.Module) -> None:
    """Refuse a cache that has one size for all layers, where these lost different heads.

    Raises:
        InputError: says which caches there are.
    """
    plan = Plan.from_dict(section_of(model))
    kinds = {} if plan.description is None else {group.name: group.kind for group in plan.description}
    cut = [name for name, units in plan.keep.items() if len(units) < plan.sizes[name] and kinds.get(name) == "head"]
    if any(not name.endswith(QUERIES) for name in cut):
        raise InputError(
            "continuous batching (generate_batch, cache_implementation='paged') keeps a cache of one size for all "
            "layers, and this network lost heads of some. Generate with a dynamic or static cache, or prune with "
            "'queries: true', which leaves the cache as it is."
        )


def auto_class(model: object) -> str | None:
    """The Auto class that stands for the task of a network or its class."""
    from transformers.models.auto import modeling_auto

    name = (model if isinstance(model, type) else type(model)).__name__
    tables = {
        auto: found._model_mapping._model_mapping
        for auto in ("AutoModel", *sorted(vars(modeling_auto), key=lambda auto: auto.endswith(GENERAL)))
        if auto.startswith("AutoModel") and hasattr(found := getattr(modeling_auto, auto), "_model_mapping")
    }
    return next((auto for auto, names in tables.items() if name in names.values()), None)
