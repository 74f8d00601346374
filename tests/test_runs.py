"""Whole runs: what is lost when something fails, and what the next run takes."""

from __future__ import annotations

import json
import signal
import subprocess
import sys

import pytest

import optin
from optin.app import commands, kept
from optin.app.commands import run_draw, run_plan, run_prune, run_report, run_score, run_sweep
from optin.app.placement import Placement
from optin.errors import BudgetError, InputError, NumericalError, OptinError
from optin.recipe import Recipe
from optin.scoring.exact import Reference
from tests.networks import build, inputs
from tests.test_cli import workspace  # noqa: F401

HERE = Placement()


@pytest.fixture
def recipe(workspace):  # noqa: F811
    options = {"calibration__examples": 8, "task__data": str(workspace), "criterion": "magnitude"}
    return Recipe(model=str(workspace / "dense"), budget="60%").override(**options)


@pytest.fixture
def counted(monkeypatch):
    """How often something was scored."""
    calls = []
    whole = kept.score

    def score(*args, **options):
        calls.append(options)
        return whole(*args, **options)

    monkeypatch.setattr(kept, "score", score)
    return calls


def failing(error):
    def fail(*_, **__):
        raise error

    return fail


def test_the_network_is_saved_before_it_is_evaluated(recipe, tmp_path, monkeypatch):
    for error, kind in ((NumericalError("NaN"), NumericalError), (RuntimeError("of the user"), OptinError)):
        monkeypatch.setattr(commands, "quality_of", failing(error))
        out = tmp_path / kind.__name__
        with pytest.raises(kind, match="the network is saved in .*; its evaluation failed") as failed:
            run_prune(recipe, out, HERE)
        assert type(failed.value) is kind and failed.value.__cause__ is error
        optin.load(out)
        assert "quality" not in json.loads((out / "report.json").read_text())
        assert sorted(path.name for path in out.parent.iterdir() if out.name in path.name) == [out.name]


def test_figures_come_in_afterwards(recipe, tmp_path):
    run_prune(recipe, tmp_path / "p", HERE)
    assert "accuracy" in json.loads((tmp_path / "p" / "report.json").read_text())["quality"]["pruned"]
    assert all("accuracy" in (tmp_path / "p" / name).read_text() for name in ("report.html", "README.md"))
    listed = json.loads((tmp_path / "p" / ".optin").read_text())["files"]
    assert {"report.html", "scores/scores.json", "model.safetensors"} <= set(listed)
    assert optin.load_scores(tmp_path / "p" / "scores").provenance["criterion"] == "magnitude"


def test_a_failed_stage_loses_no_scores(recipe, tmp_path, monkeypatch, counted):
    said = []
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(commands, "apply", failing(RuntimeError("a later stage")))
        run_prune(recipe, tmp_path / "p", HERE, say=said.append)
    assert (tmp_path / "p.scores").is_dir() and not (tmp_path / "p").exists() and said == []
    report = run_prune(recipe, tmp_path / "p", HERE, say=said.append)
    assert len(counted) == 1 and said == [f"goes on with the scores in {tmp_path / 'p.scores'}"]
    assert [path.name for path in tmp_path.iterdir()] == ["p"] and set(report["seconds"]) >= {"score", "search"}
    fresh = run_prune(recipe, tmp_path / "q", HERE)
    assert fresh["groups"] == report["groups"] and fresh["quality"] == report["quality"]


@pytest.mark.parametrize(
    "change",
    [
        {"criterion": "random"},
        {"seed": 1},
        {"calibration__examples": 12},
        {"trajectory__rows": 8},
    ],
)
def test_scores_that_do_not_fit_are_made_anew(change, recipe, tmp_path, monkeypatch, counted):
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr(commands, "apply", failing(RuntimeError("a later stage")))
        run_prune(recipe, tmp_path / "p", HERE)
    run_prune(recipe.override(**change), tmp_path / "p", HERE, quality=False)
    assert len(counted) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["p"]


