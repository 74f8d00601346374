"""What a network costs before and after: counted, checked against torch, and told."""

from __future__ import annotations

import contextlib

from torch import nn

from .choosing.latency import latency_cost
from .describing.inputs import inputs_like, planned_inputs
from .errors import FAILURES, CheckpointError, InputError, refused
from .running.batch import Batch
from .running.caches import cache_bytes
from .running.cost import CostModel, byte_cost, counted_macs, mac_cost, parameter_cost
from .running.modules import weight_bytes
from .running.twins import on_twins
from .space.budget import Quantity
from .space.plans import Plan
from .space.scores import Scores
from .space.units import UnitSpace
from .storage.planned import section_of
from .support.progress import Track
from .support.untyped import Figures

CURVE = 33  # points of a removal curve in a report


@on_twins
def costs(
    model: nn.Module,
    space: UnitSpace,
    length: int,
    width: int | None = None,
    known: Plan | Scores | None = None,
) -> tuple[CostModel, CostModel]:
    """MACs of one example of `length` tokens or pixels a side, and parameters.

    Args:
        width: in pixels, of images that are not square.
        known: says what the inputs look like.

    Raises:
        InputError: the model does not take inputs of that length.
    """
    inputs = inputs_like(model, known, length, width)
    try:
        return mac_cost(model, space, inputs), parameter_cost(model, space)
    except FAILURES as error:
        raise refused(f"the network does not take inputs of length {length}", error) from error


def cost_in(
    quantity: Quantity,
    model: nn.Module,
    space: UnitSpace,
    macs: CostModel,
    parameters: CostModel,
    inputs: Batch,
    track: Track,
) -> CostModel:
    """The cost that a budget is of; for latency the network is timed on the inputs."""
    if quantity == "bytes":
        return byte_cost(model, space)
    if quantity == "latency":
        return latency_cost(model, space, macs, inputs, track)
    return macs if quantity == "MACs" else parameters


@on_twins
def check_costs(pruned: nn.Module, plan: Plan) -> None:
    """Compare the costs that a plan promises with those that torch counts in the network that it made.

    Raises:
        CheckpointError: they differ: the plan says something wrong.
    """
    inputs = planned_inputs(pruned, plan)
    parameters = sum(parameter.numel() for parameter in pruned.parameters())
    for what, said, found in (
        ("MACs", plan.pruned.macs, counted_macs(pruned, inputs)),
        ("parameters", plan.pruned.parameters, parameters),
    ):
        if said != found:
            raise CheckpointError(
                f"the plan promises {said:,} {what} and the network that it makes has {found:,}. "
                "Make the plan anew, with optin.plan."
            )


def figures_of(dense: nn.Module, pruned: nn.Module, space: UnitSpace, plan: Plan, scores: Scores | None) -> Figures:
    """Figures of a pruned network that its plan does not hold: bytes of weights and caches, MACs by module, curves.

    Raises:
        CheckpointError: the network costs something else than the plan says.
    """
    figures: dict[str, object] = {"bytes": {"dense": weight_bytes(dense), "pruned": weight_bytes(pruned)}}
    if scores is not None:
        figures["curves"] = {name: curve.sampled(CURVE) for name, curve in scores.curves.items()}
    with contextlib.suppress(InputError):  # a plan by hand may name a length that the network does not take
        work, parameters = costs(dense, space, plan.length, plan.width, plan)
        check_costs(pruned, plan)
        inputs = planned_inputs(pruned, plan)
        caches = {"dense": cache_bytes(dense, inputs), "pruned": cache_bytes(pruned, inputs)}
        if None not in caches.values():
            figures["cache"] = caches
        after = work.merged(plan.tokens).breakdown(plan.kept)
        figures["breakdown"] = {
            module: {"dense": macs, "pruned": after[module]} for module, macs in work.breakdown(work.sizes).items()
        }
        sizes = {} if (earlier := section_of(dense)) is None else Plan.from_dict(earlier).sizes
        if sizes.keys() == space.sizes.keys():  # no group has one unit left, which no description speaks of
            # Costs are sums of products, so that those of the network with all its units follow from what is left.
            figures["original"] = {"macs": work(sizes), "parameters": parameters(sizes)}
    return figures
