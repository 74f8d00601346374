"""Channels of a convolutional network, found by following them through the graph of its operations.

Every convolution and linear map begins a family of channels. Activations, pooling, batch normalisation and
depth-wise convolutions pass it on, sums and products unite two families, and the next convolution or linear map
reads it. A family whose every operation is understood is a group of units: its producers and whatever passes it on
are cut along their outputs, its readers along their inputs. Where channels meet anything else, they all stay.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..batches import size_of
from ..errors import ArchitectureError, first_line
from ..modules import hooks, inference_mode_of
from ..units import Attribute, Cut, Gate, Tap, UnitGroup, UnitSpace, lies_in

MAPS = ("conv2d", "linear")


@dataclass(eq=False)
class Family:
    """Channels that can only leave together.

    Attributes:
        size: how many there are.
        producers: modules whose outputs they are.
        readers: modules that read them, with the features of each channel there.
        obstacle: why they must stay whole.
    """

    size: int
    producers: list[str] = field(default_factory=list)
    readers: list[tuple[str, int]] = field(default_factory=list)
    cuts: list[Cut] = field(default_factory=list)
    attributes: list[Attribute] = field(default_factory=list)
    obstacle: str | None = None

    def take(self, other: Family) -> None:
        """Unite with another family."""
        self.producers += other.producers
        self.readers += other.readers
        self.cuts += other.cuts
        self.attributes += other.attributes
        self.obstacle = self.obstacle or other.obstacle


@dataclass(frozen=True)
class Axis:
    """Where the channels of a value are: along `place`, `block` consecutive entries each."""

    place: int
    family: int
    block: int = 1


def channel_space(model: nn.Module, inputs: dict[str, Tensor], architecture: str) -> UnitSpace:
    """What can be removed from a convolutional network.

    Args:
        inputs: keyword inputs of two or more examples.

    Raises:
        ArchitectureError: the network cannot be traced, or nothing of it can be cut; names what stands in the way.
    """
    graph = Graph(model, inputs)
    families = list(Channels(model, graph).families())
    whole = [family for family in families if family.producers and family.readers and family.obstacle is None]
    if not whole:
        obstacle = next((family.obstacle for family in families if family.obstacle is not None), "it has no channels")
        raise ArchitectureError(f"nothing can be cut from this {type(model).__name__}: {obstacle}.")
    readers = [name for family in whole for name, _ in family.readers]
    blocks = graph.chain()
    chained = all(any(lies_in(name, block) for block in blocks) for name in readers)
    if not chained:
        blocks = graph.cover(readers)
    groups = [_group(model, graph, family, blocks) for family in whole]
    groups.sort(key=lambda group: group.layer)
    transposed = tuple(block for block in blocks if graph.examples_axis(graph.plain[block]) == 1)
    return UnitSpace(architecture, tuple(groups), blocks, channels_first=True, chained=chained, transposed=transposed)


class Graph:
    """The operations of one forward, with the modules that they belong to."""

    def __init__(self, model: nn.Module, inputs: dict[str, Tensor]) -> None:
        self.model = model
        with inference_mode_of(model):
            self.calls, self.plain = _observed(model, inputs)
            try:
                program = torch.export.export(model, (), inputs, strict=False)
            except Exception as error:  # whatever the tracer of torch stumbles over
                raise ArchitectureError(
                    f"the forward of {type(model).__name__} cannot be traced: {first_line(error)}. "
                    "optin prunes networks whose operations do not depend on the data."
                ) from None
        self.examples = size_of(inputs)
        signature = program.graph_signature
        self.tensors: dict[Any, str] = {}
        self.nodes: list[Any] = []
        named = {**signature.inputs_to_parameters, **signature.inputs_to_buffers}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in named:
                self.tensors[node] = named[node.name]
            elif node.op in ("placeholder", "call_function"):
                self.nodes.append(node)
        self.results = [node for node in program.graph.output_node().all_input_nodes if node not in self.tensors]
        self.place = {node: index for index, node in enumerate(self.nodes)}
        self.spans = self._spans()
        self.maps = {self.path(node): node for node in self.nodes if _operation(node) in MAPS}

    def examples_axis(self, shape: tuple[int, ...]) -> int | None:
        """The axis of a value that runs over the examples: the first, or the second as in a decoder of queries."""
        return next((axis for axis, size in enumerate(shape[:2]) if size == self.examples), None)

    def path(self, node: Any) -> str:
        """The innermost module that an operation belongs to."""
        return (_stack(node) or [""])[-1]

    def chain(self) -> tuple[str, ...]:
        """Modules after which one value alone is alive, so that a forward can resume there."""
        last = {node: max((self.place.get(user, math.inf) for user in node.users), default=-1) for node in self.nodes}
        found, before, alive = [], -1, set[Any]()
        for index, node in enumerate(self.nodes):
            alive = {value for value in alive if last[value] > index}
            if last[node] > index:
                alive.add(node)
            if alive and alive != {node}:
                continue
            ending = (path for path in _stack(node) if path and self.spans[path][1] == index)
            block = next((path for path in ending if self.spans[path][0] > before and self._whole(path)), None)
            if block is not None:
                found.append(block)
                before = index
        return tuple(found)

    def cover(self, consumers: list[str]) -> tuple[str, ...]:
        """For each consumer the smallest module with it and its total inside, where values flow past modules too."""
        found = set()
        for consumer in consumers:
            total = self.tap_before_sum(consumer)[0].module
            around = [consumer.rsplit(".", depth)[0] for depth in range(consumer.count(".") + 1)]
            both = (path for path in around if self._whole(path) and lies_in(total, path))
            found.add(next(both, consumer))
        outer = [path for path in found if not any(lies_in(path, other) for other in found - {path})]
        return tuple(sorted(outer, key=lambda path: self.spans[path]))

    def tap_before_sum(self, consumer: str) -> tuple[Tap, str | None]:
        """Where a consumer's output can be read with the residual added, and the batch norm between the two."""
        node = self.maps[consumer]
        own, norm = Tap(consumer, "output"), None
        follower = _only_user(node)
        if follower is not None and _operation(follower) == "batch_norm":
            norm, follower = self.path(follower), _only_user(follower)
        if follower is None or _operation(follower) != "add":
            return own, None
        for path in reversed(_stack(follower)):
            if path and self.spans[path][1] == self.place[follower] and self._whole(path):
                return Tap(path, "output"), norm
        reader = _only_user(follower)
        path = self.path(reader) if reader is not None else ""
        if path and self.spans[path][0] == self.place.get(reader) and self._whole(path):
            return Tap(path, "input"), norm
        return own, None

    def shift_of(self, consumer: str) -> str | None:
        """The buffer of means that is subtracted from a consumer's output right away."""
        follower = _only_user(self.maps[consumer])
        if follower is None or _operation(follower) != "batch_norm":
            return None
        return self.tensors.get(follower.args[3])

    def _whole(self, path: str) -> bool:
        """Whether a module runs once and returns one tensor."""
        return self.calls[path] == 1 and path in self.plain

    def _spans(self) -> dict[str, tuple[int, int]]:
        spans: dict[str, tuple[int, int]] = {}
        for index, node in enumerate(self.nodes):
            for path in _stack(node):
                spans[path] = (spans.get(path, (index, index))[0], index)
        return spans