def test_an_interrupted_scoring_goes_on(recipe, tmp_path, monkeypatch):
    exact = recipe.override(criterion="exact")
    calls, whole = [], Reference.losses

    def interrupted(self, group, units):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return whole(self, group, units)

    monkeypatch.setattr(Reference, "losses", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_prune(exact, tmp_path / "p", HERE)
    assert (tmp_path / "p.partial").is_file()
    said = []
    run_prune(exact, tmp_path / "p", HERE, quality=False, say=said.append)
    assert "partial" in said[0] and [path.name for path in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("budget", ["1%", "1 params", "2% params", None, "half"])
def test_a_budget_is_looked_at_before_anything_is_scored(budget, recipe, tmp_path, counted):
    with pytest.raises(OptinError) as refused:
        run_prune(Recipe.from_dict(recipe.to_dict() | {"budget": budget}), tmp_path / "p", HERE)
    assert isinstance(refused.value, InputError if budget is None else BudgetError)
    assert counted == [] and list(tmp_path.iterdir()) == []


def test_a_sweep_looks_at_everything_first(recipe, tmp_path, monkeypatch, counted):
    with pytest.raises(BudgetError):
        run_sweep(recipe, ["70%", "1%"], tmp_path / "s", HERE)
    with pytest.raises(BudgetError):
        run_sweep(recipe, ["70%", "a lot"], tmp_path / "s", HERE)
    with monkeypatch.context() as patch, pytest.raises(optin.DependencyError, match="matplotlib"):
        patch.setitem(sys.modules, "matplotlib", None)
        run_sweep(recipe, ["70%"], tmp_path / "s", HERE)
    assert counted == [] and list(tmp_path.iterdir()) == []
    run_sweep(recipe, ["70%"], tmp_path / "s", HERE)
    with pytest.raises(InputError, match="not empty"):
        run_sweep(recipe, ["70%"], tmp_path / "s", HERE)
    run_sweep(recipe, ["80%"], tmp_path / "s", HERE, overwrite=True)
    assert {path.name for path in (tmp_path / "s").iterdir()} == {"sweep.json", "sweep.svg", "scores", ".optin"}


@pytest.mark.parametrize("run", [run_score, run_prune])
@pytest.mark.parametrize("place", ["model", "data", "in the model", "above", "occupied", "of another kind"])
def test_where_a_result_may_not_be(run, place, recipe, tmp_path, counted):
    model, data = recipe.model, recipe.task.data
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with optin.support.folders.new_folder(tmp_path / "other", "sweep"):
        pass
    out, words = {
        "model": (model, "is read"),
        "data": (data, "is read"),
        "in the model": (f"{model}/small", "is read"),
        "above": (f"{data}/..", "is read"),
        "occupied": (tmp_path / "mine", "not written by optin"),
        "of another kind": (tmp_path / "other", "another kind"),
    }[place]
    with pytest.raises(InputError, match=words):
        run(recipe, type(tmp_path)(out), HERE, overwrite=True)
    assert counted == [] and (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_files_of_others_are_not_replaced(recipe, tmp_path, workspace):  # noqa: F811
    run_score(recipe, tmp_path / "scores", HERE)
    file = tmp_path / "thesis.tex"
    file.write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not written by optin"):
            run_plan(recipe, tmp_path / "scores", file, HERE, overwrite=overwrite)
    with pytest.raises(InputError, match="is read"):
        run_plan(recipe, tmp_path / "scores", tmp_path / "scores" / "plan.json", HERE)
    run_plan(recipe, tmp_path / "scores", tmp_path / "plan.json", HERE)
    with pytest.raises(InputError, match="--overwrite"):
        run_plan(recipe, tmp_path / "scores", tmp_path / "plan.json", HERE)
    run_plan(recipe, tmp_path / "scores", tmp_path / "plan.json", HERE, overwrite=True)
    run_prune(recipe, tmp_path / "p", HERE, plan_file=tmp_path / "plan.json", quality=False)
    with pytest.raises(InputError, match="not written by optin"):
        run_report(tmp_path / "p", Recipe(), HERE, file)
    run_report(tmp_path / "p", Recipe(), HERE, tmp_path / "r.html")
    run_report(tmp_path / "p", Recipe(), HERE, tmp_path / "r.html")
    assert file.read_text() == "years of work"


def test_pictures_beside_the_network_and_elsewhere(recipe, tmp_path):
    run_prune(recipe, tmp_path / "p", HERE, quality=False)
    for _ in range(2):
        run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "p", 1)
    assert "kept.svg" in json.loads((tmp_path / "p" / ".optin").read_text())["files"]
    run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "pictures", 1)
    with pytest.raises(InputError, match="not empty"):
        run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "pictures", 1)
    run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "pictures", 1, overwrite=True)
    run_prune(recipe, tmp_path / "p", HERE, quality=False, overwrite=True)
    assert not (tmp_path / "p" / "kept.svg").exists()  # of the network before
    (tmp_path / "p" / "kept.svg").write_text("mine")
    with pytest.raises(InputError, match="not written by optin"):
        run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "p", 1)


