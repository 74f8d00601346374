"""Latency as a cost: how long a forward takes as a function of the units kept, fitted to times measured here.

A linear map takes a time of its own and one that grows with the units that it reads and makes. So with s_g the share
kept of group g, and P ranging over the sets of groups that meet in one module of a block,

    t_block(s) = a_0 + sum over P of  a_P  prod over g in P of s_g,        a >= 0

Every block, and the rest of the network, is timed inside the whole forward of networks cut to many sizes, each group
to sizes of its own. What has no MACs, such as pooling, grows with the units as well: it is timed with the block
before it. A part that may go as a whole takes a time for being there at all, whatever its share. All times are
divided by those of the dense network just before and after, as a machine may slow down meanwhile. The coefficients,
one set for all blocks of one make, are a least-squares fit, weakly regularised towards times in proportion to the
MACs, which determines what the sizes leave open. They are terms of a `CostModel`, which any search can spend.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections import defaultdict
from collections.abc import Container
from dataclasses import replace
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..running.batch import Batch
from ..running.cost import CostModel, Term
from ..running.modules import call, device_of, hooks, inference_mode_of
from ..running.surgery import shrink
from ..space.budget import PER_MS
from ..space.plans import Cost, Plan
from ..space.units import UnitGroup, UnitSpace, lies_in
from ..support.progress import Track, silent
from .timed import keep_terms, kept_terms, key_of

METHOD = 3  # which way of measuring and fitting stored times are of: to be counted up when that changes
SIZES = 16  # networks that are timed
PARTS = 2  # networks without parts of a kind, beside those
SECONDS = 0.5  # that the forwards of each of them take together, about
FEWEST = 3  # forwards of each of them at least
PRIOR = 1e-2  # weight of times in proportion to the MACs, against one timed network
MULTIPLE = 16  # that processors like sizes to be of
REST = ""  # what lies in no block
THERE = " there"  # marks the share of a part that may go as none or all

Groups = tuple[str, ...]


def latency_cost(
    model: nn.Module, space: UnitSpace, macs: CostModel, inputs: Batch, track: Track = silent
) -> CostModel:
    """Time of one forward on this machine as it runs now: its device, precision and number of threads.

    Measured once for networks of the same shape; the cache folder keeps the result.

    Args:
        macs: of the same network: which groups meet in which module.
        inputs: keyword inputs; the latency is that of as many examples of the same size.
    """
    key = key_of(model, space, inputs) | {"method": METHOD, "multiple": MULTIPLE}
    terms = kept_terms(key, space)
    if terms is None:
        terms = fitted(model, space, macs, inputs, track)
        keep_terms(key, terms)
    return CostModel("latency", space.sizes, tuple(terms))


def milliseconds(model: nn.Module, inputs: Batch, rounds: int = 15) -> float:
    """Median time of one forward, after one that is not timed."""
    with inference_mode_of(model), torch.inference_mode():
        call(model, inputs)
        return statistics.median(forward_ms(model, inputs) for _ in range(rounds))


def forward_ms(model: nn.Module, inputs: Batch) -> float:
    """Milliseconds of one forward, in the mode that the network is in."""
    device = device_of(model)
    start = now(device)
    call(model, inputs)
    return (now(device) - start) / PER_MS


def now(device: torch.device) -> int:
    """Picoseconds on a clock that waits until a device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return 1000 * time.perf_counter_ns()


def fitted(model: nn.Module, space: UnitSpace, macs: CostModel, inputs: Batch, track: Track = silent) -> list[Term]:
    """The terms of the latency, from the times of networks cut to many sizes.

    Blocks of one make have the same. All are scaled to give the dense network its time: budgets are shares of that,
    and a least squares of relative errors comes out below times with noise.
    """
    plans, meetings = sizes_to_time(space), _meetings(space, macs)
    runs = _runs(space.blocks, meetings)
    dense, times = _times_of(model, space, plans, inputs, track)
    shares = [{name: count / space.sizes[name] for name, count in plan.kept.items()} for plan in plans]
    groups = {block: [group.name for group in space if (group.name,) in sets] for block, sets in meetings.items()}
    terms: list[Term] = []
    for make in _of_one_make(model, space, runs, groups, meetings):
        names = {block: dict(zip(groups[make[0]], groups[block], strict=True)) for block in make}
        parts = [name for name in groups[make[0]] if any(not space[own[name]].min_keep for own in names.values())]
        there = {f"{name}{THERE}": name for name in parts}
        found = coefficients(
            [
                {name: share[own] for name, own in names[block].items()}
                | {mark: float(share[names[block][name]] > 0) for mark, name in there.items()}
                for block in names
                for share in shares
            ],
            [sum(spent[name] for name in runs[block]) for block in names for spent in times],
            meetings[make[0]] | {(mark,): 0 for mark in there},
        )
        entries = {name: found.pop((mark,), 0) for mark, name in there.items()}
        for block, own in names.items():
            terms += [
                Term(block, amount, tuple(own[name] for name in together)) for together, amount in found.items()
            ]
            terms += [Term(block, amount, there=own[name]) for name, amount in entries.items() if amount]
    off = dense / sum(term.amount for term in terms)
    return [replace(term, amount=round(off * term.amount)) for term in terms]


