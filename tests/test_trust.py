"""What a user may be unlucky with: hostile folders, kills, neighbours, odd weights."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import optin
from optin.errors import CheckpointError, OptinError
from optin.recipe import Recipe
from optin.storage.libraries import create
from optin.storage.timm_models import ARGUMENTS
from tests.contract.test_architectures import random_plan
from tests.networks import build, tokens
from tests.test_plans import JSON

RECIPE = Recipe().override(trajectory__draws=8)

SAVER = (
    "import sys, optin\n"
    "from tests.networks import build\n"
    "from tests.contract.test_architectures import random_plan\n"
    "model = build('bert')\n"
    "result = optin.apply(model, random_plan(model, int(sys.argv[2])))\n"
    "for _ in range(20): result.save(sys.argv[1], overwrite=True)\n"
)
EXPORTER = (
    "import sys, torch, optin\n"
    "from tests.networks import build, tokens\n"
    "torch.manual_seed(0)\n"
    "model = build('bert')\n"
    "while True:\n"
    "    print('export', flush=True)\n"
    "    optin.export(model, tokens(model), sys.argv[1], 'torch-export', overwrite=True)\n"
)


PRUNER = (
    "import sys, torch, optin\n"
    "from tests.networks import build, tokens\n"
    "torch.set_num_threads(1)\n"
    "torch.manual_seed(0)\n"
    "model = build('bert')\n"
    "recipe = optin.Recipe().override(trajectory__draws=8)\n"
    "batches = [tokens(model, seed=seed) for seed in range(8)]\n"
    "optin.prune(model, batches, '50%', recipe=recipe).save(sys.argv[1])\n"
)


@pytest.fixture
def small(bert, tmp_path):
    result = optin.apply(bert, random_plan(bert))
    return result.save(tmp_path / "small")


@pytest.fixture(scope="module")
def channels(tmp_path_factory):
    model = create("optin:resnet20")
    return optin.apply(model, random_plan(model)).save(tmp_path_factory.mktemp("once") / "channels")


@pytest.fixture
def small_of_channels(channels, tmp_path):
    return Path(shutil.copytree(channels, tmp_path / "channels"))


@pytest.fixture(scope="module")
def onnx(tmp_path_factory):
    bert, folder = build("bert", "SequenceClassification"), tmp_path_factory.mktemp("once") / "onnx"
    optin.export(bert, tokens(bert), folder)
    return folder


@pytest.fixture
def exported(onnx, tmp_path):
    return Path(shutil.copytree(onnx, tmp_path / "onnx"))


def changed(folder, **entries) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | entries))


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "elsewhere.safetensors"])
def test_weights_outside_of_the_folder_are_not_read(small, target):
    index = {"metadata": {}, "weight_map": {"bert.embeddings.word_embeddings.weight": target}}
    (small / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(CheckpointError, match="do not lie beside it"):
        optin.load(small)
    (small / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(CheckpointError, match="do not lie beside it"):
        optin.load(small)


@pytest.mark.parametrize(
    "entries",
    [
        {"num_hidden_layers": 10**6},
        {"num_hidden_layers": 10**12},
        {"hidden_size": 10**9},
        {"vocab_size": 2**62},
        {"intermediate_size": [[10**9]]},
    ],
)
def test_absurd_sizes_are_refused_before_anything_is_made(small, entries):
    changed(small, **entries)
    with pytest.raises(CheckpointError, match="asks for"):
        optin.load(small)


def test_absurd_sizes_of_other_networks_are_refused(small_of_channels):
    changed(small_of_channels, model_args={"classes": 10**10})
    with pytest.raises(CheckpointError, match="asks for 'classes'"):
        optin.load(small_of_channels)


@pytest.mark.parametrize(
    "entries",
    [
        {"_attn_implementation": "kernels-community/flash-attn"},
        {"attn_implementation": {"": "someone/kernels:forward"}},
        {"text_config": {"_attn_implementation_internal": "paged|someone/kernels"}},
        {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}},
    ],
)
def test_code_from_elsewhere_is_not_asked_for(small, entries):
    changed(small, **entries)
    with pytest.raises(CheckpointError, match="asks for"):
        optin.load(small)


@pytest.mark.parametrize("name", ["pretrained", "pretrained_cfg", "checkpoint_path", "weights"])
def test_weights_from_elsewhere_are_not_asked_for(small_of_channels, name):
    changed(small_of_channels, model_args={name: "/tmp/other.pth"})
    with pytest.raises(CheckpointError, match="from elsewhere"):
        optin.load(small_of_channels)


def test_arguments_that_fetch_are_not_saved(tmp_path):
    model = build("timm-vit")
    vars(model)[ARGUMENTS]["pretrained_cfg_overlay"] = {"url": ""}
    folder = optin.apply(model, random_plan(model)).save(tmp_path / "small")
    assert "pretrained_cfg_overlay" not in json.loads((folder / "config.json").read_text())["model_args"]
    optin.load(folder)


def test_adapters_beside_the_weights_are_refused(small):
    (small / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "/etc"}))
    with pytest.raises(CheckpointError, match="adapter"):
        optin.load(small)


def is_read_or_refused(file, data, read) -> None:
    """Replace any entry of a JSON file by anything: its reader takes it, or refuses it in one line."""
    original = file.read_text()
    content = json.loads(original)
    content[data.draw(st.sampled_from(sorted(content)))] = data.draw(JSON)
    file.write_text(json.dumps(content))
    try:
        read(file.parent)
    except OptinError as error:
        assert str(error)
    finally:
        file.write_text(original)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_a_configuration_breaks_the_loader(small, data):
    is_read_or_refused(small / "config.json", data, optin.load)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_another_configuration_breaks_the_loader(small_of_channels, data):
    is_read_or_refused(small_of_channels / "config.json", data, optin.load)


@pytest.mark.slow
@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_change_of_an_export_breaks_its_reader(exported, data):
    is_read_or_refused(exported / "export.json", data, optin.open_exported)


def test_a_full_disk_leaves_the_old_export(exported, bert, monkeypatch):
    before = {path.name: path.read_bytes() for path in exported.iterdir()}

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="the disk is full"):
        optin.export(bert, tokens(bert), exported, overwrite=True)
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == ["onnx"]


@pytest.mark.slow
def test_two_processes_make_the_same_network(tmp_path):
    """Same seed, same inputs: the same weights and plan to the bit, whatever hashes of names a process has."""
    folders = [tmp_path / "first", tmp_path / "second"]
    for number, folder in enumerate(folders):
        subprocess.run(
            [sys.executable, "-c", PRUNER, folder], check=True, env=os.environ | {"PYTHONHASHSEED": f"{number}"}
        )
    first, second = folders
    assert (first / "model.safetensors").read_bytes() == (second / "model.safetensors").read_bytes()
    assert (first / "config.json").read_text() == (second / "config.json").read_text()


@pytest.mark.slow
def test_two_processes_may_write_to_one_folder(tmp_path):
    folder = tmp_path / "small"
    writers = [subprocess.Popen([sys.executable, "-c", SAVER, str(folder), str(seed)]) for seed in (1, 2)]
    assert [writer.wait() for writer in writers] == [0, 0]
    model = build("bert")
    plans = [random_plan(model, seed) for seed in (1, 2)]
    assert optin.load(folder).config.optin["groups"] in [plan.to_dict()["groups"] for plan in plans]
    assert [path.name for path in tmp_path.iterdir()] == ["small"], "nothing else is left behind"


@pytest.mark.slow
def test_a_kill_leaves_a_whole_export_or_none(tmp_path):
    model = build("bert")
    command = [sys.executable, "-c", EXPORTER, str(tmp_path / "out")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert not (tmp_path / "out").exists()
        process.stdout.readline()  # the second begins, so the first is done
        process.send_signal(signal.SIGKILL)
    batch = tokens(model)
    with torch.no_grad():
        expected = model(**batch).logits
    torch.testing.assert_close(optin.open_exported(tmp_path / "out", trusted=True)(**batch).logits, expected)


def test_weights_that_are_views_or_shared(bert, batches, tmp_path):
    """Transposed storage, and one tensor under two names."""
    expected = optin.prune(bert, batches, "50%", recipe=RECIPE)
    for module in bert.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight.data = module.weight.data.mT.contiguous().mT
    assert not bert.bert.encoder.layer[0].output.dense.weight.is_contiguous()
    got = optin.prune(bert, batches, "50%", recipe=RECIPE)
    assert got.plan.keep == expected.plan.keep
    got.save(tmp_path / "views")
    sample = tokens(bert)
    with torch.no_grad():
        torch.testing.assert_close(optin.load(tmp_path / "views")(**sample).logits, got.model(**sample).logits)
    masked = build("bert", "MaskedLM")
    tied = optin.prune(masked, batches, "50%", recipe=RECIPE)
    tied.save(tmp_path / "tied")
    again = optin.load(tmp_path / "tied")
    assert again.get_output_embeddings().weight is again.get_input_embeddings().weight
    assert tied.report["bytes"]["dense"] < sum(value.nbytes for value in masked.state_dict().values())