class Channels:
    """Families of channels, united as the graph says."""

    def __init__(self, model: nn.Module, graph: Graph) -> None:
        self.model, self.graph = model, graph
        self._families: list[Family] = []
        self._roots: list[int] = []
        self.axes: dict[Any, Axis] = {}
        for node in graph.nodes:
            if node.op == "call_function":
                self._follow(node)
        for node in graph.results:
            self._obstruct([node], "it is the output of the network")

    def families(self) -> Iterator[Family]:
        """The families as they are in the end, in order of their first producers."""
        for index, root in enumerate(self._roots):
            if index == root:
                yield self._families[index]

    def _follow(self, node: Any) -> None:
        operation = _operation(node)
        known = [value for value in node.all_input_nodes if value in self.axes]
        if operation in MAPS:
            self._map(node, operation)
        elif known:
            axis = _RULES[operation](self, node) if operation in _RULES else None
            if axis is None:
                where = self.graph.path(node) or type(self.model).__name__
                self._obstruct(known, f"{where!r} does {operation!r} with them")
            else:
                self.axes[node] = axis

    def _map(self, node: Any, operation: str) -> None:
        """A convolution or a linear map: reads one family and begins another."""
        value, weight = node.args[0], self.graph.tensors.get(node.args[1])
        groups = node.args[6] if len(node.args) > 6 else 1
        place, read = (1, 1) if operation == "conv2d" else (_rank(node) - 1, _rank(value) - 1)
        size, path, axis = _shape(node)[place], self.graph.path(node), self.axes.get(value)
        if reason := self._reason(node, path, weight):
            self._obstruct([value], reason)
            self.axes[node] = self._begin(size, place, None, reason)
            return
        if operation == "conv2d" and groups > 1:
            self._grouped(node, axis, groups, size, path)
            return
        if axis is not None and axis.place != read:
            self._obstruct([value], f"{path!r} reads them along another axis")
        elif axis is not None:
            family = self._family(axis)
            family.readers.append((path, axis.block))
            family.cuts.append(Cut(f"{path}.weight", 1, axis.block))
        self.axes[node] = self._begin(size, place, path)

    def _reason(self, node: Any, path: str, weight: str | None) -> str | None:
        """Why a map cannot be cut, if it cannot."""
        if weight != f"{path}.weight" or self.graph.calls[path] != 1:
            return f"{path!r} computes or shares its weights"
        module: Any = self.model.get_submodule(path)
        start, stop = self.graph.spans[path]
        uneven = getattr(module, "padding", 0) == "same" and any(size % 2 == 0 for size in module.kernel_size)
        if start != stop or uneven:
            return f"{path!r} pads by itself"
        axis = self.graph.examples_axis(_shape(node))
        if axis is None or (axis == 1 and (_rank(node) < 3 or isinstance(module, nn.Conv2d))):
            return f"{path!r} does not have the examples along its first or second axis"
        return None

    def _grouped(self, node: Any, axis: Axis | None, groups: int, size: int, path: str) -> None:
        """Depth-wise convolutions pass channels on; other groups tie them together."""
        if axis is None or groups != size or self._family(axis).size != groups:
            self._obstruct([node.args[0]], f"{path!r} convolves in {groups} groups")
            self.axes[node] = self._begin(size, 1, None, f"{path!r} convolves in {groups} groups")
            return
        family = self._family(axis)
        family.cuts += _output_cuts(self.model, path)
        family.attributes += [Attribute(path, "groups"), Attribute(path, "in_channels")]
        self.axes[node] = axis

    def _begin(self, size: int, place: int, path: str | None, obstacle: str | None = None) -> Axis:
        family = Family(size, obstacle=obstacle)
        if path is not None:
            family.producers.append(path)
            family.cuts += _output_cuts(self.model, path)
        self._families.append(family)
        self._roots.append(len(self._roots))
        return Axis(place, len(self._roots) - 1)

    def _root(self, index: int) -> int:
        while self._roots[index] != index:
            index = self._roots[index]
        return index

    def _family(self, axis: Axis) -> Family:
        return self._families[self._root(axis.family)]

    def _obstruct(self, nodes: list[Any], reason: str) -> None:
        for axis in (self.axes[node] for node in nodes if node in self.axes):
            family = self._family(axis)
            family.obstacle = family.obstacle or reason

    def _same(self, node: Any) -> Axis | None:
        """Each entry by itself, or along other axes than the channels'."""
        return self.axes.get(node.args[0])

    def _normalise(self, node: Any) -> Axis | None:
        """Batch normalisation: one of each statistic per channel."""
        axis = self.axes.get(node.args[0])
        path = self.graph.path(node)
        if axis is None or axis.place != 1 or axis.block != 1 or self.graph.calls[path] != 1:
            return None
        names = [self.graph.tensors[value] for value in node.args[1:5] if value in self.graph.tensors]
        family = self._family(axis)
        family.cuts += [Cut(name, 0) for name in names]
        family.attributes.append(Attribute(path, "num_features"))
        return axis

    def _combine(self, node: Any) -> Axis | None:
        """Sums and products: two families become one; a parameter is cut with the family that it meets."""
        axes = [(value, self.axes[value]) for value in node.all_input_nodes if value in self.axes]
        value, axis = axes[0]
        behind = _rank(value) - axis.place  # places counted from the end, as broadcasting does
        for other, its in axes[1:]:
            apart = _rank(other) - its.place != behind or its.block != axis.block
            if apart or self._family(its).size != self._family(axis).size:
                return None
            self._unite(axis, its)
        for other in (v for v in node.all_input_nodes if v not in self.axes):
            extent = _shape(other)[-behind] if _rank(other) >= behind else 1
            if extent > 1:
                if other not in self.graph.tensors:
                    return None
                self._family(axis).cuts.append(Cut(self.graph.tensors[other], _rank(other) - behind, axis.block))
        return Axis(_rank(node) - behind, axis.family, axis.block)

    def _unite(self, one: Axis, other: Axis) -> None:
        first, second = sorted((self._root(one.family), self._root(other.family)))
        if first != second:
            self._families[first].take(self._families[second])
            self._roots[second] = first

    def _reduce(self, node: Any) -> Axis | None:
        """A mean or sum over other axes than the channels'."""
        axis, rank = self.axes[node.args[0]], _rank(node.args[0])
        dims = {dim % rank for dim in (node.args[1] if len(node.args) > 1 else range(rank))}
        if axis.place in dims:
            return None
        kept = _rank(node) == rank
        return axis if kept else Axis(axis.place - sum(dim < axis.place for dim in dims), axis.family, axis.block)

    def _reshape(self, node: Any) -> Axis | None:
        """Channels stay one axis, or the axes behind them join them."""
        axis = self.axes[node.args[0]]
        old, new = _shape(node.args[0]), _shape(node)
        ahead, wide = math.prod(old[: axis.place]), old[axis.place]
        for place, size in enumerate(new):
            if math.prod(new[:place]) == ahead and size % wide == 0 and size > 1:
                joined = size // wide
                behind = [math.prod(old[axis.place + 1 : stop]) for stop in range(axis.place + 1, len(old) + 1)]
                return Axis(place, axis.family, axis.block * joined) if joined in behind else None
        return None

    def _permute(self, node: Any) -> Axis | None:
        axis, rank = self.axes[node.args[0]], _rank(node)
        if _operation(node) == "permute":
            order = [dim % rank for dim in node.args[1]]
        else:
            order = list(range(rank))
            one, other = (dim % rank for dim in node.args[1:3])
            order[one], order[other] = other, one
        return Axis(order.index(axis.place), axis.family, axis.block)

    def _pad(self, node: Any) -> Axis | None:
        axis = self.axes[node.args[0]]
        return axis if len(node.args[1]) // 2 < _rank(node) - axis.place else None


