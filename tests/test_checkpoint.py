from __future__ import annotations

import copy
import errno
import json
import os
import pickle
import resource
import signal
import subprocess
import sys
import time

import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file, save_file

import optin
from optin.describing import describe
from optin.errors import CheckpointError, InputError
from optin.recipe import Recipe
from optin.running.outputs import answers
from optin.support import folders
from tests.contract.test_architectures import random_plan
from tests.networks import ATTENTION, HEADS, NEURONS, build, inputs, plan_of, tokens
from tests.zoo import built

RECIPE = Recipe().override(trajectory__draws=8)


@pytest.fixture
def small(bert, tmp_path):
    """A saved pruned network."""
    result = optin.apply(bert, random_plan(bert))
    return result, result.save(tmp_path / "small")


def config_of(folder):
    return json.loads((folder / "config.json").read_text())


def change(folder, **section):
    config = config_of(folder)
    config["optin"] |= section
    (folder / "config.json").write_text(json.dumps(config))


def test_what_lies_in_a_checkpoint(small):
    result, folder = small
    assert {path.name for path in folder.iterdir()} >= {
        "config.json",
        "model.safetensors",
        "plan.json",
        "recipe.yaml",
        "report.json",
        "README.md",
        "modeling_optin.py",
    }
    config = config_of(folder)
    assert (config["num_attention_heads"], config["intermediate_size"]) == (4, 20)
    assert config["optin"] == result.plan.to_dict()
    assert optin.Plan.load(folder / "plan.json") == result.plan
    card = (folder / "README.md").read_text()
    assert (
        f"{result.plan.pruned.macs:,}" in card
        and ModelCard.load(folder / "README.md").data.library_name == "transformers"
    )


def test_transformers_reads_the_configuration_and_refuses_the_weights(small):
    from transformers import AutoConfig, AutoModelForSequenceClassification

    assert AutoConfig.from_pretrained(small[1]).model_type == "bert"
    with pytest.raises(RuntimeError, match="size mismatch|mismatched"):
        AutoModelForSequenceClassification.from_pretrained(small[1])


def test_auto_classes_load_it_in_a_fresh_process(tmp_path):
    expected = {}
    networks = {"AutoModel" if head == "Model" else f"AutoModelFor{head}": build("bert", head) for head in HEADS}
    networks |= {"AutoModelForCausalLM": built("qwen2")}
    for auto, model in networks.items():
        result = optin.apply(model, random_plan(model))
        result.save(tmp_path / auto / "small")
        torch.save(tokens(model), tmp_path / auto / "inputs.pt")
        with torch.inference_mode():
            expected[auto] = result.model(**tokens(model))[0]
    code = (
        "import pathlib, sys, torch, transformers\n"
        "for folder in map(pathlib.Path, sys.argv[1:]):\n"
        "    auto = getattr(transformers, folder.name)\n"
        "    model = auto.from_pretrained(folder / 'small', trust_remote_code=True)\n"
        "    inputs = torch.load(folder / 'inputs.pt', weights_only=True)\n"
        "    with torch.inference_mode():\n"
        "        torch.save(model(**inputs)[0], folder / 'outputs.pt')\n"
    )
    folders = [str(tmp_path / auto) for auto in expected]
    environment = {**os.environ, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-c", code, *folders], check=True, env=environment, capture_output=True)
    for auto, outputs in expected.items():
        torch.testing.assert_close(torch.load(tmp_path / auto / "outputs.pt", weights_only=True), outputs)


@pytest.mark.parametrize("head", ["SequenceClassification", "Model"])
def test_auto_classes_load_what_the_network_saves_itself(head, tmp_path):
    """As the Trainer does: by `save_pretrained`, of a network just pruned, of its copy, and of a loaded one."""
    import transformers

    model = build("bert", head)
    result = optin.apply(model, random_plan(model))
    assert isinstance(result.model, type(model)) and type(result.model).__name__ == type(model).__name__
    result.save(tmp_path / "first")
    auto = getattr(transformers, "AutoModel" if head == "Model" else f"AutoModelFor{head}")
    for number, network in enumerate((result.model, copy.deepcopy(result.model), optin.load(tmp_path / "first"))):
        folder = tmp_path / f"again{number}"
        network.save_pretrained(folder)
        assert config_of(folder)["auto_map"] == config_of(tmp_path / "first")["auto_map"]
        loaded = auto.from_pretrained(folder, trust_remote_code=True)
        with torch.no_grad():
            torch.testing.assert_close(loaded(**tokens(model))[0], result.model(**tokens(model))[0])
    again = pickle.loads(pickle.dumps(result.model))
    with torch.no_grad():
        assert torch.equal(again(**tokens(model))[0], result.model(**tokens(model))[0])
    assert model.__class__.__module__.startswith("transformers.")  # the dense one is as it was


def test_a_loaded_network_saves_itself(small, tmp_path):
    loaded = optin.load(small[1])
    loaded.save_pretrained(tmp_path / "again")
    inputs = tokens(loaded)
    assert torch.equal(optin.load(tmp_path / "again")(**inputs).logits, loaded(**inputs).logits)


def test_options_reach_the_loader(small):
    assert optin.load(small[1], dtype=torch.bfloat16).dtype == torch.bfloat16
    assert optin.load(small[1]).dtype == torch.float32


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"architecture": "albert"}, "for 'albert'"),
        ({"groups": {"layers.9.heads": {"size": 4, "keep": "0"}}}, "says nothing|does not have"),
        ({"groups": {}}, "says nothing"),
        ({"groups": {ATTENTION[0]: {"size": 4, "keep": "0-999999999"}}}, "below 4"),
        ({"groups": {ATTENTION[0]: {"size": 10**9, "keep": "0"}}}, "speaks of 1000000000 units"),
        ({"groups": {"../../x": {"size": 1, "keep": "0"}}}, "says nothing|does not have"),
        ({"format": 2}, "format 1"),
        ({"dense": 3}, "must be dict"),
    ],
)
def test_a_tampered_plan_is_refused(small, section, message):
    change(small[1], **section)
    with pytest.raises(CheckpointError, match=message):
        optin.load(small[1])


