"""A plan: which units stay, and where that choice came from. Small, JSON-able, applied without any data."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import CheckpointError, OptinError
from ..support.files import given, json_text, read_json, write_text
from ..support.folders import check_file
from ..support.listing import Listed, Listing
from ..support.untyped import Figures, Json
from . import descriptions
from .units import UnitSpace

FORMAT = 1
MOST_UNITS = 4 * 10**6  # of all groups of a plan together: some times those of the largest encoders
LONGEST = 10**7  # inputs
MOST_COST = 10**24
NUMBERED = re.compile(r"layers\.[0-9]+\.(heads|neurons)")  # names of groups in version 0.1.0
_RUN = re.compile(r"[0-9]{1,9}(-[0-9]{1,9})?")


@dataclass(frozen=True, slots=True)
class Cost:
    """What a network costs: MACs per example at `length` positions, and parameters."""

    macs: int
    parameters: int


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one forward of `batch` examples, as fitted to times of the machine that made the plan."""

    batch: int
    dense_ms: float
    predicted_ms: float


@dataclass(frozen=True)
class Plan(Listed):
    """The units kept in each group.

        plan.kept, plan.shares, plan.pruned.macs
        plan.save("plan.json")
        plan = optin.Plan.load("plan.json")

    Attributes:
        architecture: the description that the group names belong to.
        sizes: units per group in the dense network.
        keep: indices kept per group, ascending.
        dense, pruned: costs before and after.
        length: tokens of a text, or pixels of an image side, at which MACs are counted.
        width: in pixels, where those images are not square.
        tokens: tokens that merge before each block of a vision transformer; empty if none do.
        latency: if the budget was one, else None.
        provenance: budget, recipe, seed, digest of the calibration data, versions.
        description: what removal cuts, as far as `descriptions.to_dict` writes it; networks are loaded by it.
    """

    architecture: str
    sizes: Mapping[str, int]
    keep: Mapping[str, tuple[int, ...]]
    dense: Cost
    pruned: Cost
    length: int
    provenance: Mapping[str, object] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    width: int | None = None
    latency: Latency | None = None
    description: UnitSpace | None = field(default=None, compare=False)

    @property
    def size(self) -> str:
        """Of the inputs at which MACs are counted, for people."""
        return str(self.length) if self.width is None else f"{self.length} x {self.width}"

    @property
    def kept(self) -> dict[str, int]:
        """Number of units kept per group."""
        return {name: len(units) for name, units in self.keep.items()}

    def __repr__(self) -> str:
        units = f"{sum(self.kept.values()):,} of {sum(self.sizes.values()):,} units in {len(self.sizes)} groups"
        return f"Plan({self.architecture}: {units}, {self.pruned.macs:,} of {self.dense.macs:,} MACs)"

    def listing(self) -> Listing:
        """The units kept by group."""
        rows = [(name, f"{kept:,}", f"{self.sizes[name]:,}") for name, kept in self.kept.items()]
        return Listing(repr(self), ("group", "kept", "of"), rows)

    @property
    def shares(self) -> dict[str, float]:
        """What is left of the MACs and of the parameters."""
        return {
            "macs": self.pruned.macs / self.dense.macs,
            "parameters": self.pruned.parameters / self.dense.parameters,
        }

    def renamed(self, space: UnitSpace) -> Plan:
        """A plan of version 0.1.0 by the names that groups have now; what it does not name stays whole.

        It held no description, and "layers.3.heads" were the heads of the fourth block that had any.
        """
        if self.description is not None or not all(NUMBERED.fullmatch(name) for name in self.keep):
            return self
        names: dict[str, str] = {}
        for place, heads in enumerate(group for group in space if group.kind == "head"):
            names[f"layers.{place}.heads"] = heads.name
            beside = [group.name for group in space if group.kind == "neuron" and group.layer == heads.layer]
            names |= {f"layers.{place}.neurons": name for name in beside[:1]}
        if not names.keys() >= self.keep.keys():
            return self
        whole = {name: size for name, size in space.sizes.items() if name not in {names[old] for old in self.keep}}
        return dataclasses.replace(
            self,
            sizes={names[old]: size for old, size in self.sizes.items()} | whole,
            keep={names[old]: units for old, units in self.keep.items()}
            | {name: tuple(range(size)) for name, size in whole.items()},
        )

    def validate(self, space: UnitSpace) -> None:
        """Check the plan against the network that it is applied to.

        Raises:
            CheckpointError: another architecture, unknown groups, other sizes, indices out of range.
        """
        if self.architecture != space.architecture:
            raise CheckpointError(f"the plan is for {self.architecture!r}, the network is {space.architecture!r}.")
        if missing := sorted(set(space.sizes) - set(self.keep)):
            raise CheckpointError(f"the plan says nothing about the group {missing[0]!r} of the network.")
        for name, units in self.keep.items():
            if name not in space.sizes and self.sizes.get(name) == len(units) == 1:
                continue  # one unit, which stays: nothing to describe
            if name not in space.sizes:
                raise CheckpointError(f"the plan names a group {name!r} that the network does not have.")
            group = space[name]
            if self.sizes.get(name) != group.size:
                raise CheckpointError(
                    f"the plan expects {self.sizes.get(name)} units in {name!r}, the network has {group.size}."
                )
            if list(units) != sorted(set(units)) or (units and not 0 <= units[0] <= units[-1] < group.size):
                raise CheckpointError(
                    f"the plan's units of {name!r} must be distinct, ascending and below {group.size}."
                )
            if len(units) < group.min_keep and (units or group.least):
                raise CheckpointError(f"the plan keeps {len(units)} units of {name!r}; {group.min_keep} must stay.")

        if not self.tokens:
            return
        if space.tokens is None:
            raise CheckpointError(f"the plan merges tokens, and those of {space.architecture!r} cannot be merged.")
        blocks = len(space.tokens.blocks)
        if len(self.tokens) != blocks or self.tokens[0] != 0 or min(self.tokens) < 0:
            raise CheckpointError(
                f"the plan's token schedule must hold one number for each of the {blocks} blocks, 0 for the first."
            )

    def to_dict(self) -> Figures:
        """The plan as JSON-able data; kept units are written as ranges, "0-3,7"."""
        return {
            "format": FORMAT,
            "architecture": self.architecture,
            "length": self.length,
            **({} if self.width is None else {"width": self.width}),
            "dense": {"macs": self.dense.macs, "parameters": self.dense.parameters},
            "pruned": {"macs": self.pruned.macs, "parameters": self.pruned.parameters},
            "groups": {
                name: {"size": self.sizes[name], "keep": to_ranges(units)} for name, units in self.keep.items()
            },
            **({"tokens": list(self.tokens)} if self.tokens else {}),
            **({} if self.latency is None else {"latency": dataclasses.asdict(self.latency)}),
            **({} if self.description is None else {"description": descriptions.to_dict(self.description)}),
            "provenance": dict(self.provenance),
        }

    @classmethod
    def from_dict(cls, data: object) -> Plan:
        """Read what `to_dict` wrote. Input is not trusted.

        Raises:
            CheckpointError: anything missing, of another type, or out of bounds.
        """
        if not isinstance(data, dict) or data.get("format") != FORMAT or isinstance(data["format"], bool):
            raise CheckpointError(f"not a plan of format {FORMAT} (this version of optin reads no other).")
        groups = _typed(data, "groups", dict)
        sizes = {name: _count(_group(groups, name), "size", MOST_UNITS) for name in groups}
        if sum(sizes.values()) > MOST_UNITS:
            raise CheckpointError(f"the plan speaks of {sum(sizes.values())} units, more than any network has.")
        architecture = _typed(data, "architecture", str)
        described = data.get("description")
        return cls(
            architecture=architecture,
            sizes=sizes,
            keep={name: from_ranges(_typed(groups[name], "keep", str), sizes[name]) for name in groups},
            dense=_cost(data, "dense"),
            pruned=_cost(data, "pruned"),
            length=_count(data, "length", LONGEST),
            provenance=_typed(data, "provenance", dict),
            tokens=_counts(data.get("tokens", [])),
            width=_count(data, "width", LONGEST) if "width" in data else None,
            latency=_latency(data) if "latency" in data else None,
            description=None if described is None else descriptions.from_dict(described, architecture, sizes),
        )

    def save(self, path: str | Path) -> None:
        """Write the plan as one JSON file, atomically; an older plan is replaced.

        Raises:
            InputError: something else is there.
        """
        file = given(path)
        check_file(file, is_plan(file), overwrite=True)
        write_text(file, json_text(self.to_dict()))

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a JSON file.

        Raises:
            InputError: no such file.
            CheckpointError: not a plan.
        """
        return cls.from_dict(read_json(given(path)))


def is_plan(file: Path) -> bool:
    """Whether a file is a plan that optin wrote."""
    try:
        Plan.load(file)
    except OptinError:
        return False
    return True


def to_ranges(units: Iterable[int]) -> str:
    """Ascending integers as text: (0, 1, 2, 5) -> "0-2,5"."""
    runs: list[list[int]] = []
    for unit in units:
        if runs and unit == runs[-1][1] + 1:
            runs[-1][1] = unit
        else:
            runs.append([unit, unit])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in runs)


def from_ranges(text: str, size: int) -> tuple[int, ...]:
    """Inverse of `to_ranges`; nothing at or above `size` is expanded.

    Raises:
        CheckpointError: not ascending ranges of integers in [0, size).
    """
    units: list[int] = []
    for run in text.split(",") if text else []:
        low, _, high = run.partition("-")
        if not _RUN.fullmatch(run):
            raise CheckpointError(f"cannot read the kept units {run[:40]!r}: expected ranges such as '0-3,7'.")
        first, last = int(low), int(high or low)
        if not (units[-1] if units else -1) < first <= last < size:
            raise CheckpointError(f"kept units {run!r} must ascend and stay below {size}.")
        units.extend(range(first, last + 1))
    return tuple(units)


def _typed(data: Mapping[str, object], key: str, kind: type) -> Json:
    value = data.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        raise CheckpointError(f"the plan's entry {key!r} must be {kind.__name__}, not {value!r:.60}.")
    return value


def _count(data: Mapping[str, object], key: str, most: int, least: int = 1) -> int:
    value: int = _typed(data, key, int)
    if not least <= value <= most:
        raise CheckpointError(f"the plan's entry {key!r} must lie between {least} and {most}, not at {value}.")
    return value


def _group(groups: Mapping[str, object], name: str) -> Mapping[str, object]:
    entry: Mapping[str, object] = _typed(groups, name, dict)
    return entry


def _counts(values: object) -> tuple[int, ...]:
    if not isinstance(values, list) or any(type(value) is not int or not 0 <= value < 10**6 for value in values):
        raise CheckpointError(f"the plan's token schedule must be a list of counts, not {values!r:.60}.")
    return tuple(values)


def _latency(data: Mapping[str, object]) -> Latency:
    entry = _typed(data, "latency", dict)
    if (batch := _typed(entry, "batch", int)) < 1:
        raise CheckpointError(f"the plan's latency must be that of 1 example or more, not {batch}.")
    times = [float(_typed(entry, key, float)) for key in ("dense_ms", "predicted_ms")]
    if not all(0 < time < MOST_COST for time in times):
        raise CheckpointError(f"the plan's latencies must be milliseconds above 0, not {times}.")
    return Latency(batch, *times)


def _cost(data: Mapping[str, object], key: str) -> Cost:
    entry = _typed(data, key, dict)
    return Cost(_count(entry, "macs", MOST_COST), _count(entry, "parameters", MOST_COST))
