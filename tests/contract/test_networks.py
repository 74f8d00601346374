"""Every kind of network that people bring, through the whole job: `tests/zoo.py` lists them."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import optin
from optin.describing import describe
from optin.describing.inputs import planned_inputs
from optin.errors import OptinError
from optin.recipe import Recipe
from optin.running.gating import gated, masks
from optin.running.modules import inference_mode_of
from optin.running.surgery import shrink
from optin.running.tensors import tensors_of
from optin.running.twins import twinned
from optin.space.plans import Cost, Plan
from tests.slow import slow_but
from tests.zoo import NETWORKS, REFUSED, built

RECIPE = Recipe().override(trajectory__draws=8)
FAST = ("modernbert", "gpt2", "phi3", "t5", "whisper", "wav2vec2", "videomae", "detr", "clip", "gpt-oss")
FAST += ("torchvision:vit", "own:torch-transformer", "own:unet", "own:mlp")
CUT = [name for name in NETWORKS if name not in REFUSED]


@torch.no_grad()
def said(model: nn.Module, batch) -> list[torch.Tensor]:
    """All numbers that a network returns."""
    with inference_mode_of(model), torch.random.fork_rng():
        torch.manual_seed(0)
        return [value for value in tensors_of(model(**batch)) if value.is_floating_point()]


def moved(one: list[torch.Tensor], other: list[torch.Tensor]) -> float:
    """The largest difference, as a share of the largest output."""
    assert [value.shape for value in one] == [value.shape for value in other]
    pairs = [(a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)) for a, b in zip(one, other, strict=True)]
    return max(float((a - b).abs().max()) for a, b in pairs) / max(float(a.abs().max()) for a, _ in pairs)


@pytest.mark.parametrize("name", slow_but(FAST, CUT))
def test_shrunk_equals_gated(name):
    model, batch = built(name), NETWORKS[name].inputs()
    space = describe(model, batch)
    keep = {
        group.name: tuple(range((group.size - max(1, group.size // 3)) // group.multiple * group.multiple))
        for group in space
    }
    plan = Plan(space.architecture, space.sizes, keep, Cost(1, 1), Cost(1, 1), 1)
    with twinned(model):
        before = said(model, batch)
        with gated(model, space, masks(model, plan)):
            expected = said(model, batch)
        assert moved(expected, before) > 0.01, "the plan must change something"
        shrink(model, space, plan)
        assert moved(expected, said(model, batch)) < 1e-4
    assert moved(expected, said(model, batch)) < 1e-4


@pytest.mark.parametrize("name", slow_but(FAST, CUT))
def test_the_whole_job(name, tmp_path):
    model = built(name)
    batches = [NETWORKS[name].inputs() for _ in range(4)]
    before = said(model, batches[0])
    result = optin.prune(model, batches, "60%", recipe=RECIPE)
    assert moved(before, said(model, batches[0])) == 0, "the given network stays as it is"
    plan, config = result.plan, getattr(result.model, "config", None)
    outputs = said(result.model, batches[0])
    if hasattr(config, "_experts_implementation"):
        config._experts_implementation = "eager"  # torch counts grouped products as nothing
    with sdpa_kernel(SDPBackend.MATH), inference_mode_of(result.model), FlopCounterMode(display=False) as counter:
        result.model(**planned_inputs(result.model, plan))
    assert plan.pruned.macs == counter.get_total_flops() // 2 <= 0.6 * plan.dense.macs
    assert plan.pruned.parameters == sum(parameter.numel() for parameter in result.model.parameters())
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=built(name) if NETWORKS[name].own else None)
    assert moved(outputs, said(loaded.eval(), batches[0])) == 0


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_pruned_that_far_says_why(name):
    with pytest.raises(OptinError, match=REFUSED[name]):
        optin.prune(built(name), [NETWORKS[name].inputs() for _ in range(2)], "60%", recipe=RECIPE)
