from __future__ import annotations

import copy
import json
import shutil
import sys
from types import SimpleNamespace

import pytest
import torch
import transformers
from torch import nn

import optin
from optin.describing import describe
from optin.errors import CheckpointError, DependencyError, InputError, OptinError
from optin.recipe import Recipe
from optin.running.merging import Merging
from optin.running.surgery import shrink
from optin.storage import exporting
from optin.storage.exporting import export, export_all
from optin.storage.formats import FORMATS
from optin.storage.libraries import create
from tests import zoo
from tests.contract.test_architectures import random_plan
from tests.networks import EAGER_ONLY, HEADS_OF, build, inputs, tokenizer, tokens
from tests.slow import slow_but
from tests.test_cli import run, workspace  # noqa: F401
from tests.test_cnn import of_transformers
from tests.test_styles import Reshaped

RECIPE = Recipe().override(trajectory__draws=8)

IMAGES = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def pruned(architecture: str, head: str | None = None):
    model = build(architecture, head, "eager" if architecture in EAGER_ONLY else "sdpa")
    shrink(model, describe(model), random_plan(model))
    return model


@pytest.mark.parametrize("architecture", slow_but(("bert", "vit", "clip"), sorted(HEADS_OF)))
def test_every_architecture_is_traced_with_free_examples_and_lengths(architecture, tmp_path):
    model = pruned(architecture)
    assert export(model, inputs(model), tmp_path / "out", "torch-export")["difference"] < 1e-5


@pytest.mark.parametrize(
    "head", slow_but(["QuestionAnswering"], [head for head in HEADS_OF["bert"] if head != "SequenceClassification"])
)
def test_every_head_is_traced(head, tmp_path):
    model = pruned("bert", head)
    export(model, inputs(model), tmp_path / "out", "torch-export")
    got = optin.open_exported(tmp_path / "out", trusted=True)(**inputs(model, batch=2, seed=3))
    expected = model(**inputs(model, batch=2, seed=3))
    assert set(got) == {name for name, value in expected.items() if isinstance(value, torch.Tensor)}


class OwnConfig(transformers.PretrainedConfig):
    model_type = "of_a_user"

    def __init__(self, width=8, **kwargs):
        super().__init__(**kwargs)
        self.width = width


class OwnModel(transformers.PreTrainedModel):
    config_class = OwnConfig

    def __init__(self, config):
        super().__init__(config)
        self.up, self.head = nn.Linear(config.width, 16), nn.Linear(16, 4)
        self.post_init()

    def forward(self, x):
        return self.head(self.up(x).relu())


def test_a_class_of_the_user_s_own_with_a_configuration(tmp_path):
    batch = {"x": torch.randn(4, 8)}
    result = optin.prune(OwnModel(OwnConfig()).eval(), [batch], "80%", recipe=RECIPE)
    export(result.model, batch, tmp_path / "out", "torch-export")
    opened = optin.open_exported(tmp_path / "out", trusted=True)
    assert opened.config.width == 8
    torch.testing.assert_close(opened(**batch), result.model(**batch))


def test_counts_of_a_plan_are_no_sizes_of_a_network(bert, tmp_path):
    """Those of real networks are beyond any size."""
    result = optin.prune(bert, [tokens(bert)], "80%", recipe=RECIPE)
    result.model.config.optin["dense"]["macs"] = 10**12
    export(result.model, tokens(bert), tmp_path / "out", "torch-export")
    assert optin.open_exported(tmp_path / "out", trusted=True).config.optin["dense"]["macs"] == 10**12


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_one_number_for_each_example(to, tmp_path):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Flatten(0)).eval()
    batch = {"input": torch.randn(4, 8)}
    export(network, batch, tmp_path / "out", to)
    opened = optin.open_exported(tmp_path / "out", trusted=True)
    torch.testing.assert_close(opened(**batch), network(**batch))


