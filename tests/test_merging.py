from __future__ import annotations

import copy

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import optin
from optin.accounting import costs
from optin.choosing.merging_costs import token_costs
from optin.choosing.schedule import Steps, constant, schedule_cost
from optin.describing import describe
from optin.describing.inputs import example_inputs
from optin.errors import BudgetError, CheckpointError, InputError
from optin.recipe import Recipe
from optin.running.batches import Batches
from optin.running.merging import Merging, all_tokens, match, merge, most
from optin.running.outputs import answers
from optin.scoring.criteria import Scoring
from tests.contract.test_architectures import random_plan, run
from tests.networks import REPRESENTATIVE, VISION, build, inputs, plan_of
from tests.slow import slow_but

CPU = torch.device("cpu")
RECIPE = Recipe().override(trajectory__rows=12, trajectory__draws=4, tokens__merge="search", tokens__examples=8)
CASES = [
    (name, head)
    for name, (_, _, heads) in VISION.items()
    for head in heads
    if describe(build(name, head)).tokens is not None
]


def test_the_closest_pairs_merge():
    """Tokens 1 and 4, 3 and 2 point the same way; token 5 has a partner, but a distant one."""
    keys = torch.tensor([[[9.0, 9.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.1], [-1.0, 0.0], [0.0, 5.0]]])
    places = match(keys, 2, protected=1)[0].tolist()
    assert places[0] == 0  # protected
    assert places[1] == places[4] and places[3] == places[2]
    assert sorted(set(places)) == [0, 1, 2, 3, 4]


def test_merging_takes_sums_and_every_place_is_filled():
    generator = torch.Generator().manual_seed(0)
    for tokens in (6, 7, 12):
        for r in range(most(tokens, 1) + 1):
            keys = torch.randn(3, tokens, 4, generator=generator)
            places = match(keys, r, 1)
            counts = merge(torch.ones(3, tokens, 1), places, tokens - r)
            assert counts.shape == (3, tokens - r, 1) and bool((counts >= 1).all())
            assert torch.equal(counts.sum((1, 2)), torch.full((3,), float(tokens)))
            assert bool((counts[:, 0] == 1).all())


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(("architecture", "head"), CASES)
@torch.inference_mode()
def test_merging_equal_tokens_changes_nothing(architecture, head, attention):
    """An image of equal patches without positions: merged tokens must count as often as what they stand for."""
    model = build(architecture, head, attention)
    for name, parameter in model.named_parameters():
        if "position" in name:
            parameter.zero_()
    batch = inputs(model, batch=2)
    batch["pixel_values"] = torch.ones_like(batch["pixel_values"]) * torch.tensor([1.0, -2.0]).view(2, 1, 1, 1)
    expected = model(**batch)
    Merging(model, describe(model).tokens, [0, 3, 2])
    got = model(**batch)
    with all_tokens(model):
        dense = model(**batch)
    merged, whole = answers(got), answers(expected)
    if whole.dim() == 3:  # hidden states: the class token is there in both
        merged, whole = merged[:, 0], whole[:, 0]
    torch.testing.assert_close(merged, whole, atol=1e-4, rtol=1e-4)
    assert torch.equal(answers(dense), answers(expected))


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_macs_with_merged_tokens_equal_an_independent_counter(architecture, head):
    model = build(architecture, head)
    space = describe(model)
    macs, _ = costs(model, space, 16)
    schedule = (0, 3, 2)
    Merging(model, space.tokens, schedule)
    with FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(**example_inputs(model, 16))
    assert macs.merged(schedule).dense == counter.get_total_flops() // 2
    assert costs(model, space, 16)[0].dense == macs.merged(schedule).dense


