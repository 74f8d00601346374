from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optin.app.commands import run_prune
from optin.app.placement import Placement
from optin.errors import InputError, OptinError
from optin.recipe import PRESETS, Recipe, preset
from optin.space.options import Training
from optin.tasks import TASKS, task_spec
from tests.networks import WORDS, build, tokenizer
from tests.slow import slow_but

RECIPES = Path(__file__).parent.parent / "recipes"


def test_yaml_and_back(tmp_path):
    recipe = Recipe(model="m", budget="40%", seed=3).override(trajectory__rows=8, refit__enabled=False)
    recipe.save(tmp_path / "recipe.yaml")
    assert Recipe.load(tmp_path / "recipe.yaml") == recipe


def test_what_is_not_named_keeps_its_default(tmp_path):
    (tmp_path / "r.yaml").write_text("budget: 60%\ntrajectory:\n  temperature: 2\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.trajectory.temperature == 2.0
    assert recipe.budget == "60%"
    assert recipe.override(trajectory__temperature=4.0, budget="50%") == Recipe(budget="50%")


def test_a_recipe_may_start_from_a_preset(tmp_path):
    (tmp_path / "r.yaml").write_text("preset: paper\ncalibration: {batch_size: 8}\n")
    recipe = Recipe.load(tmp_path / "r.yaml")
    assert recipe.criterion == "exact" and recipe.search == "paper" and not recipe.refit.enabled
    assert (recipe.calibration.examples, recipe.calibration.batch_size) == (32, 8)


@pytest.mark.parametrize(
    "text",
    [
        "budgett: 50%",
        "budget: 50",
        "budget: fifty",
        "seed: -1",
        "seed: 1.5",
        "seed: true",
        "refit: 3",
        "refit: {ridge: 0}",
        "refit: {ridge: .nan}",
        "refit: {kind: scales, makers: true}",
        "refit: {kind: scales, head: true}",
        "trajectory: {temperature: 0}",
        "trajectory: {pooling: middle}",
        "trajectory: {embeddings: first}",
        "calibration: {max_length: 0}",
        "length: 0",
        "round_to: 0",
        "preset: fast",
        "- a",
        "a: [",
        "",
    ],
)
def test_mistakes_are_named(text, tmp_path):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(OptinError) as caught:
        Recipe.load(tmp_path / "r.yaml")
    assert caught.value.exit_code in (2, 4)


def test_a_near_name_is_offered():
    with pytest.raises(InputError, match="Did you mean 'trajectory.temperature'"):
        Recipe.from_dict({"trajectory": {"temprature": 1}})
    with pytest.raises(InputError, match=r"refit\.none"):
        Recipe().override(refit__none=1)
    with pytest.raises(InputError, match="cannot read"):
        Recipe.load("no/such/file.yaml")


@given(st.dictionaries(st.sampled_from([*Recipe().to_dict(), "x"]), st.none() | st.integers() | st.text(max_size=5)))
def test_any_mapping_is_read_or_refused_in_one_line(data):
    try:
        Recipe.from_dict(data)
    except OptinError as error:
        assert "\n" not in str(error)


def test_presets():
    assert preset("default") == Recipe()
    assert set(PRESETS) == {"default", "paper", "beta", "tau", "segmentation", "kwon", "thorough", "searched"}
    assert preset("segmentation") == preset("beta").override(trajectory__temperature=1.0)
    assert preset("tau") == preset("beta").override(tokens__merge="search", trajectory__coupling=0.0)


@pytest.mark.parametrize("path", sorted(RECIPES.rglob("*.yaml")), ids=lambda p: p.stem)
def test_the_recipes_of_the_repository_can_be_read(path):
    recipe = Recipe.load(path)
    assert recipe.task.name in TASKS
    if path.stem.endswith("transfer"):
        assert recipe.training != Training()
        return
    assert recipe.model and recipe.budget
    assert recipe.tokens.merge == ("search" if path.stem.endswith("tau") else "none")


@pytest.mark.parametrize("task", slow_but(["mnli", "stsb"], ("mnli", "qqp", "qnli", "sst2", "stsb", "mrpc")))
def test_the_recipes_for_glue_run(task, tmp_path):
    """On a small network and a few examples with the task's own columns."""
    (tmp_path / "data").mkdir()
    recipe = Recipe.load(RECIPES / f"bert-base-{task}.yaml")
    spec = task_spec(recipe.task.name)
    labels = 1 if spec.kind.numeric else len(spec.names) or 2
    build("bert", num_labels=labels).save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    columns = [name for name in (spec.text, spec.text_pair) if name]
    rows = [
        [f"{WORDS[i % 10]} {WORDS[i % 7]}" for _ in columns] + [f"{i % 5}.0" if labels == 1 else str(i % labels)]
        for i in range(32)
    ]
    for part in spec.splits:
        lines = [",".join(row) for row in ([*columns, spec.label], *rows)]
        (tmp_path / "data" / f"{part}.csv").write_text("\n".join(lines) + "\n")
    data = {"task__data": str(tmp_path / "data"), "calibration__examples": 16}
    here = recipe.override(model=str(tmp_path / "dense"), calibration__max_length=8, **data)
    report = run_prune(here, tmp_path / "small", Placement())
    assert report["macs"]["pruned"] <= 0.6 * report["macs"]["dense"]
    assert set(spec.metrics) <= set(report["quality"]["pruned"])