@pytest.mark.parametrize("to", ["onnx", "torch-export"])
def test_inputs_of_another_width_are_refused_in_one_line(to, tmp_path):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    export(network, {"input": torch.randn(4, 8)}, tmp_path / "out", to)
    with pytest.raises(InputError, match=r"does not take the inputs input \(4, 9\)"):
        optin.open_exported(tmp_path / "out", trusted=True)(input=torch.randn(4, 9))


def test_a_folder_that_is_no_export_is_said_to_be_none(bert, tmp_path):
    bert.save_pretrained(tmp_path)
    with pytest.raises(InputError, match="no exported network"):
        optin.open_exported(tmp_path)


def test_what_is_no_text_keeps_its_size(tmp_path):
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    figures = export(network, {"input": torch.randn(4, 8)}, tmp_path / "out", "torch-export")
    assert figures["fixed"] == ["input"] and figures["difference"] < 1e-5


def test_a_forward_that_computes_with_its_heads_is_traced_with_fewer(tmp_path):
    batch = {"x": torch.randn(3, 6, 16)}
    result = optin.prune(Reshaped().eval(), [batch], "80%", recipe=RECIPE)
    export(result.model, batch, tmp_path / "out", "torch-export")
    other = {"x": torch.randn(5, 6, 16)}
    got = optin.open_exported(tmp_path / "out", trusted=True)(**other)
    torch.testing.assert_close(got, result.model(**other))


