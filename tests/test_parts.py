"""Whole parts that go: attentions and feed-forward layers, in networks of every kind."""

from __future__ import annotations

import copy
import dataclasses
import json
import pickle

import pytest
import torch
from torch import nn

import optin
from optin.accounting import check_costs, costs
from optin.choosing.latency import fitted
from optin.describing import describe
from optin.errors import CheckpointError
from optin.inspection import calibration_of, described_by
from optin.recipe import Recipe
from optin.running.absent import Constant, is_gone
from optin.running.caches import cache_bytes
from optin.running.surgery import shrink
from optin.space.plans import Cost, Plan
from tests.networks import build, inputs
from tests.slow import slow_but
from tests.zoo import NETWORKS, REFUSED, built

from .contract.test_networks import moved, said

RECIPE = Recipe(parts=True).override(trajectory__draws=8)
FAST = ("gpt2", "gemma2", "t5", "detr", "own:torch-transformer", "own:mlp")
# Their units are channels, lie on the only way, or are read by a map of another kind (I-BERT).
WITHOUT = ("ibert", "resnet", "timm:efficientnet_b0", "timm:mobilenetv3_small_050", "timm:mobilenetv4_conv_small_035")
WITHOUT += ("timm:resnext26ts", "timm:repvit_m0_9", "timm:mobilevitv2_050", "timm:levit_128s", "own:unet", "own:mlp")
WITHOUT += tuple(f"torchvision:{name}" for name in ("resnet18", "mobilenet_v3_small", "deeplabv3", "fcn_resnet50"))


def plan_without(model, batches, which, others: float = 2 / 3) -> Plan:
    """A plan in which some parts are gone, of those that may go, and other groups keep some of their units."""
    scores = optin.score(model, batches, recipe=Recipe(criterion="magnitude"))
    space = described_by(model, calibration_of(model, batches), parts=True)
    parts = [group.name for group in space if group.absence is not None]
    some = {group: int(others * group.size) // group.multiple * group.multiple for group in space}
    counts = {group.name: max(group.min_keep, count) for group, count in some.items()}
    counts |= dict.fromkeys(parts[which], 0)
    macs, parameters = costs(model, space, scores.length, scores.width, scores)
    dense, pruned = Cost(macs.dense, parameters.dense), Cost(macs(counts), parameters(counts))
    keep = {name: tuple(range(count)) for name, count in counts.items()}
    of = {"length": scores.length, "width": scores.width, "provenance": scores.provenance, "description": space}
    return Plan(space.architecture, space.sizes, keep, dense, pruned, **of)


@pytest.mark.parametrize("name", slow_but(FAST, [name for name in NETWORKS if name not in REFUSED]))
def test_without_parts_a_network_computes_what_it_does_with_them_masked(name, tmp_path):
    model, batches = built(name), [NETWORKS[name].inputs() for _ in range(4)]
    plan = plan_without(model, batches, slice(0, None, 2))
    gone = [group for group, units in plan.keep.items() if not units]
    assert bool(gone) == (name not in WITHOUT)
    result = optin.apply(model, plan, batches, recipe=RECIPE)  # compares the shrunk network with the masked one
    assert sum(map(is_gone, result.model.modules())) >= len(gone)
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=built(name) if NETWORKS[name].own else None).eval()
    outputs = said(result.model, batches[0])
    assert moved(outputs, said(loaded, batches[0])) == 0
    assert moved(outputs, said(copy.deepcopy(loaded), batches[0])) == 0
    again = describe(loaded, batches[0])
    assert not set(gone) & set(again.sizes), "what is gone cannot go again"


def test_networks_without_parts_are_pickled(bert, batches):
    small = optin.apply(bert, plan_without(bert, batches, slice(None))).model
    again = pickle.loads(pickle.dumps(small))
    assert sum(map(is_gone, again.modules())) == sum(map(is_gone, small.modules())) > 0
    assert moved(said(small, batches[0]), said(again, batches[0])) == 0