@pytest.mark.parametrize("architecture", slow_but(REPRESENTATIVE, sorted({name for name, _ in CASES})))
def test_tau_end_to_end(architecture, tmp_path):
    """One budget over heads, neurons and tokens; saved equals loaded; the given network stays as it is."""
    model = build(architecture)
    before = copy.deepcopy(model.state_dict())
    batches = [inputs(model, seed=seed) for seed in range(3)]
    for batch in batches:  # coarse images: many patches are alike
        coarse = batch["pixel_values"][..., ::8, ::8]
        batch["pixel_values"] = coarse.repeat_interleave(8, -1).repeat_interleave(8, -2)
    result = optin.prune(model, batches, "60%", recipe=RECIPE)
    again = optin.prune(model, batches, "60%", recipe=RECIPE)
    assert any(result.plan.tokens) and result.plan == again.plan
    assert result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    result.save(tmp_path / "small")
    loaded, other = optin.load(tmp_path / "small"), inputs(model, seed=9)
    with torch.inference_mode():
        torch.testing.assert_close(answers(loaded(**other)), answers(result.model(**other)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("architecture", slow_but(REPRESENTATIVE, sorted({name for name, _ in CASES})))
def test_the_head_behind_merged_tokens(architecture):
    """Its refit goes on from the merged tokens: the outputs come no less close than without."""
    model = build(architecture, "Model" if architecture == "clip" else None)
    batches = [inputs(model, batch=8, seed=seed) for seed in range(6)]
    plan = plan_of(model, random_plan(model).keep, tokens=(0, 2, 2))
    without, near = (
        sum(float((run(model, batch) - run(small, batch)).square().mean()) for batch in batches)
        for small in (
            optin.apply(model, plan, batches, recipe=RECIPE.override(refit__head=head)).model
            for head in (False, True)
        )
    )
    assert near <= without


def test_token_costs_are_those_of_merging():
    model = build("vit")
    space, batches = describe(model), [inputs(model, batch=8, seed=1)]
    scoring = Scoring(model, space, Batches.of(batches, CPU), RECIPE)
    with pytest.raises(InputError, match="common currency"):
        token_costs(scoring, {})
    table = token_costs(scoring, {"manifold": 0.0, "output": 1.0})
    assert table.shape == (3, 18)
    assert float(table[0].abs().max()) == 0 and float(table[:, 0].abs().max()) == 0
    with torch.inference_mode():
        dense = model(**batches[0]).logits
        Merging(model, space.tokens, [0, 0, 4])
        merged = model(**batches[0]).logits
    tau = RECIPE.trajectory.temperature
    p, q = (dense / tau).log_softmax(-1), (merged / tau).log_softmax(-1)
    expected = tau**2 * float((p.exp() * (p - q)).sum(-1).mean())
    assert float(table[2, 4]) == pytest.approx(expected, rel=1e-3)
    # Three of the fourteen patches that are left count as many as 3 * 16 / 14 of all sixteen.
    share = 3 * 16 / 14
    expected = float(table[1, 2] + table[2, 3] + (share - 3) * (table[2, 4] - table[2, 3]))
    assert schedule_cost((0, 2, 3), Steps(table, protected=1)) == pytest.approx(expected)


def test_a_constant_schedule_is_the_smallest_that_fits():
    model = build("vit")
    macs, _ = costs(model, describe(model), 16)
    limit = int(0.8 * macs.dense)
    schedule = constant(macs, limit)
    assert macs.merged(schedule).dense <= limit
    assert max(schedule[1:]) - min(schedule[1:]) <= 1
    fewer = (*schedule[:-1], schedule[-1] - 1) if schedule[-1] == schedule[1] else (0, schedule[1] - 1, schedule[2])
    assert macs.merged(fewer).dense > limit
    with pytest.raises(BudgetError):
        constant(macs, macs.dense // 20)


def test_schedules_that_do_not_fit_are_refused(bert, batches):
    model = build("vit")
    space = describe(model)
    Merging(model, space.tokens, [0, 8, 5])
    with pytest.raises(InputError, match="merges 5 of 9 tokens"):
        model(**inputs(model))
    with pytest.raises(BudgetError, match="merges 5 of 9 tokens"):
        costs(build("vit"), space, 16)[0].merged((0, 8, 5))
    with pytest.raises(InputError, match="cannot be merged"):
        optin.prune(bert, batches, "50%", recipe=RECIPE)
    whole = build("vit")
    scores = optin.score(whole, [inputs(model)], recipe=RECIPE)
    plan = optin.plan(whole, scores, "70%", recipe=RECIPE)
    for tokens in ((0, 1), (1, 0, 0), (0, -1, 0)):
        broken = plan.to_dict() | {"tokens": list(tokens)}
        with pytest.raises(CheckpointError, match="token schedule"):
            optin.apply(whole, optin.Plan.from_dict(broken))
    with pytest.raises(InputError, match="budget of MACs"):
        optin.plan(whole, scores, "50% params", recipe=RECIPE)


@pytest.mark.parametrize("architecture", slow_but([], ["vit", "dinov2", "beit", "clip-vision"]))
def test_merging_can_be_exported_and_compiled(architecture):
    """No shape depends on the data: a graph traced on some images is right for others."""
    model = build(architecture, attention="sdpa").requires_grad_(False)
    Merging(model, describe(model).tokens, (0, 3, 2))
    traced, others = inputs(model, batch=2), inputs(model, batch=2, seed=5)
    expected = answers(model(**others))
    exported = torch.export.export(model, (), traced, strict=False).module()
    torch.testing.assert_close(answers(exported(**others)), expected, atol=1e-5, rtol=1e-5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(answers(compiled(**others)), expected, atol=1e-5, rtol=1e-5)