def test_a_decoder_is_as_long_as_it_likes(tmp_path):
    """By the labels of a batch as by its inputs."""
    model, generator = zoo.built("t5"), torch.Generator().manual_seed(0)
    ids, labels = (torch.randint(5, 60, (3, length), generator=generator) for length in (9, 5))
    mask = torch.ones_like(ids)
    figures = export(
        model, {"input_ids": ids, "attention_mask": mask, "labels": labels}, tmp_path / "out", "torch-export"
    )
    assert figures["fixed"] == []
    other = {"input_ids": ids[:, :7], "attention_mask": mask[:, :7], "decoder_input_ids": labels[:, :3]}
    got = optin.open_exported(tmp_path / "out", trusted=True)(**other)
    torch.testing.assert_close(got.logits, model(**other).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("to", slow_but(["onnx"], sorted(FORMATS)))
def test_other_numbers_of_examples_and_lengths(to, tmp_path):
    model = pruned("bert")
    figures = export(model, tokens(model, batch=3, length=9), tmp_path / "out", to, tokenizer())
    assert figures["bytes"] > 0 and (tmp_path / "out" / "tokenizer.json").is_file()
    other = optin.open_exported(tmp_path / "out", trusted=True)
    for batch, length in ((1, 4), (5, 17)):
        sample = tokens(model, batch, length, seed=1)
        if batch == 1:  # without a mask, every token counts
            sample = {"input_ids": sample["input_ids"].clamp(min=5)}
        with torch.no_grad():
            expected = model(**sample).logits
        torch.testing.assert_close(
            other(**sample).logits, expected, atol=0.5 if to == "onnx-int8" else 1e-4, rtol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize("to", ["onnx", "openvino"])
def test_merging_is_exported(to, tmp_path):
    model = build("dinov2", attention="sdpa")
    space = describe(model).tokens
    Merging(model, space, (0, 3, 2))
    batch = inputs(model)
    assert export(model, batch, tmp_path / "out", to)["difference"] < 1e-4
    one = {name: value[:1] for name, value in batch.items()}
    with torch.no_grad():
        expected = model(**one).logits
    torch.testing.assert_close(optin.open_exported(tmp_path / "out")(**one).logits, expected, atol=1e-4, rtol=1e-4)


def test_a_network_that_returns_a_tensor(tmp_path):
    model = create("optin:resnet20")
    assert export(model, {"input": IMAGES}, tmp_path / "out")["difference"] < 1e-4
    with torch.no_grad():
        expected = model(IMAGES[:1])
    torch.testing.assert_close(
        optin.open_exported(tmp_path / "out")(input=IMAGES[:1]), expected, atol=1e-4, rtol=1e-4
    )


@pytest.mark.parametrize("family", slow_but(["ConvNext"], ["ConvNext", "Mask2Former", "Segformer", "UperNet"]))
def test_networks_of_channels_and_scenes_are_traced(family, tmp_path):
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    figures = export(of_transformers(family), {"pixel_values": images}, tmp_path / "out", "torch-export")
    assert figures["difference"] < 1e-4


@pytest.mark.slow
def test_all_formats_come_from_one_trace(bert, tmp_path, monkeypatch):
    made = []
    for module, name in ((exporting, "_trace"), (torch.onnx, "export")):
        whole = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *given, _n=name, _w=whole, **o: made.append(_n) or _w(*given, **o))
    targets = {to: tmp_path / to for to in FORMATS}
    assert [found["format"] for found in export_all(bert, tokens(bert), targets)] == list(FORMATS)
    assert made == ["_trace", "export"]

    def broken(*_, **__):
        raise RuntimeError("no such operator\nand more")

    monkeypatch.setattr(torch.onnx, "export", broken)
    with pytest.raises(InputError, match="cannot be written as onnx: no such operator$"):
        export(bert, tokens(bert), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_nothing_is_written_that_computes_something_else(bert, tmp_path, monkeypatch):
    class Wrong(torch.nn.Module):
        def forward(self, **batch):
            return {"logits": bert(**batch).logits + 1}

    monkeypatch.setattr(exporting, "open_exported", lambda *_, **__: Wrong())
    with pytest.raises(OptinError, match="differs"):
        export(bert, tokens(bert), tmp_path / "out", "torch-export")
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_exported_is_said(bert, tmp_path, monkeypatch):
    with pytest.raises(InputError, match="Did you mean 'onnx'"):
        export(bert, tokens(bert), tmp_path / "out", "onxx")
    with pytest.raises(InputError, match="cannot be exported"):
        export(copy.deepcopy(bert).bfloat16(), tokens(bert), tmp_path / "out", "torch-export")
    with pytest.raises(InputError, match="two examples"):
        export(bert, tokens(bert, batch=1), tmp_path / "out")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine").touch()
    with pytest.raises(InputError, match="not empty"):
        export(bert, tokens(bert), tmp_path / "other", "torch-export")
    with pytest.raises(InputError, match="not written by optin"):
        export(bert, tokens(bert), tmp_path / "other", "torch-export", overwrite=True)
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["mine"]
    strings = tokens(bert) | {"text": ["a", "b", "c", "d"]}
    with pytest.raises(InputError, match="'text' must be a tensor"):
        export(bert, strings, tmp_path / "out", "torch-export")
    with pytest.raises(InputError, match="must be a mapping"):
        export(bert, [tokens(bert)], tmp_path / "out", "torch-export")
    with pytest.raises(InputError, match="does not take the inputs"):
        export(bert, {"input_ids": torch.full((2, 3), 999)}, tmp_path / "out", "torch-export")
    with monkeypatch.context() as patch, pytest.raises(CheckpointError, match="the disk is full"):
        patch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=1000))
        export(bert, tokens(bert), tmp_path / "out", "torch-export")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(DependencyError, match=r"optin\[export\]"):
        export(bert, tokens(bert), tmp_path / "out")

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x + 1 if x.sum() > 0 else x

    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), Branching())
    with pytest.raises(InputError, match=r"torch\.export"):
        export(model, {"input": IMAGES}, tmp_path / "out", "torch-export")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_untrusted_and_damaged_exports_are_refused(bert, tmp_path):
    export(bert, tokens(bert), tmp_path / "pt2", "torch-export")
    with pytest.raises(InputError, match="unpickling"):
        optin.open_exported(tmp_path / "pt2")
    export(bert, tokens(bert), tmp_path / "onnx")
    with pytest.raises(InputError, match="'input_ids' is missing"):
        optin.open_exported(tmp_path / "onnx")(attention_mask=torch.ones(1, 3, dtype=torch.int64))
    description = json.loads((tmp_path / "onnx" / "export.json").read_text())
    for change, error in (
        ({"format": "pickle"}, InputError),
        ({"format": ["onnx"]}, InputError),
        ({"inputs": "input_ids"}, CheckpointError),
        ({"outputs": []}, CheckpointError),
    ):
        (tmp_path / "onnx" / "export.json").write_text(json.dumps({**description, **change}))
        with pytest.raises(error):
            optin.open_exported(tmp_path / "onnx")
    (tmp_path / "onnx" / "export.json").write_text(json.dumps(description))
    (tmp_path / "onnx" / "model.onnx").write_bytes(b"no network")
    with pytest.raises(CheckpointError, match="cannot be opened"):
        optin.open_exported(tmp_path / "onnx")
    (tmp_path / "onnx" / "model.onnx").unlink()
    with pytest.raises(InputError, match="no such file"):
        optin.open_exported(tmp_path / "onnx")