def test_a_plan_that_does_not_fit_the_weights_is_refused(small):
    groups = config_of(small[1])["optin"]["groups"]
    groups[NEURONS[0]]["keep"] = "0-18"
    change(small[1], groups=groups)
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        optin.load(small[1])


@pytest.mark.parametrize("change_to", [{"architectures": ["os"]}, {"architectures": []}, {"model_type": "gpt2"}])
def test_a_tampered_class_is_refused(small, change_to):
    config = config_of(small[1]) | change_to
    (small[1] / "config.json").write_text(json.dumps(config))
    with pytest.raises(optin.OptinError):
        optin.load(small[1])


def test_no_code_of_a_checkpoint_runs(small):
    (small[1] / "modeling_optin.py").write_text("raise SystemExit('code of the checkpoint ran')\n")
    optin.load(small[1])


def test_damaged_and_missing_weights(small, tmp_path):
    weights = small[1] / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CheckpointError, match="damaged"):
        optin.load(small[1])
    weights.write_bytes(whole)
    tensors = load_file(weights)
    tensors.pop("classifier.weight")
    save_file(tensors, weights, {"format": "pt"})
    with pytest.raises(CheckpointError, match="lacks the weights of 'classifier.weight'"):
        optin.load(small[1])
    weights.rename(small[1] / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="no safetensors"):
        optin.load(small[1])


def test_other_folders_are_refused(bert, tmp_path):
    with pytest.raises(InputError, match="no such folder"):
        optin.load(tmp_path / "none")
    bert.save_pretrained(tmp_path / "dense")
    with pytest.raises(InputError, match="load it with transformers"):
        optin.load(tmp_path / "dense")


