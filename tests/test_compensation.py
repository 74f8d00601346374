from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

import optin
from optin.describing import describe
from optin.recipe import Recipe
from optin.refit.compensation import compensate
from optin.refit.makers import makers
from optin.refit.readout import head_maps
from optin.running.batches import Batches
from optin.running.gating import gated, masks
from optin.running.job import Job
from optin.running.outputs import answers
from optin.running.surgery import shrink
from optin.running.twins import twinned
from tests.contract.test_architectures import random_plan
from tests.networks import EAGER_ONLY, HEADS_OF, build, inputs, plan_of, tokens
from tests.slow import slow_but

CPU = torch.device("cpu")
RECIPE = Recipe().override(trajectory__draws=8)
REFITTED = pytest.mark.parametrize("architecture", slow_but(("albert-grouped", "vit", "clip"), sorted(HEADS_OF)))


def test_compensation_brings_the_pruned_network_closer(architecture):
    # Swin v2 normalises behind the consumers: its tokens come closer, their mean over an image need not.
    head = "Model" if architecture == "swinv2" else None
    model = build(architecture, head, "eager" if architecture in EAGER_ONLY else "sdpa")
    calibration = [inputs(model, batch=8, seed=seed) for seed in range(12)]
    pruned, space = copy.deepcopy(model), describe(model)
    plan = random_plan(model)
    shrink(pruned, space, plan)

    def distance() -> float:
        with torch.inference_mode():
            return sum(float((answers(model(**x)) - answers(pruned(**x))).square().mean()) for x in calibration)

    before = distance()
    with twinned(model), twinned(pruned):
        compensate(Job(model, space, Batches.of(calibration, CPU), RECIPE), pruned, plan.keep)
    assert distance() < 0.7 * before


def test_nothing_to_compensate_changes_nothing(bert, batches):
    """The same network as teacher and pupil: nothing is lacking, so nothing moves."""
    other, space = copy.deepcopy(bert), describe(bert)
    everything = {group.name: range(group.size) for group in space}
    compensate(Job(bert, space, Batches.of(batches, CPU), RECIPE), other, everything)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, bert.state_dict()[name], atol=1e-5, rtol=1e-5)


def test_only_consumers_change(bert, batches):
    plan = random_plan(bert)
    shrunk = optin.apply(bert, plan).model
    refitted = optin.apply(bert, plan, batches, recipe=RECIPE).model
    changed = {
        name for name, value in refitted.state_dict().items() if not torch.equal(value, shrunk.state_dict()[name])
    }
    consumers = {gate.module for group in describe(bert) for gate in group.gates}
    assert changed == {f"{name}.{leaf}" for name in consumers for leaf in ("weight", "bias")}


