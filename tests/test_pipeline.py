from __future__ import annotations

import copy
import dataclasses

import pytest
import torch
from torch import nn

import optin
from optin import checks
from optin.accounting import costs
from optin.checks import self_check
from optin.describing import describe
from optin.errors import BudgetError, CheckpointError, InputError, NumericalError, OptinError
from optin.recipe import Recipe
from optin.refit import compensation
from optin.running.cost import byte_cost
from optin.running.modules import weight_bytes
from optin.space.plans import Plan
from tests.contract.test_architectures import random_plan
from tests.networks import build, inputs, tokens

RECIPE = Recipe().override(trajectory__draws=8)


def prune(model, batches, budget="60%", **options):
    return optin.prune(model, batches, budget, recipe=RECIPE, **options)


def test_the_same_inputs_give_the_same_result(bert, batches):
    one, two = prune(bert, batches), prune(bert, batches)
    assert one.plan == two.plan
    assert all(torch.equal(v, two.model.state_dict()[k]) for k, v in one.model.state_dict().items())


def test_a_generator_a_list_and_a_loader_give_the_same_result(bert, batches):
    loader = torch.utils.data.DataLoader(batches, batch_size=None)
    plans = [prune(bert, source).plan for source in (batches, iter(batches), loader)]
    assert plans[0] == plans[1] == plans[2]


def test_the_report_says_what_happened(bert, batches):
    result = prune(bert, batches)
    assert result.report["macs"]["pruned"] == result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    assert result.report["parameters"]["pruned"] == sum(p.numel() for p in result.model.parameters())
    assert set(result.report["seconds"]) == {"score", "search", "shrink", "compensate"}
    assert result.plan.provenance["data"]["examples"] == 32
    assert result.plan.provenance["recipe"]["budget"] == "60% MACs"
    assert result.plan.length == 8  # (2 * 9 + 2 * 6) / 4 = 7.5 tokens on average


def test_what_is_given_back_is_told_in_a_line(bert, batches):
    result = prune(bert, batches)
    scores = optin.score(bert, batches, recipe=RECIPE)
    said = [repr(value) for value in (result, result.plan, scores, result.plan.description)]
    assert all(len(line) < 120 and "\n" not in line for line in said)
    assert said[0].startswith(f"Result({type(bert).__name__} with ") and "% of the MACs" in said[0]
    kept, units = sum(result.plan.kept.values()), sum(result.plan.sizes.values())
    assert f"{kept:,} of {units:,} units" in said[1] and "'compensated'" in said[2] and "heads" in said[3]


def test_in_place_changes_the_given_object_to_the_same_result(bert, batches):
    expected = prune(bert, batches)
    result = prune(bert, batches, inplace=True)
    assert result.model is bert
    assert all(torch.equal(v, bert.state_dict()[k]) for k, v in expected.model.state_dict().items())


def test_what_a_scoring_drew_spares_the_refit_a_pass_and_changes_nothing(bert, batches, monkeypatch):
    scores = optin.score(bert, batches, recipe=RECIPE)
    plan = optin.plan(bert, scores, "60%", recipe=RECIPE)
    expected = optin.apply(bert, plan, batches, recipe=RECIPE)
    other = optin.apply(bert, plan, batches, recipe=RECIPE.override(seed=1))
    again = optin.apply(bert, plan, batches, recipe=RECIPE.override(seed=1), scores=scores)
    monkeypatch.setattr(compensation, "sensitivities", None)
    spared = optin.apply(bert, plan, batches, recipe=RECIPE, scores=scores)
    for one, two in ((expected, spared), (other, again)):
        assert all(torch.equal(v, two.model.state_dict()[k]) for k, v in one.model.state_dict().items())


def test_parameters_can_be_budgeted(bert, batches):
    result = prune(bert, batches, "70% params")
    assert result.plan.pruned.parameters <= 0.7 * result.plan.dense.parameters
    absolute = prune(bert, batches, f"{result.plan.pruned.parameters} params")
    assert absolute.plan.keep == result.plan.keep


