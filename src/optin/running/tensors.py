"""The tensors in whatever a forward returns."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import fields as fields_of
from dataclasses import is_dataclass
from typing import Any

from torch import Tensor

from ..errors import ArchitectureError
from ..support.untyped import Foreign

# In the names of what leads to an answer.
ON_THE_WAY = (
    *("hidden_states", "attentions", "past_key_values", "loss"),
    *("last_hidden_state", "intermediate_", "encoder_"),
)


def named_tensors(output: object, inside: bool = False) -> dict[str, Tensor]:
    """The floating tensors of an output by name: the answer alone, not what led to it."""
    if isinstance(output, Tensor):
        return {"": output} if output.is_floating_point() else {}
    fields = fields_in(output, inside)
    fields = {name: value for name, value in fields.items() if not any(p in name for p in ON_THE_WAY)} or fields
    return {
        f"{name}.{inner}".rstrip("."): tensor
        for name, value in fields.items()
        for inner, tensor in named_tensors(value, inside=True).items()
    }


def fields_in(output: object, inside: bool) -> dict[str, Foreign]:
    """What an output holds, by name or place. Objects inside others, caches of keys and values, hold no answers."""
    if isinstance(output, Mapping):
        return {str(name): value for name, value in output.items()}
    if isinstance(output, (tuple, list)):
        return {str(place): value for place, value in enumerate(output)}
    if is_dataclass(output):
        return {field.name: getattr(output, field.name) for field in fields_of(output)}
    return {} if inside else dict(getattr(output, "__dict__", {}))


def tensors_of(output: object, inside: bool = False) -> list[Tensor]:
    """In order, of whatever holds them; of an object within others only if it is a dataclass."""
    if isinstance(output, Tensor):
        return [output]
    return [value for part in fields_in(output, inside).values() for value in tensors_of(part, inside=True)]


def mapped(change: Callable[[Tensor], Tensor], output: object, inside: bool = False) -> Any:
    """The same kind of output, with each tensor exchanged for what a function makes of it."""
    if isinstance(output, Tensor):
        return change(output)
    parts = {name: mapped(change, part, inside=True) for name, part in fields_in(output, inside).items()}
    if not parts:
        return output
    if isinstance(output, (tuple, list)):
        values = list(parts.values())
        return output._make(values) if hasattr(output, "_make") else type(output)(values)
    made: Any = copy.copy(output)
    for name in output if isinstance(output, Mapping) else parts:
        if isinstance(output, Mapping):
            made[name] = parts[str(name)]
        else:
            object.__setattr__(made, name, parts[name])  # of a dataclass that is frozen too
    return made


def hidden_of(output: object) -> Tensor:
    """The hidden state in what a block returns: its first floating tensor.

    Raises:
        ArchitectureError: there is none.
    """
    for value in tensors_of(output):
        if value.is_floating_point():
            return value
    raise ArchitectureError(f"a block of this network returns {kind_of(output)}, without a floating tensor in it.")


def with_hidden(output: object, hidden: Tensor) -> Any:
    """What a block returned, with another hidden state in it."""
    own = hidden_of(output)
    return mapped(lambda value: hidden if value is own else value, output)


def kind_of(output: object) -> str:
    """An output for people."""
    if isinstance(output, (Mapping, tuple, list)) and not output:
        return f"an empty {type(output).__name__}"
    if isinstance(output, Mapping):
        return f"a {type(output).__name__} of {', '.join(map(str, output))}"
    if isinstance(output, (list, tuple)):
        return f"a {type(output).__name__} of {len(output)}"
    return f"a {type(output).__name__}"


def unread(output: object) -> str:
    """What is said of an output that nobody can read."""
    return (
        f"the network returns {kind_of(output)}: no tensor of numbers in it has the examples along its first axis. "
        "Say what matters: output=, the name of a field or a function of what the forward returns."
    )