def _times_of(
    model: nn.Module, space: UnitSpace, plans: list[Plan], inputs: Batch, track: Track
) -> tuple[float, list[dict[str, float]]]:
    """Picoseconds of the dense network, and by block of it cut to each plan, as if it had always taken as long.

    It is timed before and after each of the others; its time is the median.
    """
    rounds = max(math.ceil(SECONDS * 1000 / milliseconds(model, inputs, FEWEST)), FEWEST)
    pace, found = [milliseconds(model, inputs, rounds // FEWEST)], []
    for plan in track(plans, "block times", len(plans)):
        cut = copy.deepcopy(model)
        shrink(cut, space, plan)
        found.append(block_times(cut, space.blocks, inputs, rounds))
        pace.append(milliseconds(model, inputs, rounds // FEWEST))
    dense, around = statistics.median(pace), [sum(pair) / 2 for pair in pairwise(pace)]
    return dense * PER_MS, [
        {block: dense / meanwhile * picoseconds for block, picoseconds in spent.items()}
        for spent, meanwhile in zip(found, around, strict=True)
    ]


def _runs(blocks: tuple[str, ...], timed: Container[str]) -> dict[str, list[str]]:
    """Of each block that is `timed`: itself, and those of the others that follow it."""
    last, found = REST, defaultdict[str, list[str]](list)
    for block in (REST, *dict.fromkeys(blocks)):
        last = block if block in timed else last
        found[last].append(block)
    return found


def _of_one_make(
    model: nn.Module,
    space: UnitSpace,
    runs: dict[str, list[str]],
    groups: dict[str, list[str]],
    meetings: dict[str, dict[Groups, int]],
) -> list[list[str]]:
    """Blocks that differ in the names of their groups alone."""
    found: dict[object, list[str]] = defaultdict(list)
    for block, run in runs.items():
        number = {name: index for index, name in enumerate(groups[block])}
        sets = {frozenset(number[name] for name in together): amount for together, amount in meetings[block].items()}
        kinds = tuple(type(model.get_submodule(name)) for name in run)
        sizes = tuple(space.sizes[name] for name in groups[block])
        found[kinds, sizes, frozenset(sets.items())].append(block)
    return list(found.values())


def sizes_to_time(space: UnitSpace) -> list[Plan]:
    """The dense network, then others whose sizes are spread evenly over each group, in an order of its own.

    Where whole parts may go, these too without all attentions and without all other parts, as often as `PARTS`.
    """
    generator = torch.Generator().manual_seed(0)
    counts = {}
    for group in space:
        spread = torch.linspace(1, 0, SIZES)[1:][torch.randperm(SIZES - 1, generator=generator)]
        shares = [1.0, *spread.tolist()]
        counts[group.name] = [_count(group, share) for share in shares]
        for attention in (True, False) * PARTS if any(not one.min_keep for one in space) else ():
            gone = not group.min_keep and group.of.attention == attention
            counts[group.name].append(0 if gone else group.size)
    return [
        Plan(
            space.architecture,
            space.sizes,
            {name: tuple(range(count)) for name, count in zip(counts, kept, strict=True)},
            Cost(0, 0),
            Cost(0, 0),
            length=0,
        )
        for kept in zip(*counts.values(), strict=True)
    ]


def multiple_of(group: UnitGroup) -> int:
    """Of what the counts of a group are multiples, for speed; at least eight of them are in every group."""
    if group.of.attention:
        return 1
    return math.lcm(group.multiple, min(MULTIPLE, 2 ** int(math.log2(max(group.size // 8, 1)))))


def _count(group: UnitGroup, share: float) -> int:
    """So much of a group as a multiple, if it may keep that few."""
    rounded = round(share * group.size / multiple_of(group)) * multiple_of(group)
    return min(max(rounded, group.min_keep), group.size) if share < 1 else group.size


def block_times(model: nn.Module, blocks: tuple[str, ...], inputs: Batch, rounds: int) -> dict[str, float]:
    """Median picoseconds that each block takes in one forward, and what lies in none of them."""
    device, found = device_of(model), defaultdict[str, list[int]](list)
    watches = {block: _Stopwatch(device) for block in blocks}
    handles = [
        handle
        for block, watch in watches.items()
        for module in [model.get_submodule(block)]
        for handle in (module.register_forward_pre_hook(watch.start), module.register_forward_hook(watch.stop))
    ]
    with hooks(*handles), inference_mode_of(model), torch.inference_mode():
        call(model, inputs)
        for _ in range(rounds):
            for watch in watches.values():
                watch.total = 0
            start = now(device)
            call(model, inputs)
            rest = now(device) - start
            for block, watch in watches.items():
                found[block].append(watch.total)
                rest -= watch.total
            found[REST].append(max(rest, 0))
    return {block: statistics.median(values) for block, values in found.items()}


def coefficients(
    shares: list[dict[str, float]], times: list[float], meetings: dict[Groups, int]
) -> dict[Groups, int]:
    """a_P of one block: least squares of the relative errors, without negative ones.

        min over a    sum over networks  ( X a / t - 1 )^2   +   PRIOR  || a - T macs / sum(macs) ||^2 / T^2

    Args:
        shares: kept of each group, by network, the dense one first.
        times: of the block in each, in picoseconds; T is the first.
        meetings: MACs of the sets P.
    """
    dense, total = max(times[0], 1.0), max(sum(meetings.values()), 1)
    columns = [[math.prod(share[name] for name in groups) for groups in meetings] for share in shares]
    matrix = torch.tensor(columns, dtype=torch.float64) * dense / torch.tensor(times).clamp_min(1.0)[:, None]
    pull = math.sqrt(PRIOR) * torch.eye(len(meetings), dtype=torch.float64)
    expected = pull @ torch.tensor([amount / total for amount in meetings.values()], dtype=torch.float64)
    found = nonnegative(torch.cat([matrix, pull]), torch.cat([torch.ones(len(times)), expected]))
    return {
        groups: round(float(amount) * dense) for groups, amount in zip(meetings, found, strict=True) if amount > 0
    }


def nonnegative(matrix: Float[Tensor, "row column"], target: Float[Tensor, " row"]) -> Float[Tensor, " column"]:
    """Least squares; as long as any coefficient is negative, the most negative is left out."""
    left = list(range(matrix.shape[1]))
    while left:
        found = torch.linalg.lstsq(matrix[:, left], target[:, None]).solution[:, 0]
        if float(found.min()) >= 0:
            return torch.zeros(matrix.shape[1], dtype=matrix.dtype).index_copy(0, torch.tensor(left), found)
        left.pop(int(found.argmin()))
    return torch.zeros(matrix.shape[1], dtype=matrix.dtype)


def _meetings(space: UnitSpace, macs: CostModel) -> dict[str, dict[Groups, int]]:
    """MACs by block that has any: of the groups that meet in its modules, of each group alone, and of none."""
    found: dict[str, dict[Groups, int]] = {REST: {(): 0}}
    for term in macs.terms:
        block = next((name for name in space.blocks if lies_in(term.module, name)), REST)
        sets = found.setdefault(block, {(): 0})
        together = tuple(sorted(set(term.groups)))
        sets[together] = sets.get(together, 0) + term.amount
        for name in together:
            sets.setdefault((name,), 0)
    return {block: dict(sorted(sets.items())) for block, sets in found.items()}


class _Stopwatch:
    """Forward hooks: the time between them, added up."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.total, self.started = device, 0, 0

    def start(self, module: nn.Module, args: object) -> None:
        self.started = now(self.device)

    def stop(self, module: nn.Module, args: object, output: object) -> None:
        self.total += now(self.device) - self.started