_ENTRYWISE = (
    *("relu", "gelu", "silu", "hardtanh", "hardswish", "hardsigmoid", "sigmoid", "tanh", "leaky_relu", "elu", "mish"),
    *("softplus", "relu6", "clamp", "dropout", "clone", "contiguous", "to", "max_pool2d", "avg_pool2d"),
    *("adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_bilinear2d", "upsample_nearest2d"),
)
_RULES: dict[str, Callable[[Channels, Any], Axis | None]] = {
    **dict.fromkeys(_ENTRYWISE, Channels._same),
    "batch_norm": Channels._normalise,
    **dict.fromkeys(("add", "sub", "mul", "div"), Channels._combine),
    **dict.fromkeys(("mean", "sum"), Channels._reduce),
    **dict.fromkeys(("flatten", "view", "reshape", "squeeze", "unsqueeze"), Channels._reshape),
    **dict.fromkeys(("permute", "transpose"), Channels._permute),
    **dict.fromkeys(("pad", "constant_pad_nd"), Channels._pad),
}


def _group(model: nn.Module, graph: Graph, family: Family, blocks: tuple[str, ...]) -> UnitGroup:
    within = {name: next(block for block in blocks if lies_in(name, block)) for name, _ in family.readers}
    kinds = {type(model.get_submodule(name)) for name in family.producers}
    return UnitGroup(
        name=family.producers[0],
        kind="neuron" if kinds == {nn.Linear} else "channel",
        size=family.size,
        layer=min(blocks.index(block) for block in within.values()),
        cuts=tuple(family.cuts),
        gates=tuple(_gate(model, graph, name, features, within[name]) for name, features in family.readers),
        attributes=tuple(family.attributes),
        # A depth-wise convolution of one channel would be taken for an ordinary one.
        min_keep=1 + any(attribute.name == "groups" for attribute in family.attributes),
    )


