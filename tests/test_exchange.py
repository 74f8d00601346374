"""The exchange: levels are the refit, budgets are kept, and what comes out loses no more."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import optin
from optin.choosing.allocation import kept_units
from optin.choosing.exchanges import exchanges, steps
from optin.choosing.search import Choices
from optin.errors import CheckpointError, InputError
from optin.inspection import calibration_of
from optin.planning import room_for
from optin.refit.compensation import sensitivities
from optin.refit.levels import Levels, movable
from optin.running.cost import CostModel, Term
from optin.running.job import Job
from optin.running.outputs import answers
from optin.running.store import Store
from optin.running.twins import stage
from optin.scoring.loss import HeldOut
from tests.networks import build, inputs
from tests.slow import slow_but
from tests.zoo import NETWORKS, built

RECIPE = optin.Recipe().override(trajectory__draws=8, exchange=4)
KINDS = ("llama", "gpt2", "vit", "resnet", "mixtral", "t5")
CHANGES = {
    "plain": {},
    "validated": {"refit__folds": 2},
    "scales": {"refit__kind": "scales"},
    "parts": {"parts": True},
}


def given_of(name: str, count: int = 6):
    model = built(name)
    torch.manual_seed(1)
    return model, [NETWORKS[name].inputs() for _ in range(count)]


@stage
def levels_and_refit(model, batches, recipe, budget="70%"):
    """What a network says at the levels of a plan, and what the refitted network of the plan says."""
    scores = optin.score(model, batches, recipe=recipe)
    plan = optin.plan(model, scores, budget, recipe=recipe)
    room = room_for(model, scores, recipe.override(budget=budget), optin.silent)
    job = Job(model, room.space, calibration_of(model, batches), recipe)
    with Store() as store:
        offered = {name: [room.space[name].size] for name in movable(job)}
        levels = Levels(
            job, plan.kept, offered, lambda name, count: plan.keep[name] if count == plan.kept[name] else
            kept_units(scores, {name: count}, recipe)[name], sensitivities(job, store),
        )  # fmt: skip
        with torch.inference_mode():
            found = answers(levels.network.eval()(**batches[0]))
            expected = answers(optin.apply(model, plan, batches, recipe=recipe).model(**batches[0]))
            for name in offered:
                levels.put(name, room.space[name].size)
                levels.put(name, plan.kept[name])
            again = answers(levels.network(**batches[0]))
    return found, expected, again, offered


CASES = [(name, "plain") for name in KINDS] + [("llama", change) for change in CHANGES if change != "plain"]


@pytest.mark.parametrize(("name", "change"), slow_but([("resnet", "plain"), ("llama", "validated")], CASES))
def test_the_levels_that_are_kept_are_the_refit(name, change):
    model, batches = given_of(name)
    found, expected, again, offered = levels_and_refit(model, batches, RECIPE.override(**CHANGES[change]))
    assert offered
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3 * expected.abs().max().item())
    torch.testing.assert_close(again, found, rtol=0, atol=1e-5 * expected.abs().max().item())


@given(st.data())
def test_exchanges_keep_to_the_budget_and_go_by_the_steps_that_were_measured(data):
    sizes = data.draw(st.lists(st.integers(1, 40), min_size=2, max_size=6))
    choices = {
        str(place): Choices(torch.arange(1, size + 1), torch.zeros(size, dtype=torch.float64))
        for place, size in enumerate(sizes)
    }
    kept = {name: data.draw(st.integers(1, len(choice.counts))) for name, choice in choices.items()}
    terms = tuple(
        Term(name, 40 * data.draw(st.integers(1, 9)) * size, (name,))
        for name, size in zip(choices, sizes, strict=True)
    )
    cost = CostModel("MACs", dict(zip(choices, sizes, strict=True)), terms)
    offered = steps(choices, kept, data.draw(st.sampled_from([4, 32])))
    rises = {name: {count: data.draw(st.floats(-1, 1)) for count in counts} for name, counts in offered.items()}
    found = exchanges(rises, kept, cost, cost(kept))
    for counts in found:
        assert cost(counts) <= cost(kept)
        assert all(count == kept[name] or count in offered[name] for name, count in counts.items())
    promised = [sum(rises[name].get(count, 0.0) for name, count in counts.items()) for counts in found]
    assert promised == sorted(promised, reverse=True) and all(gain < 0 for gain in promised)


def test_an_exchange_that_pays_is_found():
    cost = CostModel("MACs", {"a": 8, "b": 8}, (Term("a", 80, ("a",)), Term("b", 80, ("b",))))
    rises = {"a": {2: 0.1, 6: -0.5}, "b": {2: 0.2, 6: -0.1}}
    assert exchanges(rises, {"a": 4, "b": 4}, cost, 80) == [{"a": 6, "b": 2}]


@pytest.mark.parametrize("name", slow_but(("bert",), ("bert", "llama")))
def test_what_comes_out_loses_no_more_and_keeps_to_the_budget(name, tmp_path):
    model, batches = given_of(name, 8)
    scores = optin.score(model, batches, recipe=RECIPE)
    plan = optin.plan(model, scores, "50%", recipe=RECIPE)
    better = optin.exchange(model, plan, batches, scores=scores)
    said = better.provenance["exchange"]
    assert said["loss"] <= said["before"]
    assert better.pruned.macs <= 0.5 * better.dense.macs
    assert optin.exchange(model, plan, batches, scores=scores) == better
    result = optin.prune(model, batches, "50%", recipe=RECIPE)
    assert result.plan.keep == better.keep
    result.save(tmp_path / "small")
    assert optin.Plan.load(tmp_path / "small" / "plan.json").keep == better.keep


def test_a_killed_exchange_goes_on(tmp_path):
    model, batches = given_of("bert", 8)
    scores = optin.score(model, batches, recipe=RECIPE)
    plan = optin.plan(model, scores, "40%", recipe=RECIPE)
    rounds = tmp_path / "rounds"
    measured = 0

    def killed(items, description, total):
        nonlocal measured
        for item in items:
            measured += description == "exchange"
            if rounds.exists() and measured > 20:
                raise KeyboardInterrupt
            yield item

    expected = optin.exchange(model, plan, batches, scores=scores)
    with pytest.raises(KeyboardInterrupt):
        optin.exchange(model, plan, batches, scores=scores, resume=rounds, track=killed)
    assert optin.exchange(model, plan, batches, scores=scores, resume=rounds) == expected
    with pytest.raises(CheckpointError, match="another run"):
        optin.exchange(model, plan, batches[:-1], scores=scores, resume=rounds)
    others = optin.score(model, batches, recipe=RECIPE.override(criterion="magnitude"))
    with pytest.raises(CheckpointError, match="another run"):
        optin.exchange(model, plan, batches, scores=others, resume=rounds)
    state = json.loads(rounds.read_text())
    for best in (dict(state["best"], **{next(iter(plan.sizes)): 99}), dict(plan.sizes)):  # no choice, and too much
        rounds.write_text(json.dumps(state | {"best": best}))
        with pytest.raises(CheckpointError, match="damaged"):
            optin.exchange(model, plan, batches, scores=scores, resume=rounds)
    rounds.write_text("{")
    with pytest.raises(CheckpointError, match="damaged"):
        optin.exchange(model, plan, batches, scores=scores, resume=rounds)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        ("vit", {"tokens__merge": "search"}, "tokens"),
        ("bert", {"refit__enabled": False}, "refit"),
        ("bert", {"budget": "KL 0.1"}, "budget of cost"),
        ("albert", {}, "more than once"),
    ],
)
def test_what_cannot_be_exchanged_is_refused_before_any_work(name, change, said, monkeypatch):
    model, batches = given_of(name) if name in NETWORKS else (build("albert"), [inputs(build("albert"))] * 4)
    monkeypatch.setattr("optin.pipeline.found_by", None)
    with pytest.raises(InputError, match=said):
        optin.prune(model, batches, None if "budget" in change else "50%", recipe=RECIPE.override(**change))


@pytest.mark.parametrize("name", slow_but(("llama",), ("llama", "resnet", "t5")))
def test_a_forward_that_begins_late_loses_what_a_whole_one_does(name, monkeypatch):
    model, batches = given_of(name, 8)
    recipe = RECIPE.override(exchange=1)
    scores = optin.score(model, batches, recipe=recipe)
    plan = optin.plan(model, scores, "50%", recipe=recipe)
    losses: dict[str, list[torch.Tensor]] = {"late": [], "whole": []}
    by_batch = HeldOut.by_batch

    def both(self, network, entered, chosen=None):
        losses["whole"].append(by_batch(self, network, chosen=chosen))
        losses["late"].append(by_batch(self, network, entered, chosen))
        return losses["late"][-1]

    monkeypatch.setattr(HeldOut, "by_batch", both)
    optin.exchange(model, plan, batches, scores=scores)
    assert len(losses["late"]) > 4
    torch.testing.assert_close(
        torch.stack(losses["late"]), torch.stack(losses["whole"]), rtol=1e-4, atol=1e-6, equal_nan=True
    )


def test_a_plan_that_the_budget_or_the_options_do_not_allow_is_refused():
    model, batches = given_of("bert", 8)
    scores = optin.score(model, batches, recipe=RECIPE)
    plan = optin.plan(model, scores, "50%", recipe=RECIPE)
    with pytest.raises(InputError, match="costs more than 30%"):
        optin.exchange(model, plan, batches, scores=scores, recipe=RECIPE.override(budget="30%"))
    with pytest.raises(InputError, match="Make the plan with them"):
        optin.exchange(model, plan, batches, scores=scores, recipe=RECIPE.override(round_to=7))
    with pytest.raises(InputError, match="needs 8: 4 are too few"):
        optin.exchange(model, plan, batches[:1], scores=scores)


def test_what_the_last_round_chose_is_refitted_and_measured(monkeypatch):
    """A round finds something, and one is all there is."""
    model, batches = given_of("bert", 8)
    recipe = RECIPE.override(exchange=1)
    scores = optin.score(model, batches, recipe=recipe)
    plan = optin.plan(model, scores, "50%", recipe=recipe)
    chosen = []

    def first(rises, kept, cost, limit):
        found = exchanges({name: dict.fromkeys(at, -1.0) for name, at in rises.items()}, kept, cost, limit)
        chosen.extend(found[-1:])
        return found

    monkeypatch.setattr("optin.exchanging.exchanges", first)
    monkeypatch.setattr("optin.exchanging.Exchange._rise", lambda *_: -1.0)
    monkeypatch.setattr("optin.scoring.loss.HeldOut.lost", lambda *_: 0.0)
    better = optin.exchange(model, plan, batches, scores=scores)
    assert chosen and better.kept != plan.kept
    assert better.provenance["exchange"]["loss"] == 0.0
