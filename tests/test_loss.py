"""Budgets of loss: the smallest network that stays within it."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from torch.nn import functional as F

import optin
from optin.errors import BudgetError, InputError, NumericalError
from optin.inspection import calibration_of
from optin.scoring.loss import parted
from optin.space.budget import Budget
from optin.space.loss import Loss, aim_of
from tests.networks import build
from tests.test_cli import SMALL, run, workspace
from tests.test_pipeline import RECIPE

__all__ = ["run", "workspace"]  # fixtures


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("KL 0.01", Loss(0.01, "KL")),
        ("0.01 kl", Loss(0.01, "KL")),
        ("KL <= 1e-3", Loss(1e-3, "KL")),
        ("kl=.5", Loss(0.5, "KL")),
        ("1 point", Loss(1, "points")),
        ("0.5 points", Loss(0.5, "points")),
        ("loss 0.02", Loss(0.02, "loss")),
        ("50%", Budget(0.5)),
    ],
)
def test_what_is_asked_for(text, expected):
    assert aim_of(text) == expected
    assert aim_of(str(expected)) == expected
    assert optin.Recipe(budget=text).budget == text


@pytest.mark.parametrize(
    "text", ["KL 0", "KL -1", "-1 points", "0 points", "100 points", "KL -1", "KL", "points 1", "1 pint", "KL nan"]
)
def test_what_is_no_loss(text):
    with pytest.raises(BudgetError):
        aim_of(text)


def held_out(model, batches):
    return list(calibration_of(model, batches).parts()[1])


def outputs(model, batches):
    with torch.inference_mode():
        return torch.cat([model(**batch).logits for batch in batches])


def test_the_smallest_that_stays_within_it(bert, batches):
    at_half = optin.prune(bert, calibration_of(bert, batches).parts()[0], "50%", recipe=RECIPE)
    dense, half = (outputs(model, held_out(bert, batches)).log_softmax(-1) for model in (bert, at_half.model))
    allowed = float(F.kl_div(half, dense, reduction="batchmean", log_target=True))
    result = optin.prune(bert, batches, Loss(allowed * 1.001, "KL"), recipe=RECIPE)
    loss, share = result.report["loss"], float(result.report["budget"].split("%")[0])
    small = outputs(result.model, held_out(bert, batches)).log_softmax(-1)
    assert loss["measured"] == pytest.approx(float(F.kl_div(small, dense, reduction="batchmean", log_target=True)))
    assert loss["measured"] <= allowed * 1.001 and share <= 50
    assert loss["examples"] == sum(len(batch["input_ids"]) for batch in held_out(bert, batches))
    smaller = {
        float(name.strip("%")): value for name, value in loss["tried"].items() if float(name.strip("%")) < share
    }
    assert all(value > allowed for value in smaller.values())
    assert result.plan.provenance["data"]["examples"] + loss["examples"] == calibration_of(bert, batches).examples
    assert result.recipe.budget.startswith("KL")


@pytest.mark.parametrize("sizes", [(8, 8, 8, 8, 8), (16, 16), (10,), (1, 2, 1, 1, 3)])
def test_a_quarter_is_held_out_whatever_the_batches(bert, sizes):
    ids = torch.arange(sum(sizes))[:, None].repeat(1, 4) % 30
    calibration = calibration_of(bert, [{"input_ids": part} for part in ids.split(list(sizes))])
    one, other = calibration.parts()
    seen = [[int(row[0]) for batch in part for row in batch["input_ids"]] for part in (one, other)]
    assert sorted(seen[0] + seen[1]) == sorted(int(row[0]) for row in ids)
    assert one.examples + other.examples == calibration.examples
    assert seen[1] == [int(row[0]) for row in ids[3::4]]


def test_what_cannot_be_measured_is_refused_before_any_work(bert, batches, monkeypatch):
    monkeypatch.setattr("optin.pipeline.score", None)
    with pytest.raises(BudgetError, match="at least .* inputs in all"):
        optin.prune(bert, batches, "0.01 points", recipe=RECIPE)
    with pytest.raises(InputError, match="of 3 inputs a part is to be held out"):
        optin.prune(bert, [{"input_ids": torch.ones(3, 4, dtype=torch.long)}], "KL 0.1", recipe=RECIPE)
    with pytest.raises(BudgetError, match="they are no classes"):
        optin.prune(build("bert", "Model"), batches, "KL 0.1", recipe=RECIPE)
    wrong = [{"input_ids": torch.ones(4, 4, dtype=torch.long)}, {"input_ids": torch.full((4, 4), 10**6)}]
    with pytest.raises(InputError, match="does not take the inputs"):
        optin.prune(bert, wrong, "KL 0.1", recipe=RECIPE)
    with pytest.raises(BudgetError, match="a sweep needs a cost"):
        next(optin.sweep(bert, batches, ["KL 0.1"], recipe=RECIPE))


def test_outputs_must_be_finite(bert, batches):
    recipe = RECIPE.override(budget="KL 0.1")
    _, held = parted(bert, calibration_of(bert, batches), recipe)
    assert held.lost(bert) == pytest.approx(0, abs=1e-6)
    broken = copy.deepcopy(bert)
    broken.classifier.weight.data.fill_(torch.nan)
    with pytest.raises(NumericalError, match="not finite"):
        held.lost(broken)


def test_labels_and_other_outputs(bert, batches):
    """What the criterion of Kwon et al. reads stays with its inputs; what is compared is what was asked for."""
    labelled = [{**batch, "labels": torch.ones(len(batch["input_ids"]), dtype=torch.long)} for batch in batches]
    recipe = RECIPE.override(criterion="fisher", refit__enabled=False)
    assert optin.prune(bert, labelled, "KL 5", recipe=recipe).report["loss"]["measured"] <= 5
    found = optin.prune(bert, batches, "loss 5", recipe=RECIPE, output=lambda said: said.logits[:, :2])
    assert found.report["loss"]["measured"] <= 5


def test_nothing_stays_within_it(bert, batches):
    with pytest.raises(BudgetError, match="even .*% of the MACs lose"):
        optin.prune(bert, batches, "KL 1e-30", recipe=RECIPE)


def test_from_the_command_line(run, workspace, tmp_path):
    arguments = ("prune", workspace / "dense", "--data", workspace, *SMALL, "--budget", "KL 0.5", "--no-evaluate")
    code, out, _ = run(*arguments, "--out", tmp_path / "small")
    assert code == 0 and "within KL 0.5, measured on 8 calibration inputs" in " ".join(out.split())
    loss = json.loads((tmp_path / "small" / "report.json").read_text())["loss"]
    assert loss["measured"] <= 0.5 and loss["budget"] == "KL 0.5"
    assert "within KL 0.5" in (tmp_path / "small" / "report.html").read_text()
    again = run(*arguments, "--out", tmp_path / "again", "--scores", tmp_path / "small" / "scores", "--json")
    assert json.loads(again[1])["loss"] == loss
