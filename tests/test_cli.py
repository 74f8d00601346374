from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import optin
from optin.app import cli
from optin.app.placement import Placement
from optin.errors import InputError
from optin.scoring.exact import Reference
from optin.tasks import TASKS
from tests.networks import NEURONS, WORDS, build, tokenizer


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    """A dense classifier with its tokenizer, and labelled sentences."""
    folder = tmp_path_factory.mktemp("cli")
    build("bert", num_labels=2).save_pretrained(folder / "dense")
    tokenizer().save_pretrained(folder / "dense")
    rows = [
        f"{a} {b} {c},{i % 2}"
        for i, (a, b, c) in enumerate(zip(WORDS * 8, WORDS[3:] * 12, WORDS[5:] * 17, strict=False))
    ]
    for name in ("train", "validation"):
        (folder / f"{name}.csv").write_text("\n".join(["text,label", *rows[:80]]) + "\n")
    return folder


@pytest.fixture
def run(capsys, monkeypatch):
    """Run the command line; returns (exit code, standard output, standard error)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["optin", *map(str, arguments)])
        try:
            cli.main()
            code = 0
        except SystemExit as end:
            code = end.code or 0
        return code, *capsys.readouterr()

    return run


SMALL = ("--examples", 32)


def test_score_plan_prune_evaluate_bench(run, workspace, tmp_path):
    dense = workspace / "dense"
    code, out, _ = run("score", dense, "--out", tmp_path / "scores", "--data", workspace, *SMALL, "--json")
    assert code == 0 and json.loads(out)["groups"] == 7
    code, out, _ = run(
        "plan", dense, tmp_path / "scores", "--budget", "60%", "--out", tmp_path / "plan.json", "--json"
    )
    assert code == 0 and json.loads(out)["macs"]["pruned"] <= 0.6 * json.loads(out)["macs"]["dense"]
    common = ("--data", workspace, *SMALL, "--json")
    by_plan = run("prune", dense, "--plan", tmp_path / "plan.json", "--out", tmp_path / "a", *common)
    by_scores = run(
        "prune", dense, "--scores", tmp_path / "scores", "--budget", "60%", "--out", tmp_path / "b", *common
    )
    at_once = run("prune", dense, "--budget", "60%", "--out", tmp_path / "c", *common)
    assert [code for code, *_ in (by_plan, by_scores, at_once)] == [0, 0, 0], by_plan[2] + by_scores[2] + at_once[2]
    results = [json.loads(out) for _, out, _ in (by_plan, by_scores, at_once)]
    assert results[0]["groups"] == results[1]["groups"] == results[2]["groups"]
    assert results[0]["quality"] == results[1]["quality"] == results[2]["quality"]
    code, out, _ = run("evaluate", tmp_path / "c", "--data", workspace, "--reference", dense, "--json")
    assert json.loads(out)["accuracy"] == results[2]["quality"]["pruned"]["accuracy"]
    code, out, _ = run("bench", dense, tmp_path / "c", "--batch", 2, "--length", 8, "--json")
    assert code == 0 and json.loads(out)[0]["ideal"] > 1.5
    assert optin.Recipe.load(tmp_path / "c" / "recipe.yaml").calibration.examples == 32


def test_tables_for_people(run, workspace, tmp_path):
    dense = workspace / "dense"
    code, out, err = run("inspect", dense, "--length", 12)
    assert code == 0 and NEURONS[2] in out and "smallest budget" in out
    code, out, err = run("prune", dense, "--budget", "60%", "--out", tmp_path / "p", "--data", workspace, *SMALL)
    assert code == 0 and "accuracy" in out and "compensation" in err
    code, out, err = run(
        "prune",
        dense,
        "--budget",
        "60%",
        "--out",
        tmp_path / "p",
        "--data",
        workspace,
        *SMALL,
        "--quiet",
        "--overwrite",
    )
    assert (code, out, err) == (0, "", "")
    code, out, _ = run(
        "score", dense, "--out", tmp_path / "s", "--data", workspace, *SMALL, "--criterion", "magnitude"
    )
    assert code == 0 and "magnitude" in out
    assert run("plan", dense, tmp_path / "s", "--budget", "70%")[0] == 0
    assert run("bench", dense, tmp_path / "p", "--batch", 2, "--length", 8)[0] == 0
    assert run("evaluate", dense, "--data", workspace)[0] == 0


@pytest.mark.slow
def test_sweep_is_prune_at_every_budget(run, workspace, tmp_path):
    common = (workspace / "dense", "--data", workspace, *SMALL)
    code, out, err = run("sweep", *common, "--budget", "70%", "--budget", "50%", "--out", tmp_path / "s", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [point["budget"] for point in found["points"]] == ["70% MACs", "50% MACs"]
    code, out, _ = run("prune", *common, "--budget", "50%", "--out", tmp_path / "p", "--json")
    alone, point = json.loads(out), found["points"][1]
    assert point["macs"] == alone["macs"]["pruned"] / alone["macs"]["dense"] <= 0.5
    assert {name: point[name] for name in alone["quality"]["pruned"]} == alone["quality"]["pruned"]
    assert found["dense"] == alone["quality"]["dense"]
    assert json.loads((tmp_path / "s" / "sweep.json").read_text())["points"] == found["points"]
    assert "dense" in (tmp_path / "s" / "sweep.svg").read_text()
    assert run("score", *common, "--out", tmp_path / "scores")[0] == 0
    code, out, _ = run("sweep", *common, "--scores", tmp_path / "scores", "--out", tmp_path / "t")
    assert code == 0 and "65% MACs" in out and "100.00%" in out
    assert run("sweep", *common, "--budget", "70%", "--budget", "1%", "--out", tmp_path / "u")[0] == 4


def test_a_dry_run_counts_everything_and_writes_nothing(run, workspace, tmp_path, monkeypatch):
    monkeypatch.setattr("optin.pipeline.found_by", None)  # nothing is scored
    common = (workspace / "dense", "--data", workspace, *SMALL, "--out", tmp_path / "x", "--dry-run")
    found = json.loads(run("prune", *common, "--budget", "60%", "--limit", 10, "--json")[1])
    assert found["calibration"] == "32 examples" and found["evaluation"] == "10 examples"
    assert found["groups"].startswith("7, of ") and found["compared"] == "logits by KL divergence"
    assert found["until it is saved, seconds, about"] > found["dense pass, seconds"] >= 0
    assert found["memory above the network, MB, about"] > 0
    assert "nothing was scored" in run("sweep", *common)[1] and run("score", *common)[0] == 0
    assert run("prune", *common, "--budget", "1%")[0] == 4
    assert run("prune", *common, "--budget", "1 point")[0] == 4  # which eight inputs cannot show
    assert list(tmp_path.iterdir()) == []


def test_fewer_examples_in_smaller_batches_are_evaluated(run, workspace):
    arguments = ("evaluate", workspace / "dense", "--data", workspace, "--json")
    few, all_of_them = (json.loads(run(*arguments, *more)[1]) for more in (("--limit", 9, "--batch-size", 2), ()))
    assert (few["examples"], all_of_them["examples"]) == (9, 80)
    assert run(*arguments, "--limit", 0)[0] == 2


def test_flags_override_the_recipe(run, workspace, tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"model: {workspace / 'dense'}\nbudget: 70%\ncriterion: magnitude\n"
        f"calibration: {{examples: 16}}\ntask: {{data: {workspace}}}\n"
    )
    code, out, _ = run(
        "prune", "--recipe", tmp_path / "r.yaml", "--budget", "50%", "--seed", 4, "--out", tmp_path / "p", "--json"
    )
    assert code == 0 and json.loads(out)["budget"] == "50% MACs"
    saved = optin.Recipe.load(tmp_path / "p" / "recipe.yaml")
    assert (saved.budget, saved.criterion, saved.seed) == ("50%", "magnitude", 4)


@pytest.mark.slow
def test_the_paper_preset_and_labels(run, workspace, tmp_path):
    common = (workspace / "dense", "--budget", "60%", "--data", workspace, "--out", tmp_path / "p", "--json")
    common += ("--overwrite",)
    assert run("prune", *common, "--preset", "paper", "--examples", 4)[0] == 0
    assert run("prune", *common, "--criterion", "fisher", "--examples", 16)[0] == 0
    code, out, err = run("prune", *common, "--preset", "kwon", "--examples", 16)
    assert code == 0 and json.loads(out)["macs"]["pruned"] <= 0.6 * json.loads(out)["macs"]["dense"], err
    assert run("score", *common[:1], *common[3:5], "--out", tmp_path / "s", "--preset", "kwon", *SMALL)[0] == 0
    stored = ("plan", workspace / "dense", tmp_path / "s", "--budget", "60%", "--json", "--preset", "kwon")
    assert json.loads(run(*stored)[1])["macs"]["pruned"] > 0
    assert run("score", *common[:1], *common[3:5], "--out", tmp_path / "t", *SMALL)[0] == 0
    assert run(*stored[:2], tmp_path / "t", *stored[3:])[0] == 2
    assert run("prune", *common, "--no-refit", "--examples", 16, "--dtype", "float64")[0] == 0


def test_the_version_is_said(run):
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("optin ") and f"torch {torch.__version__.partition('+')[0]}" in out


def test_a_killed_scoring_goes_on(run, workspace, tmp_path, monkeypatch):
    arguments = ("score", workspace / "dense", "--out", tmp_path / "s", "--data", workspace, "--criterion", "exact")
    arguments += ("--examples", 8, "--json")
    whole = Reference.losses
    calls = []

    def interrupted(self, group, units):
        calls.append(1)
        if len(calls) == 30:
            raise KeyboardInterrupt
        return whole(self, group, units)

    monkeypatch.setattr(Reference, "losses", interrupted)
    assert run(*arguments)[0] == 130
    assert (tmp_path / "s.partial").exists() and not (tmp_path / "s").exists()
    monkeypatch.setattr(Reference, "losses", whole)
    assert run(*arguments)[0] == 0
    assert not (tmp_path / "s.partial").exists()
    assert run(*arguments, "--out", tmp_path / "t")[0] == 0
    one, two = (load_file(tmp_path / name / "scores.safetensors") for name in "st")
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_tasks_and_presets_are_listed(run):
    code, out, _ = run("tasks", "--json")
    assert code == 0 and json.loads(out).keys() == TASKS.keys()
    assert json.loads(out)["mrpc"] == {
        "kind": "classification",
        "data": "sentence1, sentence2",
        "labels": "label",
        "metrics": "accuracy, f1",
        "hub": "nyu-mll/glue/mrpc",
    }
    code, out, _ = run("presets", "--json")
    assert code == 0 and json.loads(out).keys() == optin.PRESETS.keys()
    assert "tau" in run("presets")[1] and "sst2" in run("tasks")[1]


def test_short_names_of_dtypes(workspace):
    assert next(Placement(dtype="bf16").load(str(workspace / "dense")).parameters()).dtype is torch.bfloat16
    with pytest.raises(InputError, match="Use float32, bfloat16, float16, float64"):
        Placement(dtype="int8").load(str(workspace / "dense"))


def failing(folder):
    """Every mistake a user can make: (arguments, exit code, words of the message)."""
    dense, data = folder / "dense", ("--data", folder, *SMALL)
    prune = ("prune", dense, "--out", folder / ".." / "cli-out")
    return {
        "missing data": ((*prune, "--budget", "50%", "--data", folder / "none.csv"), 2, "no such file"),
        "no data": ((*prune, "--budget", "50%"), 2, "--data FILE"),
        "empty data": ((*prune, "--budget", "50%", "--data", folder / "empty.csv"), 2, "is empty"),
        "task": ((*prune, "--budget", "50%", *data, "--task", "sst"), 2, "Did you mean 'sst2'"),
        "column": ((*prune, "--budget", "50%", *data, "--text", "txt"), 2, "Did you mean 'text'"),
        "criterion": ((*prune, "--budget", "50%", *data, "--criterion", "mag"), 2, "magnitude"),
        "length": ((*prune, "--budget", "50%", *data, "--max-length", 64), 2, "beyond the 40 tokens"),
        "budget": ((*prune, "--budget", "half", *data), 4, "cannot read the budget"),
        "no budget": ((*prune, *data), 2, "no budget is given"),
        "whole budget": ((*prune, "--budget", "100%", *data), 4, "less than 100%"),
        "infeasible": ((*prune, "--budget", "1%", *data), 4, "Ask for"),
        "model": (("inspect", folder / "none"), 2, "no such folder here"),
        "device": (("inspect", dense, "--device", "abacus"), 2, "abacus"),
        "dtype": (("inspect", dense, "--dtype", "int8"), 2, "float32"),
        "architecture": (("inspect", folder / "t5"), 3, "T5"),
        "NaN": ((*prune[:1], folder / "nan", *prune[2:], "--budget", "50%", *data), 5, "output.dense.weight"),
        "recipe": ((*prune, "--recipe", folder / "none.yaml"), 2, "cannot read the recipe"),
        "preset": ((*prune, "--preset", "fast"), 2, "paper"),
        "both": ((*prune, "--preset", "paper", "--recipe", folder / "empty.csv"), 2, "not both"),
        "occupied": ((*prune[:2], "--out", folder, "--budget", "50%", *data), 2, "is, holds or lies in"),
        "scores": (("plan", dense, folder / "none", "--budget", "50%"), 2, "no such file"),
        "no model": (("prune", "--budget", "50%", *data), 2, "which model"),
    }


@pytest.mark.parametrize("mistake", sorted(failing(Path())))
def test_mistakes_end_in_one_line_and_their_exit_code(mistake, run, workspace):
    (workspace / "empty.csv").write_text("")
    if mistake == "architecture":
        (workspace / "t5").mkdir(exist_ok=True)
        from transformers import T5Config, T5Model

        config = T5Config(num_layers=1, num_heads=1, d_model=4, d_kv=4, d_ff=4, vocab_size=60)
        T5Model(config).save_pretrained(workspace / "t5")
    if mistake == "NaN":
        model = build("bert", num_labels=2)
        model.save_pretrained(workspace / "nan")
        tokenizer().save_pretrained(workspace / "nan")
        weights = load_file(workspace / "nan" / "model.safetensors")
        weights["bert.encoder.layer.0.output.dense.weight"][0, 0] = float("nan")
        save_file(weights, workspace / "nan" / "model.safetensors", {"format": "pt"})
    arguments, expected, words = failing(workspace)[mistake]
    code, out, err = run(*arguments)
    assert code == expected, err
    assert words in err and "Traceback" not in err and out == ""
    assert not workspace.with_name("cli-out").exists()


def test_module_and_help():
    environment = {**os.environ, "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-m", "optin", "--help"], capture_output=True, text=True, check=True, env=environment
    )
    assert all(
        name in done.stdout for name in ("inspect", "score", "plan", "prune", "sweep", "evaluate", "bench", "demo")
    )


def test_the_help_begins_with_what_is_needed(run, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    help_ = run("prune", "-h")[1]
    assert "optin prune --budget BUDGET [OPTIONS]" in help_
    headings = ["Model and data", "Budget", "Method", "Hardware", "Output"]
    places = [help_.index(f" {heading} ") for heading in headings]
    assert places == sorted(places) and help_.index("--data") < help_.index("--scores")
