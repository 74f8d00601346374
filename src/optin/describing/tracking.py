"""One forward, in which labels travel with the tensors.

Every entry along every axis of every parameter has a label. Operations that move data are executed on the labels,
those on entries join the labels of their operands, and a map reads the labels of its input: see `rules`. What is left
are classes of labels that can only leave together, and what forbids that they leave.
"""

from __future__ import annotations

import bisect
import contextlib
import inspect
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterator, MutableMapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from ..running.cost import PRODUCTS
from ..running.experts import Experts
from ..running.twins import MultiheadAttention
from ..space.removal import Argument
from ..support.untyped import Hook
from .classes import Classes, compressed, varying
from .records import Call, Forbidden, Given, Made, Product, Step, Sum, Weight

CHOOSING = ("nonzero", "masked_select", "unique_consecutive", "_unique2")  # what they return is as long as values say
PUT = ("index_put", "_index_put_impl", "index_add", "index_copy", "scatter", "scatter_add", "masked_scatter", "copy")


Rule = Callable[["Tracking", Call], None]


class Tracking(TorchDispatchMode):
    """What the labels of one forward meet.

    Args:
        rule_of: what an operation does with labels, by its name.
        apart: what several modules are called with that gets labels of its own in each.

    Attributes:
        classes: which labels leave together.
        origins: of each run of labels, in order: its first label, the parameter, its axis and its length.
        reads: labels of the axes of weights along which maps read values.
        values: labels of every value of which several axes tell entries apart: a class is cut along one axis of each.
        averaging: attention of torch, which may return the mean of what its heads attend to.
        computed: modules that multiply by a matrix made in the forward, whose units nobody sees.
        maps: by weight of every map that ran the labels of what it makes, where one axis of the weight is that.
        unknown: operations without a rule, each with the module in which it ran; the maps that made what came to it.
        sums: by weight, where the output of its map is added to something; `shifts`: the buffer subtracted from it.
        read: by module, the shapes of its first input, run by run; `fed`: in how many runs that input depends on
            the examples.
        given: what modules are called with, by `id`.
        arguments: by the name of their labels those that have labels of their own in the module.
        sampled: labels of values that are sampled at places that are computed, and of these.
        routed: modules that read rows which values chose, as the experts of a mixture do.
        calls: every run of a module, in order; `plain` the shapes of what those return that return one tensor, alone
            or as the first of a tuple without others.
    """

    def __init__(self, model: nn.Module, rule_of: Callable[[str], Rule], apart: Collection[Argument] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.rule_of = rule_of
        self.apart = {(argument.module, argument.name): argument for argument in apart}
        self.arguments: dict[str, Argument] = {}
        self.given: dict[int, Given] = {}
        self.classes = Classes()
        self.origins: list[tuple[int, str, int, int]] = []
        self.forbidden: list[Forbidden] = []
        self.values: list[Tensor] = []
        self.reads: list[Tensor] = []
        self.products: list[Product] = []
        self.sums: dict[str, Sum] = {}
        self.shifts: dict[str, str] = {}
        self.sampled: list[Tensor] = []
        self.read: dict[str, list[tuple[int, ...]]] = defaultdict(list)
        self.steps: list[Step] = []
        self.calls: list[str] = []
        self.plain: dict[str, tuple[int, ...]] = {}
        self.averaging = {name for name, part in model.named_modules() if isinstance(part, MultiheadAttention)}
        self.maps: dict[str, Tensor | None] = {}
        self.unknown: dict[tuple[str, str], set[str]] = {}
        self.computed: set[str] = set()
        self.module = ""
        self._stack: list[str] = []
        self._numbers: MutableMapping[Tensor, int] = WeakIdKeyDictionary()
        self._examples: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()
        self.fed: Counter[str] = Counter()
        self._chosen: MutableMapping[Tensor, bool] = WeakIdKeyDictionary()
        self.routed: set[str] = set()
        self._count = 0
        self._labels: MutableMapping[Tensor, Tensor] = WeakIdKeyDictionary()
        self._made: MutableMapping[Tensor, tuple[Made, ...]] = WeakIdKeyDictionary()
        self._constants: MutableMapping[Tensor, tuple[str, list[Tensor]]] = WeakIdKeyDictionary()
        self._weights: MutableMapping[Tensor, Weight] = WeakIdKeyDictionary()
        for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
            self._weights[tensor] = Weight(name, self._origin(name, tensor))

    def origin(self, label: int) -> tuple[str, int]:
        """The parameter that a label is of, and its axis."""
        _, name, axis, _ = self.origins[bisect.bisect_right(self.origins, label, key=lambda origin: origin[0]) - 1]
        return name, axis

    def _origin(self, name: str, tensor: Tensor) -> tuple[Tensor, ...]:
        if not tensor.is_floating_point():
            return ()
        axes = []
        for axis, length in enumerate(tensor.shape):
            if length > 1:
                labels = self.classes.new(length)
                self.origins.append((int(labels[0]), name, axis, length))
                axes.append(labels.view([length if place == axis else 1 for place in range(tensor.dim())]))
        return tuple(axes)

    # What is known of a value.

    def labels(self, value: object) -> Tensor | None:
        """Of an activation."""
        return self._labels.get(value) if isinstance(value, Tensor) else None

    def weight(self, value: object) -> Weight | None:
        """What a parameter or a view of one is of; None for any other value."""
        found = self._weights.get(value) if isinstance(value, Tensor) else None
        return found if found is not None and found.axes else None

    def set(self, value: object, labels: Tensor | None) -> None:
        """Give an activation labels."""
        if labels is None or not isinstance(value, Tensor) or not bool((labels >= 0).any()):
            return
        labels = compressed(labels)
        if labels.dim() != value.dim():
            raise RuntimeError(f"labels of rank {labels.dim()} for a value of rank {value.dim()}")
        self._labels[value] = labels
        if len(varying(labels)) > 1:
            self.values.append(labels)

    def set_weight(self, value: Tensor, name: str, axes: Sequence[Tensor]) -> None:
        """Say that a value is made of a parameter alone."""
        self._weights[value] = Weight(name, tuple(labels for labels in map(compressed, axes) if varying(labels)))

    def forbid(self, labels: Tensor | None, axis: int, reason: str) -> None:
        """No cut along this axis here."""
        if labels is not None and labels.shape[axis] > 1:
            self.forbidden.append(Forbidden(labels, axis, f"{reason} in {self.module!r}" if self.module else reason))

    def forbid_all(self, labels: Tensor | None, reason: str) -> None:
        """No cut along any axis here."""
        for axis in varying(labels) if labels is not None else ():
            self.forbid(labels, axis, reason)

    # Whose output a value is.

    def made(self, value: object) -> tuple[Made, ...]:
        """The maps that made a value, two where it is their sum, and what was done with it since."""
        return self._made.get(value, ()) if isinstance(value, Tensor) else ()

    def set_made(self, value: object, *origins: Made) -> None:
        """Say so."""
        if origins and isinstance(value, Tensor):
            self._made[value] = origins
            self.shifts |= {origin.weight: origin.shift for origin in origins if origin.shift is not None}

    def number(self, value: Tensor) -> int | None:
        """Of an activation; parameters have none."""
        if self._weights.get(value) is not None:
            return None
        if value not in self._numbers:
            self._numbers[value], self._count = self._count, self._count + 1
        return int(self._numbers[value])

    def constant(self, value: Tensor) -> tuple[str, list[Tensor]]:
        """The operation that made a value of others without labels, and these; both empty for any other value."""
        return self._constants.get(value, ("", []))

    def _unlabelled(self, value: Tensor) -> bool:
        """Whether it is a matrix that is neither of the examples nor of a parameter."""
        known = value in self._examples or value in self._weights or value in self._labels
        return value.dim() > 1 and not known

    def of_examples(self, *values: object) -> None:
        """Say that values are of the examples, as what is made of them will be."""
        for value in values:
            if isinstance(value, Tensor):
                self._examples[value] = True

    def _choose(self, name: str, args: Any, tensors: Sequence[Tensor], out: Any) -> None:
        """Note what is as long as values say, and what is computed from it; what that is put into is not."""
        masked = name == "index" and any(index is not None and index.dtype == torch.bool for index in args[1])
        put = name in PUT and args[0] not in self._chosen
        if name in CHOOSING or masked or (not put and any(value in self._chosen for value in tensors)):
            self._chosen.update({value: True for value in tree_leaves(out) if isinstance(value, Tensor)})

    def _step(self, args: Sequence[Tensor], out: object) -> None:
        made = [value for value in tree_leaves(out) if isinstance(value, Tensor)]
        reads, makes = (tuple(n for n in map(self.number, values) if n is not None) for values in (args, made))
        if reads or makes:
            self.steps.append(Step(reads, makes, tuple(self._stack)))

    # The forward.

    def __torch_dispatch__(self, func: Any, types: object, args: Any = (), kwargs: Any = None) -> object:
        out = func(*args, **(kwargs or {}))
        if func._overloadpacket in PRODUCTS:
            self.products.append(Product(self.module))
        tensors = [value for value in tree_leaves((args, kwargs or {})) if isinstance(value, Tensor)]
        self._step(tensors, out)
        if any(value in self._examples for value in tensors):
            if func._overloadpacket in PRODUCTS and any(map(self._unlabelled, tensors)):
                self.computed.add(self.module)
            self.of_examples(*tree_leaves(out))
        name = func._schema.name.partition("::")[2]
        name = name if name.startswith("_") else name.removesuffix("_")  # without that of those in place
        self._choose(name, args, tensors, out)
        if any(self.labels(value) is not None or self.weight(value) is not None for value in tensors):
            with torch._C._DisableTorchDispatch():
                self.rule_of(name)(self, Call(name, func, args, kwargs or {}, out, tensors))
        elif tensors and isinstance(out, Tensor):
            self._constants[out] = (name, tensors)
        return out

    @contextlib.contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Labels travel until the block ends; attention is taken apart."""
        stack = self._stack

        def enter(name: str) -> Hook:
            def hook(module: nn.Module, args: Any, kwargs: Any) -> Any:
                stack.append(name)
                self.module = name
                self.calls.append(name)
                if args or kwargs:
                    first = args[0] if args else next(iter(kwargs.values()))
                    self.read[name].append(tuple(first.shape) if isinstance(first, Tensor) else ())
                    if isinstance(first, Tensor) and first in self._examples:
                        self.fed[name] += 1
                    if isinstance(first, Tensor) and first in self._chosen:
                        self.routed.add(name)
                    self._summed(first, name, "input")
                return self._given(module, name, args, kwargs)

            return hook

        def leave(module: nn.Module, args: object, output: object) -> None:
            name = stack.pop()
            self.module = stack[-1] if stack else ""
            values = output if isinstance(output, tuple) else (output,)
            if [isinstance(value, Tensor) for value in values] == [True] + [False] * (len(values) - 1):
                self.plain[name] = tuple(values[0].shape)
            first = output[0] if isinstance(output, (tuple, list)) and output else output
            if isinstance(module, Experts):  # what all of them made: the sum is of the mixture, not of one
                self.set_made(first, Made(f"{name}.down_proj"))
            self._summed(first, name, "output")
            for value in tree_leaves(output):  # goes on from here to where nothing picks its slices
                if id(value) in self.given:
                    self.given[id(value)].to.pop(name, None)

        handles = []
        for name, module in model.named_modules():
            handles += [
                module.register_forward_pre_hook(enter(name), with_kwargs=True),
                module.register_forward_hook(leave),
            ]
        try:
            with sdpa_kernel(SDPBackend.MATH), self:
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _given(self, module: nn.Module, name: str, args: Any, kwargs: Any) -> object:
        """Note what a module is called with, and exchange what is to have labels of its own there."""
        names = [*inspect.signature(module.forward).parameters]
        named = dict(zip(names, args, strict=False)) | kwargs
        for argument, value in named.items():
            labels = self._along(value)
            if not labels or argument not in names or value in self._examples:
                continue
            given = self.given.setdefault(id(value), Given(value, labels))
            for outer in self._stack:
                given.to.pop(outer, None)  # it hands it on
            given.to[name] = argument, names.index(argument)
            if (name, argument) in self.apart:
                named[argument] = self._apart(self.apart[name, argument], value)
        args = tuple(named[argument] for argument in names[: len(args)]) if len(args) <= len(names) else args
        return args, {argument: named[argument] for argument in kwargs}

    def _along(self, value: object) -> dict[int, Tensor]:
        """The labels that tell the entries of a value apart along one axis each."""
        weight, labels = self.weight(value), self.labels(value)
        axes = list(weight.axes) if weight is not None else [] if labels is None else [labels]
        return {varying(axis)[0]: axis for axis in axes if len(varying(axis)) == 1}

    def _apart(self, argument: Argument, value: Tensor) -> Tensor:
        """The same value with labels of its own along one axis."""
        labels, key = self._along(value)[argument.dim], f"{argument.module}({argument.name})"
        self.forbid_all(labels, "each of several modules picks its slices")
        with torch._C._DisableTorchDispatch():
            own = value.clone()
        fresh = self.classes.new(labels.numel())
        self.origins.append((int(fresh[0]), key, argument.dim, labels.numel()))
        self.arguments[key] = argument
        self.set(own, fresh.view(labels.shape))
        return own

    def _summed(self, value: object, module: str, side: str) -> None:
        for origin in self.made(value):
            if origin.summed and module:
                self.sums.setdefault(origin.weight, Sum(module, side, origin.scale))
