"""Experts of a mixture: all in one parameter, alike in all; and those that stay whole."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import optin
from optin.errors import ArchitectureError, InputError
from optin.recipe import Recipe
from optin.running.experts import ExpertMap
from optin.running.twins import plain, twinned
from tests.zoo import NETWORKS, built

KINDS = ("qwen3-moe", "gpt-oss")  # the second with biases, stored the other way round, gates and values in turn
RECIPE = Recipe().override(trajectory__draws=8)


def padded(name: str, count: int = 4) -> list[dict[str, torch.Tensor]]:
    """Batches with texts of several lengths: all tokens of all texts reach the experts in a row."""
    torch.manual_seed(0)
    batches = [NETWORKS[name].inputs() for _ in range(count)]
    for place, batch in enumerate(batches):
        batch["attention_mask"] = batch["attention_mask"].clone()
        batch["attention_mask"][: 1 + place % 3, 10:] = 0
    return batches


@pytest.mark.parametrize("name", KINDS)
@torch.no_grad()
def test_the_twin_computes_the_same(name):
    model, batch = built(name), padded(name, 1)[0]
    expected, keys = model(**batch).logits, list(model.state_dict())
    with twinned(model):
        assert any(isinstance(module, ExpertMap) for module in model.modules())
        assert (model(**batch).logits - expected).abs().max() < 1e-5 * expected.abs().max()
        assert list(model.state_dict()) == keys
        with plain(model):
            assert torch.equal(model(**batch).logits, expected)
        other = copy.deepcopy(model)
    assert not any(isinstance(module, ExpertMap) for module in model.modules())
    experts = next(module for module in other.modules() if isinstance(module, ExpertMap)).of[0]
    assert experts in list(other.modules()), "a copy reads its own weights"


@pytest.mark.parametrize("name", KINDS)
def test_experts_lose_the_same_neurons_and_are_refitted(name):
    model, batches = built(name), padded(name)
    refitted = optin.prune(model, batches, "70%", recipe=RECIPE)
    cut = optin.prune(model, batches, "70%", recipe=RECIPE.override(refit__enabled=False))
    groups = [group for group in refitted.plan.description if group.name.endswith("experts.neurons")]
    assert len(groups) == 3
    for group in groups:
        kept = len(refitted.plan.keep[group.name])
        experts = refitted.model.get_submodule(group.name.removesuffix(".neurons"))
        assert kept in experts.down_proj.shape
        assert kept % 8 == 0, "grouped products take 16 bytes at once"
        assert type(experts) is type(model.get_submodule(group.name.removesuffix(".neurons")))

    def lost(result: optin.Result) -> float:
        with torch.no_grad():
            gaps = [
                (result.model(**batch).logits - model(**batch).logits)[batch["attention_mask"] > 0]
                for batch in batches
            ]
        return float(torch.cat(gaps).square().mean())

    assert lost(refitted) < 0.8 * lost(cut)


def test_a_plan_that_kernels_do_not_take_is_refused():
    model, batches = built("qwen3-moe"), padded("qwen3-moe")
    scores = optin.score(model, batches, recipe=RECIPE)
    made = optin.plan(model, scores, "80%")
    name = next(name for name in made.keep if name.endswith("experts.neurons"))
    odd = dataclasses.replace(made, keep={**made.keep, name: made.keep[name][:-1]})
    with pytest.raises(InputError, match="multiples of 8"):
        optin.apply(model, odd, batches)


class Expert(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return self.down(F.gelu(self.up(x)))


class Mixture(nn.Module):
    """Experts that are modules of their own, on all positions or on those that are routed to them."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.way, self.gate = way, nn.Linear(16, 4)
        self.experts = nn.ModuleList(Expert() for _ in range(4))

    def forward(self, x):
        flat = x.flatten(0, 1)
        weights, chosen = self.gate(flat).softmax(-1).topk(2, -1)
        shares = torch.zeros(len(flat), 4).scatter(1, chosen, weights)
        out = torch.zeros_like(flat)
        for place, expert in enumerate(self.experts):
            share = shares[:, place, None]
            if self.way == "all":
                out = out + share * expert(flat)
            elif self.way == "added":
                rows = share[:, 0].nonzero()[:, 0]
                out.index_add_(0, rows, expert(flat[rows]) * share[rows])
            else:
                rows = share[:, 0] > 0
                out[rows] += expert(flat[rows]) * share[rows]
        return x + out.view_as(x)


class Words(nn.Module):
    def __init__(self, way: str) -> None:
        super().__init__()
        self.embed, self.layers = nn.Embedding(50, 16), nn.ModuleList(Mixture(way) for _ in range(2))
        self.norm, self.head = nn.LayerNorm(16), nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 5))

    def forward(self, input_ids):
        x = self.embed(input_ids)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x).mean(1))


@pytest.mark.parametrize("way", ["all", "added", "put"])
def test_experts_of_their_own(way):
    """Each has its neurons where it works on all positions; where values choose them it stays whole, and says so."""
    torch.manual_seed(0)
    model, batches = Words(way).eval(), [{"input_ids": torch.randint(0, 50, (4, 12))} for _ in range(4)]
    space = optin.describe(model, batches[0])
    assert sum("experts" in name for name in space.sizes) == (8 if way == "all" else 0)
    whole = [reason for name, reason in space.whole.items() if name.endswith("experts.0.down")]
    assert way == "all" or (whole and all("rows that values choose" in reason for reason in whole))
    optin.prune(model, batches, "80%" if way == "all" else "99.5%", recipe=RECIPE)


def test_nothing_but_routed_experts_is_refused():
    torch.manual_seed(0)
    model = Words("put").eval()
    model.head = nn.Linear(16, 5)
    with pytest.raises(ArchitectureError, match="rows that values choose"):
        optin.describe(model, {"input_ids": torch.randint(0, 50, (4, 12))})
