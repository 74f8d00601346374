from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from optin.describing import describe
from optin.errors import CheckpointError
from optin.running.gating import gated, masks
from optin.running.surgery import shrink
from optin.space.plans import Cost, Plan
from optin.space.removal import Cut
from optin.space.units import Block, Gate, UnitGroup, UnitSpace
from tests.networks import NEURONS, build, tokens

BERT = build("bert")
SPACE = describe(BERT)


def plan_of(keep, space=SPACE) -> Plan:
    return Plan(space.architecture, space.sizes, keep, Cost(2, 2), Cost(1, 1), 16)


@st.composite
def keeps(draw):
    return {group.name: tuple(sorted(draw(st.sets(st.integers(0, group.size - 1), min_size=2)))) for group in SPACE}


@settings(max_examples=10)
@given(keeps())
def test_shrunk_equals_gated(keep):
    model, plan, inputs = copy.deepcopy(BERT), plan_of(keep), tokens(BERT)
    with torch.inference_mode():
        with gated(model, SPACE, masks(model, plan)):
            expected = model(**inputs).logits
        shrink(model, SPACE, plan)
        torch.testing.assert_close(model(**inputs).logits, expected, atol=1e-5, rtol=1e-5)
    assert describe(model).sizes == plan.kept


@settings(max_examples=8)
@given(keeps())
def test_what_stays_is_what_was(keep):
    """Every kept column of a consumer is the dense one; the same plan again, in full, changes nothing."""
    model = copy.deepcopy(BERT)
    shrink(model, SPACE, plan_of(keep))
    for group in SPACE:
        (gate,) = group.gates
        weight = BERT.get_parameter(f"{gate.module}.weight")
        dense = weight.view(len(weight), group.size, gate.block)
        assert torch.equal(model.get_parameter(f"{gate.module}.weight"), dense[:, list(keep[group.name])].flatten(1))
    again = describe(model)
    before = copy.deepcopy(model.state_dict())
    shrink(model, again, plan_of({group.name: tuple(range(group.size)) for group in again}, again))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_remembered_sizes_follow():
    model = copy.deepcopy(BERT)
    keep = {group.name: (0, 2) for group in SPACE}
    model.requires_grad_(False)
    shrink(model, SPACE, plan_of(keep))
    attention = model.bert.encoder.layer[1].attention
    assert (attention.self.query.out_features, attention.output.dense.in_features) == (12, 12)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_fused_projections_are_cut_in_three_places():
    """One matrix that holds queries, keys and values of three units of two features."""

    class Fused(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.qkv, self.out = nn.Linear(4, 18), nn.Linear(6, 4)

    model = Fused()
    cuts = tuple(Cut(f"qkv.{leaf}", 0, 2, offset) for leaf in ("weight", "bias") for offset in (0, 6, 12))
    group = UnitGroup("heads", "head", 3, 0, (*cuts, Cut("out.weight", 1, 2)), (Gate("out", -1, 2),))
    space = UnitSpace("fused", (group,), (Block("out"),))
    weight = model.qkv.weight.detach().clone()
    shrink(model, space, plan_of({"heads": (0, 2)}, space))
    assert torch.equal(model.qkv.weight, weight.view(3, 3, 2, 4)[:, [0, 2]].flatten(0, 2))
    assert (model.qkv.out_features, model.out.in_features, len(model.qkv.bias)) == (12, 4, 12)


def test_a_parameter_too_small_for_its_group_is_refused():
    group = UnitGroup("neurons", "neuron", 5, 0, (Cut("weight", 0),), ())
    space = UnitSpace("linear", (group,))
    with pytest.raises(CheckpointError, match="too small"):
        shrink(nn.Linear(2, 3), space, plan_of({"neurons": (0,)}, space))


def test_one_mask_per_example():
    inputs = tokens(BERT)
    per_example = torch.ones(4, 20)
    per_example[range(4), [3, 5, 7, 9]] = 0
    with torch.inference_mode():
        with gated(BERT, SPACE, {NEURONS[1]: per_example}):
            together = BERT(**inputs).logits
        for row in range(4):
            with gated(BERT, SPACE, {NEURONS[1]: per_example[row]}):
                torch.testing.assert_close(BERT(**inputs).logits[row], together[row])
