"""Modules and groups that stay whole because somebody says so."""

from __future__ import annotations

import pytest

import optin
from optin.errors import InputError
from optin.recipe import Recipe
from tests.networks import ATTENTION, NEURONS
from tests.test_pipeline import RECIPE


def test_what_is_excluded_stays_whole(bert, batches, tmp_path):
    recipe = RECIPE.override(exclude=f"bert.encoder.layer.1, {ATTENTION[0]},bert.pooler")
    scores = optin.score(bert, batches, recipe=recipe)
    assert scores.curves.keys() == {NEURONS[0], ATTENTION[2], NEURONS[2]}
    result = optin.prune(bert, batches, "90%", recipe=recipe)
    assert result.plan.kept.keys() == scores.curves.keys()
    assert result.plan.keep == optin.plan(bert, scores, "90%").keep
    assert result.plan.pruned.macs <= 0.9 * result.plan.dense.macs
    layer, dense = result.model.bert.encoder.layer[1], bert.bert.encoder.layer[1]
    assert all(one.shape == other.shape for one, other in zip(layer.parameters(), dense.parameters(), strict=True))
    result.plan.save(tmp_path / "plan.json")
    again = optin.apply(bert, optin.Plan.load(tmp_path / "plan.json"), batches)
    assert again.report["macs"] == result.report["macs"]
    result.save(tmp_path / "small")
    assert optin.load(tmp_path / "small").num_parameters() == result.model.num_parameters()


def test_names_of_nothing_are_refused(bert, batches):
    with pytest.raises(InputError, match="'bert.encoder.layers' is excluded or asked for, and no group"):
        optin.score(bert, batches, recipe=Recipe(exclude="bert.encoder.layers"))
