"""The table: from the names of ATen operations to what each does with labels.

What has no rule is not understood: whatever meets it stays whole. To teach one, `@rule("name")`."""

from __future__ import annotations

from collections.abc import Callable

from ..records import Call
from ..tracking import Rule, Tracking

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Put a rule into the table under the names of operations, without the underscore of those in place."""

    def put(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return put


def rule_of(name: str) -> Rule:
    """The rule of an operation; what is not understood stays whole."""
    return RULES.get(name, not_understood)


def not_understood(track: Tracking, call: Call) -> None:
    """No cut through anything that comes here."""
    makers = track.unknown.setdefault((call.name, track.module), set())
    reason = f"{call.name} is not understood" if track.module else not_understood_in(call.name, "")
    for value in call.tensors:
        track.forbid_all(track.labels(value), reason)  # with the module, if there is one
        makers |= {origin.weight.rpartition(".")[0] for origin in track.made(value)}


def not_understood_in(name: str, module: str) -> str:
    """Why units stay whole before an operation without a rule."""
    return (
        f"{name} is not understood in {module!r}" if module else f"{name} is not understood in the network's forward"
    )


@rule(
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "new_zeros", "new_ones", "new_empty",
    "new_full", "_local_scalar_dense", "sym_size", "bernoulli", "empty_strided", "new_empty_strided",
    "is_same_size", "item", "equal",
)  # fmt: skip
def makes_anew(track: Tracking, call: Call) -> None:
    """Nothing of the values goes on, but their shape."""