@pytest.mark.parametrize("kind", ["bert", "vit", "mpnet", "distilbert"])
def test_costs_are_those_that_torch_counts(kind):
    model = build(kind)
    plan, space = plan_without(model, [inputs(model)], slice(None)), describe(model, parts=True)
    assert {group.kind for group in space if not plan.keep[group.name]} == {"head", "neuron"}
    shrink(model, space, plan)
    check_costs(model, plan)


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "phi3", "qwen3"])
def test_decoders_generate_with_their_caches_and_keep_less_in_them(kind):
    model, batch = built(kind), NETWORKS[kind].inputs()
    before = cache_bytes(model, batch)
    plan = plan_without(model, [batch], slice(None))
    attentions = [group for group in describe(model, batch, parts=True) if group.of.attention]
    gone = [group for group in attentions if not plan.keep[group.name]]
    kinds = set(getattr(model.config, "layer_types", None) or ["full_attention"])
    assert len(gone) >= len(attentions) - len(kinds) and plan.keep[attentions[0].name], "the first of a kind stays"
    small = optin.apply(model, plan, [batch], recipe=RECIPE).model.eval()
    assert cache_bytes(small, batch) < before
    prompt = {"input_ids": batch["input_ids"], "attention_mask": torch.ones_like(batch["input_ids"])}
    for options in ({}, {"num_beams": 2}):
        options |= {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        with_cache, without = (small.generate(**prompt, **options, use_cache=use) for use in (True, False))
        assert torch.equal(with_cache, without)


def test_what_lies_on_the_only_way_is_no_part(bert, batches):
    space = describe(bert, {name: value[:2] for name, value in batches[0].items()}, parts=True)
    assert space["bert.pooler.dense"].absence is None, "a classifier that reads nothing tells nothing apart"
    assert all(group.absence is not None for group in space if group.name != "bert.pooler.dense")


def test_plans_lose_parts_if_they_may(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    worthless = {"bert.encoder.layer.1.intermediate.dense", "bert.encoder.layer.1.attention.output.dense.heads"}
    curves = {
        name: dataclasses.replace(curve, cost=curve.cost * 1e-9) if name in worthless else curve
        for name, curve in scores.curves.items()
    }
    scores = dataclasses.replace(scores, curves=curves)
    plan = optin.plan(bert, scores, "60%", recipe=RECIPE)
    assert {name for name, units in plan.keep.items() if not units} == worthless
    assert plan.pruned.macs <= 0.6 * plan.dense.macs
    assert all(optin.plan(bert, scores, "60%", recipe=RECIPE.override(parts=False)).keep.values())
    stored = Plan.from_dict(json.loads(json.dumps(plan.to_dict())))
    assert stored.keep == plan.keep
    result = optin.apply(bert, stored, batches)
    assert sum(map(is_gone, result.model.modules())) == 3  # the attention, and what reads each of the two


def test_a_constant_is_a_linear_map_of_nothing():
    layer = nn.Linear(5, 3)
    layer.weight = nn.Parameter(layer.weight[:, :0])
    constant = copy.copy(layer)
    constant.__class__ = type("Gone", (Constant, nn.Linear), {})
    read = torch.randn(2, 7, 0)
    assert torch.equal(constant(read), layer(read)) and torch.equal(constant(read)[1, 3], layer.bias)


def test_the_refit_puts_the_mean_of_what_lacks_into_the_bias(bert, batches):
    """Of a network with one feed-forward layer gone, behind which no other refit has changed anything."""
    consumer = "bert.encoder.layer.0.output.dense"
    plan = plan_without(bert, batches, slice(1, 2), others=1)
    assert [name for name, units in plan.keep.items() if not units] == ["bert.encoder.layer.0.intermediate.dense"]
    plain = optin.apply(bert, plan).model.get_submodule(consumer).bias
    made = []
    handle = bert.get_submodule(consumer).register_forward_hook(lambda module, args, out: made.append(out))
    with torch.no_grad():
        for batch in batches:
            bert(**batch)
    handle.remove()
    rows = torch.cat([out[batch["attention_mask"].bool()] for out, batch in zip(made, batches, strict=True)])
    weighted = optin.apply(bert, plan, batches, recipe=RECIPE).model.get_submodule(consumer).bias
    before, after = (float((rows - bias.detach()).square().mean()) for bias in (plain, weighted))
    assert after < before, "the constant is nearer to what the layer made"


@pytest.mark.parametrize("place", ["module", "consumer"])
def test_a_stored_plan_reaches_nothing_but_parts(bert, batches, place, tmp_path):
    plan = plan_without(bert, batches, slice(1))
    data = plan.to_dict()
    entry = next(entry for entry in data["description"]["groups"].values() if "absence" in entry)
    entry["absence"][["module", "consumer"].index(place)] = "bert.embeddings"
    result = optin.apply(bert, plan)
    result.save(tmp_path / "small")
    file = tmp_path / "small" / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps({**config, "optin": data}))
    with pytest.raises(CheckpointError):
        optin.load(tmp_path / "small")


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_a_part_that_takes_its_time_whatever_its_share_costs_that(name, monkeypatch):
    """Times of a made-up machine, on which each part takes a hundred times as much for being there as for a unit.

    Blocks are of one make whether or not their attention may go, as the first of a decoder may not.
    """
    model, batch = built(name), NETWORKS[name].inputs()
    space = describe(model, batch, parts=True).by_parts()
    macs, _ = costs(model, space, batch["input_ids"].shape[1])

    def times(model, space, plans, inputs, track):
        def spent(plan, block):
            own = {group: len(units) for group, units in plan.keep.items() if group.startswith(f"{block}.")}
            return 1e3 + sum(100e3 * (count > 0) + 1e3 * count for count in own.values())

        return 1e6, [{block: spent(plan, block) for block in space.blocks} | {"": 1e3} for plan in plans]

    monkeypatch.setattr("optin.choosing.latency._times_of", times)
    terms = fitted(model, space, macs, batch)
    entries = {term.there: term.amount for term in terms if term.there is not None}
    parts = {group.name: group for group in space if group.absence is not None}
    assert parts.keys() <= entries.keys()
    first = next(iter(parts.values()))
    shares = sum(term.amount for term in terms if term.groups == (first.name,))
    assert entries[first.name] / shares == pytest.approx(100 / first.size, rel=0.3)