@REFITTED
def test_makers_are_refitted_too(architecture):
    """Behind the first block, in which nothing is lacking yet; and the network comes as close as it does without."""
    head = "Model" if architecture == "swinv2" else None
    model = build(architecture, head, "eager" if architecture in EAGER_ONLY else "sdpa")
    calibration = [inputs(model, batch=8, seed=seed) for seed in range(12)]
    space, plan = describe(model), random_plan(model)
    found = makers(model, space, calibration[0])
    starts = (0, len(space.blocks) // 2)  # of two towers
    shrunk = optin.apply(model, plan).model
    other = optin.apply(model, plan, calibration, recipe=RECIPE.override(refit__makers=True)).model
    before = shrunk.state_dict()
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    inside = {name: group for name, group in found.items() if group.layer < len(space.body)}
    assert {f"{name}.weight" for name, group in inside.items() if group.layer not in starts} <= changed
    with torch.inference_mode():
        far, near = (
            sum(float((answers(model(**x)) - answers(small(**x))).square().mean()) for x in calibration)
            for small in (shrunk, other)
        )
    assert near < 0.7 * far


def test_makers_of_bert(bert, batches):
    found = makers(bert, describe(bert), batches[0])
    names = ("attention.self.query", "attention.self.key", "attention.self.value", "intermediate.dense")
    body = [f"bert.encoder.layer.{layer}.{name}" for layer in range(3) for name in names]
    assert list(found) == [*body, "bert.pooler.dense"]


def plan_of_the_body(model):
    """A random plan in which the units of the head stay."""
    plan, space = random_plan(model), describe(model)
    whole = {group.name: range(group.size) for group in space if space.blocks[group.layer] not in space.body}
    return plan_of(model, {**plan.keep, **whole}, plan.length)


@REFITTED
def test_the_head_is_refitted_too(architecture):
    """Behind all else, and the outputs come no less close than without."""
    model = build(architecture, None, "eager" if architecture in EAGER_ONLY else "sdpa")
    calibration = [inputs(model, batch=8, seed=seed) for seed in range(12)]
    plan = plan_of_the_body(model)
    without = optin.apply(model, plan, calibration, recipe=RECIPE).model
    other = optin.apply(model, plan, calibration, recipe=RECIPE.override(refit__head=True)).model
    found = head_maps(model, without, describe(model), calibration[0])
    before = without.state_dict()
    changed = {name for name, value in other.state_dict().items() if not torch.equal(value, before[name])}
    assert {name.rpartition(".")[0] for name in changed} <= {gate.module for gate in found}
    with torch.inference_mode():
        far, near = (
            sum(float((answers(model(**x)) - answers(small(**x))).square().mean()) for x in calibration)
            for small in (without, other)
        )
    assert near < 0.8 * far if architecture == "bert" else near <= far


@pytest.mark.parametrize(
    ("architecture", "head", "expected"),
    [
        ("bert", "SequenceClassification", ["bert.pooler.dense", "classifier"]),
        ("bert", "MaskedLM", ["cls.predictions.transform.dense"]),  # the decoder is the embeddings
        ("clip", "Model", ["visual_projection", "text_projection"]),
        ("timm-deit", None, ["head", "head_dist"]),
    ],
)
def test_what_belongs_to_the_head(architecture, head, expected):
    model = build(architecture, head)
    space, batch = describe(model), inputs(model)
    shrunk = optin.apply(model, plan_of_the_body(model)).model
    assert [gate.module for gate in head_maps(model, shrunk, space, batch)] == expected
    assert not head_maps(model, copy.deepcopy(model), space, batch)


def test_the_teacher_is_left_as_it_was(bert, batches):
    before = copy.deepcopy(bert.state_dict())
    optin.apply(bert, random_plan(bert), batches, recipe=RECIPE)
    assert all(torch.equal(value, before[name]) for name, value in bert.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in bert.modules())
    assert not any("forward" in vars(module) for module in bert.modules())


def test_folds_do_not_depend_on_the_batches(bert):
    """Examples take turns across batches, so that batches of one fill every fold."""
    whole = inputs(bert, batch=16)
    single = [{name: value[place : place + 1] for name, value in whole.items()} for place in range(16)]
    recipe, plan = RECIPE.override(refit__folds=2, trajectory__draws=16), random_plan(bert)
    together, alone = (optin.apply(bert, plan, batches, recipe=recipe).model for batches in ([whole], single))
    for name, value in together.state_dict().items():
        torch.testing.assert_close(value, alone.state_dict()[name], atol=1e-4, rtol=1e-4)


def test_results_do_not_depend_on_where_states_are_kept(bert, batches, monkeypatch):
    plan = random_plan(bert)
    in_memory = optin.apply(bert, plan, batches, recipe=RECIPE).model
    monkeypatch.setattr("optin.running.store.Store.__init__.__defaults__", (1000,))
    on_disk = optin.apply(bert, plan, batches, recipe=RECIPE).model
    assert all(torch.equal(value, on_disk.state_dict()[name]) for name, value in in_memory.state_dict().items())


def test_gates_and_masks_agree_with_the_plan(bert):
    plan = random_plan(bert)
    for name, mask in masks(bert, plan).items():
        assert mask.nonzero().flatten().tolist() == list(plan.keep[name])
    with gated(bert, describe(bert), {}):
        bert(**tokens(bert))


class Backwards(torch.nn.Module):
    """Its head is named before its body, and the last map of the head before the first."""

    def __init__(self) -> None:
        super().__init__()
        self.last, self.first = torch.nn.Linear(24, 3), torch.nn.Linear(32, 24)
        self.layers = torch.nn.ModuleList(
            torch.nn.Sequential(torch.nn.Linear(32, 48), torch.nn.ReLU(), torch.nn.Linear(48, 32)) for _ in range(2)
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer(x)
        return self.last(torch.relu(self.first(x.mean(1))))


def test_the_head_is_refitted_in_the_order_in_which_it_runs():
    torch.manual_seed(0)
    model = Backwards().eval()
    batches = [{"x": torch.randn(8, 5, 32, generator=torch.Generator().manual_seed(seed))} for seed in range(8)]
    recipe = RECIPE.override(refit__head=True, refit__makers=True)
    space = optin.describe(model, batches[0])
    assert len(space.body) == len(space.blocks) - 1 and "first" in space.sizes
    plan = optin.plan(model, optin.score(model, batches, recipe=recipe), "60%", recipe=recipe)
    cut = dataclasses.replace(plan, keep={**plan.keep, "first": tuple(range(16))})
    bare = copy.deepcopy(model)
    shrink(bare, space, cut)
    refitted = copy.deepcopy(bare)
    compensate(Job(model, space, Batches.of(batches, CPU), recipe), refitted, cut.keep)
    with torch.inference_mode():
        far, near = (
            sum(float((small(**batch) - model(**batch)).square().sum()) for batch in batches)
            for small in (bare, refitted)
        )
    assert near < far and not torch.equal(refitted.last.weight, bare.last.weight)


def test_positions_that_are_not_those_of_the_text(tmp_path):
    """Of images beside texts of other lengths, and of texts whose tokens are pooled on their way (LXMERT, Funnel)."""
    import transformers

    torch.manual_seed(0)
    sizes = {"vocab_size": 60, "num_attention_heads": 4}
    lxmert = transformers.LxmertConfig(
        **sizes, hidden_size=32, intermediate_size=48, l_layers=1, x_layers=1, r_layers=1, visual_feat_dim=16
    )
    funnel = transformers.FunnelConfig(vocab_size=60, d_model=32, block_sizes=[1, 1], d_inner=48, d_head=8, n_head=4)
    mask = torch.ones(4, 12, dtype=torch.long)
    mask[0, 8:] = mask[1, 5:] = mask[2, 9:] = 0
    texts = [{"input_ids": torch.randint(5, 60, (4, 12)), "attention_mask": mask} for _ in range(3)]
    beside = {"visual_feats": torch.randn(4, 5, 16), "visual_pos": torch.rand(4, 5, 4)}
    for model, batches in (
        (transformers.LxmertModel(lxmert), [text | beside for text in texts]),
        (transformers.FunnelModel(funnel), texts),
    ):
        result = optin.prune(model.eval(), batches, "80%", recipe=Recipe().override(trajectory__draws=12))
        assert result.plan.pruned.macs <= 0.8 * result.plan.dense.macs


def test_a_scale_of_maps_has_axes_for_height_and_width():
    import transformers

    torch.manual_seed(0)
    config = transformers.SwiftFormerConfig(image_size=64, embed_dims=[16, 16, 32, 32], depths=[1, 1, 1, 1])
    model = transformers.SwiftFormerForImageClassification(config).eval()
    batches = [{"pixel_values": torch.randn(4, 3, 64, 64)} for _ in range(2)]
    result = optin.prune(model, batches, "80%", recipe=Recipe().override(trajectory__draws=4))
    assert result.plan.pruned.macs <= 0.8 * result.plan.dense.macs