def test_a_folder_of_somebody_else_is_not_replaced(bert, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    result = optin.apply(bert, random_plan(bert))
    with pytest.raises(InputError, match="not empty"):
        result.save(tmp_path / "mine")
    with pytest.raises(InputError, match="not written by optin"):
        result.save(tmp_path / "mine", overwrite=True)
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"
    (tmp_path / "file").write_text("x")
    with pytest.raises(InputError, match="is a file"):
        result.save(tmp_path / "file", overwrite=True)


def test_an_older_result_is_replaced_and_all_else_stays(small, bert):
    other = optin.apply(bert, random_plan(bert, 5))
    (small[1] / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        other.save(small[1])
    other.save(small[1], overwrite=True)
    assert (small[1] / "notes.txt").read_text() == "mine"
    assert config_of(small[1])["optin"] == other.plan.to_dict()
    assert [path.name for path in small[1].parent.iterdir()] == ["small"]


@pytest.mark.parametrize("exchange", [True, False])
def test_a_full_disk_leaves_the_old_result(small, bert, monkeypatch, exchange):
    before = {path.name: path.read_bytes() for path in small[1].iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    if not exchange:
        monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        optin.apply(bert, random_plan(bert, 5)).save(small[1], overwrite=True)
    assert {path.name: path.read_bytes() for path in small[1].iterdir()} == before
    assert [path.name for path in small[1].parent.iterdir()] == ["small"]


def test_weights_that_cannot_be_written_leave_the_old_result(small, bert):
    """The system itself refuses: files of this process may not grow beyond 4,000 bytes."""
    before = {path.name: path.read_bytes() for path in small[1].iterdir()}
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    result = optin.apply(bert, random_plan(bert, 5))
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(CheckpointError, match="cannot write"):
            result.save(small[1], overwrite=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {path.name: path.read_bytes() for path in small[1].iterdir()} == before


def test_the_swap_works_without_help_of_the_system(small, bert, monkeypatch):
    monkeypatch.setattr(folders, "_exchange", lambda one, other: False)
    other = optin.apply(bert, random_plan(bert, 5))
    other.save(small[1], overwrite=True)
    assert config_of(small[1])["optin"] == other.plan.to_dict()


@pytest.mark.slow
def test_a_kill_leaves_the_old_or_the_new_folder(small, bert, tmp_path):
    """A process that saves over and over is killed at many moments; what lies there always loads."""
    code = (
        "import sys, torch, optin\n"
        "from tests.networks import build\n"
        "from tests.contract.test_architectures import random_plan\n"
        "model = build('bert')\n"
        "results = [optin.apply(model, random_plan(model, seed)) for seed in range(3)]\n"
        "print('ready', flush=True)\n"
        "while True:\n"
        "    for result in results: result.save(sys.argv[1], overwrite=True)\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(small[1])], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        process.stdout.readline()
        seen = set()
        start = time.monotonic()
        while time.monotonic() < start + (1.5 if len(seen) > 1 else 60):
            seen.add(json.dumps(config_of(small[1])["optin"]))
        process.send_signal(signal.SIGKILL)
    assert len(seen) > 1
    optin.load(small[1])


def test_scores_and_back(bert, batches, tmp_path):
    scores = optin.score(bert, batches, recipe=RECIPE)
    optin.save_scores(scores, tmp_path / "scores")
    again = optin.load_scores(tmp_path / "scores")
    assert again.provenance == scores.provenance and again.length == scores.length
    assert optin.plan(bert, again, "50%") == optin.plan(bert, scores, "50%")


def test_damaged_scores_are_refused(bert, batches, tmp_path):
    scores = optin.score(bert, batches, recipe=RECIPE.override(criterion="random"))
    folder = optin.save_scores(scores, tmp_path / "scores")
    tensors = load_file(folder / "scores.safetensors")
    for name, value in [
        (f"{ATTENTION[0]}/order", torch.tensor([0, 0, 1, 2])),
        (f"{ATTENTION[0]}/cost", torch.full((5,), torch.nan, dtype=torch.float64)),
        (f"{ATTENTION[0]}/cost", torch.zeros(4, dtype=torch.float64)),
    ]:
        save_file({**tensors, name: value}, folder / "scores.safetensors")
        with pytest.raises(CheckpointError, match="damaged"):
            optin.load_scores(folder)
    (folder / "scores.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="damaged"):
        optin.load_scores(folder)
    (folder / "scores.safetensors").unlink()
    with pytest.raises(InputError, match="no such file"):
        optin.load_scores(folder)
    (folder / "scores.json").write_text("{}")
    with pytest.raises(CheckpointError, match="damaged"):
        optin.load_scores(folder)


@pytest.mark.parametrize("kind", ["bert", "timm-vit"])
def test_the_precision_is_kept(kind, tmp_path):
    model = build(kind, attention="sdpa").to(torch.bfloat16)
    batch = {name: value.bfloat16() if value.is_floating_point() else value for name, value in inputs(model).items()}
    result = optin.apply(model, random_plan(model))
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small")
    with torch.inference_mode():
        assert torch.equal(answers(loaded(**batch)), answers(result.model(**batch)))
    assert next(optin.load(tmp_path / "small", dtype=torch.float32).parameters()).dtype == torch.float32


def test_the_precision_is_kept_where_it_is_loaded_into_a_network(tmp_path):
    def made() -> torch.nn.Module:
        torch.manual_seed(0)
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3))

    model = made().bfloat16()
    result = optin.apply(model, plan_of(model, {next(iter(describe(model))).name: range(5)}))
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=made())
    assert {value.dtype for value in loaded.state_dict().values()} == {torch.bfloat16}