@pytest.mark.slow
def test_exports_on_the_command_line(run, workspace, tmp_path):  # noqa: F811
    common = ("--data", workspace, "--examples", 32, "--quiet")
    assert run("prune", workspace / "dense", "--budget", "60%", "--out", tmp_path / "small", *common)[0] == 0
    options = ("--to", "onnx", "--to", "onnx-int8", "--data", workspace, "--reference", workspace / "dense")
    code, out, _ = run("export", tmp_path / "small", *options, "--json")
    assert code == 0
    rows = json.loads(out)["rows"]
    assert [(row["network"], row["runtime"]) for row in rows] == [
        (network, runtime) for network in ("dense", "pruned") for runtime in ("torch", "onnx", "onnx-int8")
    ]
    assert abs(rows[4]["kl"] - rows[3]["kl"]) < 1e-5 and rows[4]["accuracy"] == rows[3]["accuracy"]
    code, out, _ = run("evaluate", tmp_path / "small" / "onnx", "--data", workspace, "--json")
    assert code == 0 and json.loads(out)["accuracy"] == rows[4]["accuracy"]
    options = ("--to", "torch-export", "--data", workspace, "--no-evaluate", "--out", tmp_path / "dense")
    code, out, _ = run("export", workspace / "dense", *options, "--json")
    assert code == 0 and "real" in json.loads(out)["inputs"] and "accuracy" not in json.loads(out)["rows"][0]
    # Without data on random inputs, and beside no other network.
    code, out, _ = run("export", tmp_path / "small", "--to", "torch-export", "--out", tmp_path / "there", "--json")
    assert code == 0 and "random" in json.loads(out)["inputs"]
    assert (tmp_path / "there" / "torch-export" / "model.pt2").is_file()
    assert run("export", tmp_path / "small", "--to", "tflite")[0] == 2
    shutil.rmtree(tmp_path / "small" / "onnx")
    assert run("evaluate", tmp_path / "small" / "onnx", "--data", workspace)[0] == 2


def test_results_work_in_pipelines_and_compiled(bert, batches, tmp_path):
    result = optin.prune(bert, batches, "60%", recipe=RECIPE)
    result.save(tmp_path / "small", tokenizer())
    model = optin.load(tmp_path / "small")
    classify = transformers.pipeline("text-classification", model=model, tokenizer=tokenizer(), device="cpu")
    (answer,) = classify("good film")
    assert answer["label"] in model.config.id2label.values()
    sample = tokens(model, 2, 7)
    with torch.no_grad():
        compiled = torch.compile(model, backend="aot_eager")(**sample).logits
        torch.testing.assert_close(compiled, model(**sample).logits, atol=1e-5, rtol=1e-5)


def test_embedding_models_load_in_sentence_transformers(batches, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    small = optin.prune(build("bert", "Model"), batches, "60%", recipe=RECIPE)
    small.save(tmp_path / "small", tokenizer())
    loaded = library.SentenceTransformer(str(tmp_path / "small"), trust_remote_code=True, device="cpu")
    got = loaded.encode(["good film"], convert_to_tensor=True)
    encoded = tokenizer()(["good film"], return_tensors="pt")
    with torch.no_grad():
        expected = small.model(**encoded).last_hidden_state.mean(1)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