def test_scores_of_the_first_version_are_refused(recipe, tmp_path):
    run_score(recipe, tmp_path / "scores", HERE)
    file = tmp_path / "scores" / "scores.json"
    data = json.loads(file.read_text())
    del data["provenance"]["network"]
    file.write_text(json.dumps(data))
    with pytest.raises(InputError, match="score again"):
        run_plan(recipe, tmp_path / "scores", None, HERE)


def test_a_network_whose_tokens_do_not_merge_is_drawn_and_reported(tmp_path):
    """`tau` may find that merging nothing is best; nothing else need be in the folder."""
    model = build("vit")
    batches = [inputs(model, seed=seed) for seed in range(2)]
    options = {"tokens__merge": "search", "tokens__examples": 4, "trajectory__draws": 2}
    result = optin.prune(model, batches, "99%", recipe=Recipe().override(**options))
    assert not any(result.plan.tokens)
    result.save(tmp_path / "small")
    assert run_draw(tmp_path / "small", Recipe(), HERE, tmp_path / "small", 1)
    assert run_report(tmp_path / "small", Recipe(), HERE)["pictures"] == 0
    (tmp_path / "small" / "recipe.yaml").unlink()
    with pytest.raises(InputError, match=r"recipe\.yaml"):
        run_report(tmp_path / "small", Recipe(), HERE)


INTERRUPTED = """
import importlib.abc, os, signal, sys
from optin.__main__ import main
number = getattr(signal, sys.argv.pop())
class Sent(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), number)
sys.meta_path.insert(0, Sent())
sys.argv = ["optin", "inspect", "nowhere"]
main()
"""


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_an_interrupt_while_libraries_are_imported(name, code):
    done = subprocess.run([sys.executable, "-c", INTERRUPTED, name], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "interrupted\n")


def test_sigterm_cleans_up(tmp_path):
    """As in a command that has begun: the folder that was being written goes, and the code is that of the signal."""
    from optin.support.folders import new_folder
    from optin.support.interrupts import handled, loaded

    with pytest.raises(SystemExit) as end, handled():
        loaded()
        with new_folder(tmp_path / "r", "network") as work:
            (work / "a").write_text("")
            signal.raise_signal(signal.SIGTERM)
    assert end.value.code == 143 and list(tmp_path.iterdir()) == []


def test_a_damaged_folder_is_no_traceback(tmp_path):
    (tmp_path / "p").mkdir()
    with pytest.raises(InputError, match="no config.json"):
        run_draw(tmp_path / "p", Recipe(), HERE, tmp_path / "q", 1)
    with pytest.raises(InputError, match="no such file"):
        run_report(tmp_path / "p", Recipe(), HERE)