def _gate(model: nn.Module, graph: Graph, name: str, features: int, block: str) -> Gate:
    total, norm = graph.tap_before_sum(name)
    if not lies_in(total.module, block):
        total = Tap(name, "output")
    dim = -1 if isinstance(model.get_submodule(name), nn.Linear) else 1
    examples = graph.examples_axis(_shape(graph.maps[name])) or 0
    scale = norm if total.module != name else None
    return Gate(name, dim, features, total, scale, graph.shift_of(name), examples)


def _output_cuts(model: nn.Module, path: str) -> list[Cut]:
    bias = model.get_submodule(path).bias is not None
    return [Cut(f"{path}.weight", 0), *([Cut(f"{path}.bias", 0)] if bias else [])]


def _observed(model: nn.Module, inputs: dict[str, Tensor]) -> tuple[Counter[str], dict[str, tuple[int, ...]]]:
    """How often each module runs in one forward, and the shapes of what those return that return one tensor.

    In a tuple it is the first, and nothing behind it is a tensor.
    """
    calls, plain = Counter[str](), dict[str, tuple[int, ...]]()

    def watch(name: str) -> Any:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            calls[name] += 1
            values = output if isinstance(output, tuple) else (output,)
            if [isinstance(value, Tensor) for value in values] == [True] + [False] * (len(values) - 1):
                plain[name] = tuple(values[0].shape)

        return note

    watched = (module.register_forward_hook(watch(name)) for name, module in model.named_modules() if name)
    with hooks(*watched), torch.no_grad():
        model(**inputs)
    return calls, plain


def _operation(node: Any) -> str:
    """The name of an operation, without its overload and without the mark of working in place."""
    return node.target._schema.name.partition("::")[2].rstrip("_") if hasattr(node.target, "_schema") else ""


def _stack(node: Any) -> list[str]:
    """The modules that an operation belongs to, from the outside in."""
    return [path.partition("@")[0] for path, _ in (node.meta.get("nn_module_stack") or {}).values()]


def _shape(node: Any) -> tuple[int, ...]:
    return tuple(node.meta["val"].shape)


def _rank(node: Any) -> int:
    return len(_shape(node))


def _only_user(node: Any) -> Any:
    """The one operation that reads a value, dropout passed over."""
    users = list(node.users)
    if len(users) != 1:
        return None
    return _only_user(users[0]) if _operation(users[0]) == "dropout" else users[0]
