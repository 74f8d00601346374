from __future__ import annotations

import dataclasses
import itertools
import json
import math

import pytest
import torch
import torchvision
import transformers
from hypothesis import given
from hypothesis import strategies as st

import optin
import optin.pipeline  # before anything in it is replaced
from optin.choosing import latency
from optin.choosing.latency import block_times, coefficients, latency_cost, multiple_of, nonnegative, sizes_to_time
from optin.choosing.search import Choices
from optin.describing import describe
from optin.describing.inputs import example_inputs
from optin.errors import BudgetError, CheckpointError, InputError
from optin.recipe import Recipe
from optin.running.cost import CostModel, mac_cost
from optin.space.budget import PER_MS
from optin.space.plans import Plan
from optin.space.scores import Curve
from optin.space.units import UnitGroup, lies_in
from tests.networks import NEURONS, build
from tests.slow import slow_but

RECIPE = Recipe().override(trajectory__draws=8)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("OPTIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "latency"


@pytest.fixture
def proportional(monkeypatch):
    """Every block takes as many nanoseconds as it has MACs: small networks take most of their time elsewhere."""

    def times(model, blocks, inputs, rounds):
        space = describe(model)
        cost = mac_cost(model, space, {name: value[:1] for name, value in inputs.items()})
        found = dict.fromkeys((*blocks, ""), 0.0)
        for module, macs in cost.breakdown(space.sizes).items():
            found[next((block for block in blocks if lies_in(module, block)), "")] += 1000.0 * macs
        return found

    def milliseconds(model, inputs, rounds=1):
        return sum(latency.block_times(model, describe(model).blocks, inputs, rounds).values()) / PER_MS

    monkeypatch.setattr(latency, "block_times", times)
    monkeypatch.setattr(latency, "milliseconds", milliseconds)


def setting(model, batch=2):
    space = describe(model)
    inputs = example_inputs(model, 9, batch)
    return space, mac_cost(model, space, example_inputs(model, 9)), inputs


@given(st.integers(0, 999))
def test_times_that_follow_the_model_are_found_again(seed):
    generator = torch.Generator().manual_seed(seed)
    meetings = {(): 0, ("a",): 100, ("a", "b"): 300, ("b",): 0}
    drawn = torch.rand(4, generator=generator).tolist()
    true = {groups: value * PER_MS for groups, value in zip(meetings, drawn, strict=True)}

    def time(share):
        return sum(value * math.prod(share[name] for name in groups) for groups, value in true.items())

    shares = [{"a": 1.0, "b": 1.0}] + [
        dict(zip("ab", torch.rand(2, generator=generator).tolist(), strict=True)) for _ in range(20)
    ]
    found = coefficients(shares, [time(share) for share in shares], meetings)

    def predicted(share):
        return sum(value * math.prod(share[name] for name in groups) for groups, value in found.items())

    assert all(value > 0 for value in found.values())
    assert all(predicted(share) == pytest.approx(time(share), rel=0.1) for share in shares)


def test_what_the_sizes_leave_open_follows_the_macs():
    dense = [{"a": 1.0, "b": 1.0}]
    found = coefficients(dense, [4.0 * PER_MS], {(): 0, ("a",): 1, ("b",): 3})
    assert found[("a",)] == pytest.approx(PER_MS, rel=0.01) and found[("b",)] == pytest.approx(3 * PER_MS, rel=0.01)


@given(st.integers(0, 999))
def test_no_coefficient_is_negative_and_none_that_is_left_could_be_better(seed):
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.rand(12, 4, generator=generator, dtype=torch.float64)
    target = torch.rand(12, generator=generator, dtype=torch.float64)
    found = nonnegative(matrix, target)
    assert (found >= 0).all()
    slope = matrix.T @ (matrix @ found - target)
    assert slope[found > 0].abs().max() < 1e-8


def test_the_sizes_are_spread_over_every_group(bert):
    space = describe(bert)
    plans = sizes_to_time(space)
    assert plans[0].kept == space.sizes
    for group in space:
        counts = [plan.kept[group.name] for plan in plans]
        assert min(counts) == group.min_keep and max(counts) == group.size
        assert len(set(counts)) >= min(group.size // multiple_of(group), len(plans)) - 1
    for plan in plans:
        plan.validate(space)


def test_every_block_is_timed_however_often_it_runs():
    for name in ("bert", "albert-grouped"):
        model = build(name, "SequenceClassification")
        space, _, inputs = setting(model)
        times = block_times(model, space.blocks, inputs, rounds=3)
        assert set(times) == {*space.blocks, ""} and all(time > 0 for time in times.values())
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow
def test_times_like_macs_are_spent_like_macs(bert, batches, proportional):
    space, macs, _ = setting(bert)
    cost = latency_cost(bert, space, macs, example_inputs(bert, 9))
    for plan in sizes_to_time(space):
        assert cost(plan.kept) == pytest.approx(1000 * macs(plan.kept), rel=0.02)


@pytest.mark.slow
def test_a_machine_that_slows_down_does_not_change_the_fit(bert, proportional, monkeypatch):
    space, macs, inputs = setting(bert)
    steady, timed = latency.fitted(bert, space, macs, inputs), latency.block_times
    slower = itertools.count(start=10)

    def times(model, blocks, inputs, rounds):
        factor = next(slower)
        return {block: factor * time for block, time in timed(model, blocks, inputs, rounds).items()}

    monkeypatch.setattr(latency, "block_times", times)
    slowed = latency.fitted(bert, space, macs, inputs)
    before, after = (CostModel("latency", space.sizes, tuple(terms)) for terms in (steady, slowed))
    factor = after.dense / before.dense
    assert 10 < factor < next(slower)
    for plan in sizes_to_time(space):
        assert after(plan.kept) == pytest.approx(factor * before(plan.kept), rel=1e-3)


def test_blocks_of_one_make_have_the_same_times_and_all_of_them_the_dense_networks(bert, proportional, monkeypatch):
    space, macs, inputs = setting(bert)
    dense = sum(latency.block_times(bert, space.blocks, inputs, 1).values())
    generator, timed = torch.Generator().manual_seed(0), latency.block_times

    def times(model, blocks, inputs, rounds):
        found = timed(model, blocks, inputs, rounds)
        return {block: (0.5 + float(torch.rand((), generator=generator))) * time for block, time in found.items()}

    monkeypatch.setattr(latency, "block_times", times)
    monkeypatch.setattr(latency, "milliseconds", lambda model, inputs, rounds: dense / PER_MS)
    terms, by_block = latency.fitted(bert, space, macs, inputs), [[], [], [], []]
    assert sum(term.amount for term in terms) == pytest.approx(dense)
    for term in terms:
        if term.module in space.blocks:
            names = tuple(name.rpartition(".")[2] for name in term.groups)
            by_block[space.blocks.index(term.module)].append((names, term.amount))
    assert by_block[0] and by_block[0] == by_block[1] == by_block[2]


@pytest.mark.slow
def test_what_has_no_macs_grows_with_the_units_before_it(proportional, monkeypatch):
    model = torchvision.models.resnet18().eval()
    space, inputs = describe(model), example_inputs(model, 32, 1)
    timed = latency.block_times

    def times(model, blocks, inputs, rounds):
        return {**timed(model, blocks, inputs, rounds), "maxpool": PER_MS * model.conv1.out_channels}

    monkeypatch.setattr(latency, "block_times", times)
    macs = mac_cost(model, space, inputs)
    cost = latency_cost(model, space, macs, inputs)
    for plan in sizes_to_time(space):
        expected = PER_MS * plan.kept["conv1"] + 1000 * macs(plan.kept)
        assert cost(plan.kept) == pytest.approx(expected, rel=0.05)


@pytest.mark.parametrize("name", slow_but(["bert"], ["bert", "albert-grouped", "deberta-v2"]))
def test_a_budget_of_latency_is_kept_to(name, batches, proportional):
    model = build(name, "SequenceClassification")
    scores = optin.score(model, batches, recipe=RECIPE)
    plan = optin.plan(model, scores, "70% latency", recipe=RECIPE)
    assert plan.latency.predicted_ms <= 0.7 * plan.latency.dense_ms
    absolute = optin.plan(model, scores, f"{0.7 * plan.latency.dense_ms} ms", recipe=RECIPE)
    assert absolute.latency.predicted_ms <= 0.7 * plan.latency.dense_ms * (1 + 1e-6)
    assert sum(absolute.kept.values()) == pytest.approx(sum(plan.kept.values()), abs=1)


@pytest.mark.parametrize(("units", "multiple"), [(3072, 16), (100, 8), (9, 1), (3, 1)])
def test_sizes_are_rounded_for_speed(units, multiple):
    group = UnitGroup(NEURONS[0], "neuron", units, 0, (), ())
    assert multiple_of(group) == multiple and multiple_of(dataclasses.replace(group, kind="head")) == 1
    counts = set(Choices.of(group, Curve.from_importance(torch.ones(units)), multiple).counts.tolist())
    assert len(counts) >= min(units, 8) and all(count % multiple == 0 for count in counts - {units})


@pytest.mark.slow
def test_rounding_is_up_to_the_recipe(batches, proportional):
    sizes = {"hidden_size": 24, "intermediate_size": 256, "num_attention_heads": 4, "num_hidden_layers": 3}
    model = transformers.BertForSequenceClassification(transformers.BertConfig(vocab_size=60, **sizes)).eval()
    scores = optin.score(model, batches, recipe=RECIPE)
    plans = {
        (budget, round_to): optin.plan(model, scores, budget, recipe=RECIPE.override(round_to=round_to))
        for budget in ("60%", "60% latency")
        for round_to in (None, 1, 32)
    }
    for (budget, round_to), plan in plans.items():
        neurons = [count for name, count in plan.kept.items() if name.endswith("intermediate.dense")]
        multiple = round_to or (16 if "latency" in budget else 1)
        assert all(count % multiple == 0 for count in neurons)
        assert any(count % (2 * multiple) for count in neurons)


@pytest.mark.slow
def test_times_are_measured_once_for_networks_of_one_shape(bert, cache, monkeypatch):
    space, macs, inputs = setting(bert)
    first = latency_cost(bert, space, macs, inputs)
    (file,) = cache.iterdir()
    monkeypatch.setattr(latency, "fitted", None)
    other = build("bert", "SequenceClassification")
    assert latency_cost(other, space, macs, inputs) == first
    monkeypatch.undo()
    monkeypatch.setenv("OPTIN_CACHE", str(cache.parent))
    latency_cost(bert, space, macs, example_inputs(bert, 9, 3))
    assert len(list(cache.iterdir())) == 2
    file.write_text(json.dumps({"key": json.loads(file.read_text())["key"], "terms": [["x"]]}))
    assert latency_cost(bert, space, macs, inputs).quantity == "latency"  # measured again


def test_the_report_has_the_predicted_and_the_measured_time(bert, batches, proportional, tmp_path):
    result = optin.prune(bert, batches, "70% latency", recipe=RECIPE.override(latency_batch=3))
    found = result.report["latency"]
    assert found["batch"] == 3 and found["predicted_ms"] <= 0.7 * found["dense_ms"] and found["measured_ms"] > 0
    result.plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == result.plan
    data = result.plan.to_dict()
    with pytest.raises(CheckpointError, match="latency"):
        Plan.from_dict({**data, "latency": {**data["latency"], "batch": 0}})
    with pytest.raises(CheckpointError, match="dense_ms"):
        Plan.from_dict({**data, "latency": {**data["latency"], "dense_ms": "fast"}})


@pytest.mark.slow
def test_latencies_that_cannot_be_are_refused(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    with pytest.raises(BudgetError, match="keeps at least a latency of .* ms|costs no less"):
        optin.plan(bert, scores, "1 us", recipe=RECIPE)
    with pytest.raises(BudgetError, match="nothing to prune: the dense network has a latency of"):
        optin.plan(bert, scores, "100 s", recipe=RECIPE)
    with pytest.raises(InputError, match="budget of MACs, not of latency"):
        optin.plan(bert, scores, "50% latency", recipe=RECIPE.override(tokens__merge="search"))