def test_one_scoring_serves_any_budget(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    sizes = [optin.plan(bert, scores, f"{share}%").pruned.macs for share in (30, 50, 70, 90)]
    assert sizes == sorted(sizes)


def test_inference_mode_of_the_caller_changes_nothing(bert, batches):
    outside = optin.prune(bert, batches, "60%", recipe=RECIPE)
    with torch.inference_mode():
        inside = optin.prune(bert, batches, "60%", recipe=RECIPE)
    assert inside.plan == outside.plan
    inside.model(**batches[0]).logits.sum().backward()


def test_training_mode_and_gradients_are_restored(bert, batches):
    bert.train()
    bert.bert.embeddings.requires_grad_(False)
    wanted = [parameter.requires_grad for parameter in bert.parameters()]
    prune(bert, batches)
    assert bert.training and [parameter.requires_grad for parameter in bert.parameters()] == wanted


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions(bert, batches, dtype):
    result = prune(bert.to(dtype), batches)
    assert {parameter.dtype for parameter in result.model.parameters()} == {dtype}
    assert torch.isfinite(result.model(**batches[0]).logits).all()


def test_single_examples_and_single_tokens(bert):
    inputs = [tokens(bert, batch=1, length=4, seed=seed) for seed in range(3)]
    inputs.append({"input_ids": torch.tensor([[7]])})
    assert torch.isfinite(prune(bert, inputs).model(**inputs[-1]).logits).all()


def test_inspect(bert):
    result = optin.inspect(bert, length=12)
    assert result["macs"] == sum(result["breakdown"].values())
    assert [group["units"] for group in result["groups"]] == [4, 20] * 3 + [24]


def test_an_infeasible_budget_says_what_can_be_reached(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    with pytest.raises(BudgetError, match="Ask for") as caught:
        optin.plan(bert, scores, "3%")
    smallest = str(caught.value).rpartition("Ask for ")[2].split()[0]
    plan = optin.plan(bert, scores, smallest)
    assert min(plan.kept.values()) == 1


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        ([], "empty"),
        ({"input_ids": torch.ones(1, 2)}, "iterable of keyword inputs"),
        (7, "iterable of keyword inputs"),
        (["words"], "mapping of keyword inputs"),
        ([{"input_ids": torch.ones(0, 2)}], "has no examples"),
        ([{"input_ids": torch.ones(2, 2), "attention_mask": torch.ones(3, 2)}], "share their first axis"),
        ([{"text": "hello"}], "holds no tensors"),
        ([{"input_ids": torch.ones(2, 41, dtype=torch.long)}], "beyond the 40 tokens"),
        ([{"input_ids": torch.full((2, 4), 60)}], "60 words"),
        ([{"input_ids": torch.ones(1, 4, dtype=torch.long)}], "at least 2 examples"),
        ([{"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.zeros(2, 4)}], "only padding"),
    ],
)
def test_bad_batches_are_refused_before_any_work(bert, batches, message):
    with pytest.raises(InputError, match=message):
        prune(bert, batches)


def test_broken_weights_are_named(bert, batches):
    with torch.no_grad():
        bert.bert.encoder.layer[2].output.dense.weight[0, 0] = float("nan")
    with pytest.raises(NumericalError, match=r"bert\.encoder\.layer\.2\.output\.dense\.weight"):
        prune(bert, batches)
    with pytest.raises(NumericalError, match="meta device"):
        prune(bert.to("meta"), batches)


def test_networks_that_cannot_be_followed_are_refused(batches):
    with pytest.raises(InputError, match="does not take the inputs"):
        prune(nn.Linear(2, 2), batches)
    from transformers import T5Config, T5Model

    with pytest.raises(InputError, match="does not take the inputs"):  # it wants the ids of its decoder
        prune(T5Model(T5Config(num_layers=1, num_heads=1, d_model=4, d_kv=4, d_ff=4, vocab_size=60)), batches)


def test_a_budget_must_be_given(bert, batches):
    with pytest.raises(InputError, match="no budget is given"):
        optin.prune(bert, batches)


def test_scores_of_another_network_are_refused(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    with pytest.raises(InputError, match="another network"):
        optin.plan(build("bert", intermediate_size=24), scores, "50%")


def test_the_self_check_fails_when_it_should(bert, batches):
    plan, pruned = random_plan(bert), copy.deepcopy(bert)
    with pytest.raises(OptinError, match="please report"):
        self_check(bert, pruned, describe(bert), plan, batches[0])


def test_rounding_that_a_network_makes_much_of_is_none_of_its_defects(bert, batches, monkeypatch):
    plan = random_plan(bert)
    pruned = optin.apply(bert, plan, batches, recipe=RECIPE.override(refit__enabled=False)).model
    noisy, plainly = [], checks.distance

    def distance(expected, got):
        noisy.append(expected.dtype)
        return plainly(expected, got) + (1e-3 if expected.dtype == torch.float32 else 0)

    monkeypatch.setattr(checks, "distance", distance)
    self_check(bert, pruned, describe(bert), plan, batches[0])
    assert noisy == [torch.float32, torch.float64]
    assert next(bert.parameters()).dtype == next(pruned.parameters()).dtype == torch.float32
    with pytest.raises(OptinError, match="please report"):
        self_check(bert, copy.deepcopy(bert), describe(bert), plan, batches[0])


def test_the_paper_preset_runs(bert, batches):
    result = optin.prune(bert, batches[:2], "60%", recipe=optin.PRESETS["paper"])
    assert result.plan.provenance["criterion"] == "exact"
    assert "compensate" not in result.report["seconds"]


def test_after_a_second_prune_the_first_dense_network_is_known(bert, batches, tmp_path):
    """At another length too: what is saved is a share of the network before any pruning."""
    once = optin.prune(bert, batches, "85%", recipe=RECIPE).model
    others = [tokens(bert, batch=4, length=20, seed=seed) for seed in range(4)]
    twice = optin.prune(once, others, "80%", recipe=RECIPE)
    macs, parameters = costs(bert, describe(bert), twice.plan.length)
    assert twice.report["original"] == {"macs": macs.dense, "parameters": parameters.dense}
    saved = Plan.from_dict(twice.model.config.optin)
    assert saved.dense.macs == macs.dense and saved.pruned == twice.plan.pruned
    assert saved.sizes == describe(bert).sizes
    assert twice.plan.dense.macs < macs.dense
    twice.save(tmp_path / "twice")
    share = f"{twice.plan.pruned.macs / macs.dense:.1%}"
    for file in ("README.md", "report.html"):
        assert f"Of the network before any pruning {share}" in (tmp_path / "twice" / file).read_text()


@pytest.mark.parametrize("what", ["macs", "parameters"])
def test_a_plan_that_promises_other_costs_is_refused(what, bert, batches):
    plan = optin.plan(bert, optin.score(bert, batches), "60%")
    wrong = dataclasses.replace(plan, pruned=dataclasses.replace(plan.pruned, **{what: 7}))
    with pytest.raises(CheckpointError, match="the plan promises 7"):
        optin.apply(bert, wrong)


@pytest.mark.parametrize("criterion", ["compensated", "magnitude"])
def test_scores_of_other_weights_are_refused(criterion, bert, batches):
    scores = optin.score(bert, batches, recipe=Recipe(criterion=criterion))
    with torch.no_grad():
        bert.bert.encoder.layer[0].output.dense.weight[0, 0] += 1
    with pytest.raises(InputError, match="with other weights"):
        optin.plan(bert, scores, "60%")
    plan = optin.plan(bert, optin.score(bert, batches, recipe=Recipe(criterion=criterion)), "60%")
    with pytest.raises(InputError, match="with other weights"):
        optin.apply(bert, plan, batches, scores=scores)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("architecture", ["bert", "vit"])
def test_a_budget_of_bytes_holds_in_the_file(architecture, dtype, tmp_path):
    model = build(architecture).to(dtype)
    calibration = [inputs(model, batch=4, seed=seed) for seed in range(2)]
    dense = weight_bytes(model)
    plan = optin.plan(model, optin.score(model, calibration, recipe=RECIPE), f"{dense * 3 // 4} bytes", recipe=RECIPE)
    result = optin.apply(model, plan)
    assert weight_bytes(result.model) == byte_cost(model, plan.description)(plan.kept) <= dense * 3 // 4
    result.save(tmp_path / "small")
    assert (tmp_path / "small" / "model.safetensors").stat().st_size < weight_bytes(result.model) + 20_000


def test_paths_are_no_plans_and_no_scores(bert, batches):
    with pytest.raises(InputError, match=r"optin\.load_scores\(folder\)"):
        optin.plan(bert, "scores/", "50%")
    with pytest.raises(InputError, match=r"optin\.Plan\.load\(file\)"):
        optin.apply(bert, "plan.json", batches)


def test_a_network_whose_examples_depend_on_each_other_is_refused():
    norm = nn.BatchNorm1d(24, track_running_stats=False)
    model = nn.Sequential(nn.Linear(6, 24), norm, nn.ReLU(), nn.Linear(24, 3))
    with pytest.raises(InputError, match="costs are counted on one example"):
        optin.prune(model, [{"input": torch.randn(8, 6)}] * 2, "60%", recipe=RECIPE)
