"""What other budgets would give."""

from __future__ import annotations

import dataclasses

import pytest

import optin
from optin.accounting import costs
from optin.choosing.outlook import POWER, SHARES, outlook, spent
from optin.space.scores import Curve
from tests.test_pipeline import RECIPE


def test_it_costs_what_plans_cost_and_loses_what_was_measured(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    plan = optin.plan(bert, scores, "60%", recipe=RECIPE)
    macs, parameters = costs(bert, plan.description, plan.length, plan.width, scores)
    found = outlook(plan.description, scores, macs, parameters, RECIPE, plan, 0.02)
    assert 3 < len(found) <= len(SHARES)  # those that can be reached
    for share, one in zip(SHARES, found, strict=False):
        other = optin.plan(bert, scores, f"{share}%", recipe=RECIPE)
        assert {name: one[name] for name in ("macs", "parameters")} == other.shares
        assert one["kl"] == pytest.approx(0.02 * (spent(scores, other.kept) / spent(scores, plan.kept)) ** POWER)
    losses = [one["kl"] for one in found]
    assert losses == sorted(losses) and found[list(SHARES).index(60)]["kl"] == pytest.approx(0.02)


def test_a_plan_that_costs_nothing_says_nothing_of_others(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    plan = optin.plan(bert, scores, "60%", recipe=RECIPE)
    free = {name: Curve(curve.order, curve.cost * 0) for name, curve in scores.curves.items()}
    macs, parameters = costs(bert, plan.description, plan.length, plan.width, scores)
    none = dataclasses.replace(scores, curves=free)
    assert outlook(plan.description, none, macs, parameters, RECIPE, plan, 0.02) == []
