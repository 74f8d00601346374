"""Experts of a mixture that lie in one parameter, each as a map of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..support.untyped import Foreign

EXPERT = "optin_expert_"  # before the number of an expert: the name of the module that reads its neurons


class Experts(nn.Module):
    """The experts of a mixture as transformers keeps them, all in one parameter (`use_experts_implementation`).

    Each works on the positions that are routed to it alone, in order, and what it weighs is in its neurons already:

        y_t = sum_e W_e ( p_te h_e(x_t) )
    """

    num_experts: int
    has_gate: bool
    has_bias: bool
    is_transposed: bool
    down_proj: nn.Parameter
    down_proj_bias: nn.Parameter
    act_fn: Callable[[Tensor], Tensor]
    _apply_gate: Callable[[Tensor], Tensor]

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """States of shape (position, feature), and for each the experts that it is routed to, with their shares."""
        # What is routed to no expert has a number behind the last.
        shares = hidden_states.new_zeros(len(hidden_states), self.num_experts + 1)
        shares = shares.scatter_add(1, top_k_index, top_k_weights.to(shares.dtype))
        result = torch.zeros_like(hidden_states)
        for place in range(self.num_experts):
            share = shares[:, place, None]
            rows = _nonzero(share[:, 0], top_k_index.shape[-1] / self.num_experts)
            neurons = self._neurons(hidden_states[rows], place) * share[rows]
            read = hidden_states.new_zeros(len(hidden_states), neurons.shape[-1]).index_put((rows,), neurons)
            result = result + self.get_submodule(f"{EXPERT}{place}")(read, rows)
            if self.has_bias:
                result = result + share * self.down_proj_bias[place]
        return result

    def _neurons(self, states: Tensor, place: int) -> Tensor:
        name = "gate_up_proj" if self.has_gate else "up_proj"
        weight = getattr(self, name)[place]
        bias = getattr(self, f"{name}_bias")[place] if self.has_bias else None
        made = F.linear(states, weight.mT if self.is_transposed else weight, bias)
        return self._apply_gate(made) if self.has_gate else self.act_fn(made)


class ExpertMap(nn.Module):
    """The map that reads the neurons of one expert; its weight lies in the parameter of all."""

    bias = None

    def __init__(self, experts: nn.Module, place: int) -> None:
        super().__init__()
        self.of: tuple[Foreign, int] = (experts, place)  # in a tuple, so that they do not become a module of this one

    @property
    def weight(self) -> Tensor:
        """Shape (feature, neuron)."""
        experts, place = self.of
        stored: Tensor = experts.down_proj[place]
        return stored.mT if experts.is_transposed else stored

    @weight.setter
    def weight(self, value: Tensor) -> None:
        """What is added to it in place is where it belongs."""

    def forward(self, read: Tensor, rows: Tensor) -> Tensor:
        """Neurons of shape (position, neuron), zero at all positions but `rows`."""
        made = F.linear(read[rows], self.weight)
        return read.new_zeros(len(read), made.shape[-1]).index_put((rows,), made)


def _nonzero(share: Tensor, part: float) -> Tensor:
    """Where an expert has a share; without values as many positions as each has if all have as many."""
    if share.is_meta:
        return torch.arange(int(len(share) * part), device="meta")
    return share.nonzero()[:, 0]


def are_experts(module: nn.Module) -> bool:
    """Whether a module follows the protocol that `Experts` does, all experts on one device."""
    facts = ("is_transposed", "has_gate", "has_bias", "num_experts", "_apply_gate")
    if not all(hasattr(module, name) for name in facts):
        return False
    plain = not any(getattr(module, name, False) for name in ("has_post_expert_norm", "_is_expert_parallel"))
    return plain and isinstance(getattr(module, "down_proj", None), nn.Parameter)
