from __future__ import annotations

import gzip
import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

import optin
from optin.app import cli
from optin.app.benchmark import compare_speed
from optin.app.commands import run_evaluate, run_prune
from optin.app.placement import Placement
from optin.errors import DependencyError, InputError
from optin.recipe import Recipe
from optin.space.options import Calibration, Task
from optin.tasks import load_images, load_processor, task_spec
from optin.tasks.images import Unreadable
from optin.tasks.loading import load_model
from optin.tasks.vision import Both, ZeroShot, calibration_batches, class_indices, evaluate
from tests.networks import build, inputs, tokenizer

RECIPE = Recipe().override(trajectory__draws=8)

SPEC = task_spec("image-classification")


def processor():
    return ViTImageProcessorPil(size={"height": 16, "width": 16})


def pixels(seed: int, shape=(20, 18, 3)):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def tree(tmp_path):
    """Three classes of four images, one of them greyscale, one with transparency, one damaged."""
    tmp_path = tmp_path / "tree"  # results lie beside what they are made of, never in it
    for label, name in enumerate(("ant", "bee", "cat")):
        folder = tmp_path / "train" / name
        folder.mkdir(parents=True)
        for index in range(4):
            Image.fromarray(pixels(10 * label + index)).save(folder / f"{index}.png")
    Image.fromarray(pixels(1, (9, 9))).save(tmp_path / "train" / "ant" / "0.png")
    Image.fromarray(pixels(2, (1, 1, 4))).save(tmp_path / "train" / "bee" / "0.png")
    (tmp_path / "train" / "cat" / "0.png").write_bytes(b"no image")
    return tmp_path


def read(folder, part="calibration", labelled=True, **options):
    return load_images(SPEC, Task("image-classification", str(folder), **options), part, labelled=labelled)


def test_a_tree_of_class_folders(tree):
    images = read(tree)
    assert len(images) == 12 and images.classes == ("ant", "bee", "cat")
    assert images.labels == [0] * 4 + [1] * 4 + [2] * 4
    assert images.read(0).mode == images.read(4).mode == "RGB"
    with pytest.raises(Unreadable, match=r"cat.0\.png"):
        images.read(8)
    assert images.select([11, 0]).labels == [2, 0]
    assert len(read(tree / "train")) == 12  # a tree without parts
    (tree / "train" / "dog").mkdir()
    with pytest.raises(InputError, match=r"dog holds no images"):
        read(tree)


def idx(array, *, zipped: bool):
    header = bytes((0, 0, 8, array.ndim)) + b"".join(int(n).to_bytes(4, "big") for n in array.shape)
    data = header + array.tobytes()
    return gzip.compress(data) if zipped else data


@pytest.mark.parametrize("zipped", [True, False])
def test_idx_files(tmp_path, zipped):
    values, labels = pixels(0, (5, 28, 28)), np.array([3, 1, 0, 9, 2], np.uint8)
    end = ".gz" if zipped else ""
    for stem in ("train", "t10k"):
        (tmp_path / f"{stem}-images-idx3-ubyte{end}").write_bytes(idx(values, zipped=zipped))
        (tmp_path / f"{stem}-labels-idx1-ubyte{end}").write_bytes(idx(labels, zipped=zipped))
    images = read(tmp_path)
    assert images.labels == labels.tolist()
    assert np.array_equal(np.asarray(images.read(2))[..., 1], values[2])
    assert len(read(tmp_path, "evaluation")) == 5
    (tmp_path / f"train-labels-idx1-ubyte{end}").write_bytes(idx(labels[:4], zipped=zipped))
    with pytest.raises(InputError, match="4 labels for the 5 images"):
        read(tmp_path)
    (tmp_path / f"train-images-idx3-ubyte{end}").write_bytes(b"damaged")
    with pytest.raises(InputError, match="cannot read"):
        read(tmp_path)


def test_cifar(tmp_path):
    values = pixels(0, (4, 3, 32, 32))
    records = np.concatenate([np.array([[1], [0], [2], [1]], np.uint8), values.reshape(4, -1)], 1)
    for name in ("data_batch_1.bin", "data_batch_2.bin", "test_batch.bin"):
        (tmp_path / name).write_bytes(records.tobytes())
    (tmp_path / "batches.meta.txt").write_text("plane\ncar\nbird\n")
    images = read(tmp_path)
    assert images.labels == [1, 0, 2, 1] * 2 and images.classes == ("plane", "car", "bird")
    assert np.array_equal(np.asarray(images.read(2)), values[2].transpose(1, 2, 0))
    fine = tmp_path / "hundred"
    fine.mkdir()
    (fine / "train.bin").write_bytes(np.concatenate([np.full((4, 1), 7, np.uint8), records], 1).tobytes())
    assert read(fine).labels == [1, 0, 2, 1]
    (tmp_path / "data_batch_1.bin").write_bytes(b"\0" * 100)
    with pytest.raises(InputError, match="not a binary file of CIFAR"):
        read(tmp_path)


def test_parquet(tmp_path):
    import datasets

    rows = {"img": [Image.fromarray(pixels(i)) for i in range(3)], "label": [2, 0, 1]}
    table = datasets.Dataset.from_dict(rows).cast_column("label", datasets.ClassLabel(names=["a", "b", "c"]))
    table.to_parquet(str(tmp_path / "train.parquet"))
    images = read(tmp_path)
    assert images.labels == [2, 0, 1]
    assert np.array_equal(np.asarray(images.read(1)), pixels(1))
    with pytest.raises(InputError, match="no column"):
        read(tmp_path, text="picture")


def test_what_cannot_be_read_is_said_in_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file or folder"):
        read(tmp_path / "missing")
    with pytest.raises(InputError, match="holds no images"):
        read(tmp_path)
    Image.fromarray(pixels(0)).save(tmp_path / "0.png")
    with pytest.raises(InputError, match="have no labels"):
        read(tmp_path)
    assert read(tmp_path, labelled=False).labels is None


def test_calibration_replaces_what_cannot_be_read(tree):
    model, images = build("vit"), read(tree)
    batches = calibration_batches(model, images, processor(), Calibration(examples=11, batch_size=4), seed=0)
    assert sum(len(batch["pixel_values"]) for batch in batches) == 11
    again = calibration_batches(model, images, processor(), Calibration(examples=11, batch_size=4), seed=0)
    assert torch.equal(batches[0]["pixel_values"], again[0]["pixel_values"])
    with pytest.warns(UserWarning, match="only 11 of 12 images can be read; left out are: "):
        few = calibration_batches(model, images, processor(), Calibration(examples=12), seed=0)
    assert sum(len(batch["pixel_values"]) for batch in few) == 11
    with pytest.raises(InputError, match="takes no images"):
        calibration_batches(build("bert"), images, processor(), Calibration(examples=4), seed=0)


def test_evaluation_counts_what_it_skipped(tree):
    model, images = build("vit"), read(tree)
    figures = evaluate(model, processor(), SPEC, images, reference=model, batch_size=5)
    assert figures["skipped"] == 1 and figures["top5"] == 1 and figures["kl"] == pytest.approx(0, abs=1e-6)
    bare = build("vit", "Model")
    spec = task_spec("image-embedding")
    assert evaluate(bare, processor(), spec, images, reference=bare)["cosine"] == pytest.approx(1)
    with pytest.raises(InputError, match="pass it as the reference"):
        evaluate(bare, processor(), spec, images)
    with pytest.raises(InputError, match="3 classes and the model 2"):
        evaluate(build("vit", num_labels=2), processor(), SPEC, images)


def test_images_of_single_pixels_are_images(tmp_path):
    for label, size in (("ant", (1, 1)), ("bee", (1, 3)), ("cat", (3, 40))):
        (tmp_path / "val" / label).mkdir(parents=True)
        Image.new("L", size, 90).save(tmp_path / "val" / label / "0.png")
    assert "skipped" not in evaluate(build("vit"), processor(), SPEC, read(tmp_path, "evaluation"))


@pytest.mark.parametrize("library", ["timm", "torchvision"])
def test_a_torchvision_that_does_not_match_torch(library, tmp_path, monkeypatch):
    (tmp_path / f"{library}.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, library, raising=False)
    with pytest.raises(DependencyError, match=r"\(operator torchvision::nms does not exist\)"):
        load_model(f"{library}:resnet18")


def test_class_names_are_those_of_the_model(tree):
    model = build("vit")
    model.config.label2id = {"cat": 0, "bee": 1, "ant": 2}
    assert class_indices(model, SPEC, read(tree)) == [2] * 4 + [1] * 4 + [0] * 4


def job_recipe(start, source, data, task, budget):
    """A small job on the images of a tree."""
    return start.override(
        model=str(source),
        budget=budget,
        task__name=task,
        task__data=str(data),
        task__evaluation_split="train",
        calibration__examples=8,
        trajectory__rows=16,
        trajectory__draws=4,
    )


def test_the_job_from_a_folder(tree, tmp_path, monkeypatch, capsys):
    """A recipe with tokens, from a checkpoint and a folder of images to a folder; then its evaluation."""
    source = tmp_path / "vit"
    build("vit").save_pretrained(source)
    processor().save_pretrained(source)
    recipe = job_recipe(optin.PRESETS["tau"], source, tree, "image-classification", "60%")
    report = run_prune(recipe, tmp_path / "small", Placement())
    assert report["macs"]["pruned"] <= 0.6 * report["macs"]["dense"]
    assert report["quality"]["pruned"]["skipped"] == 1
    assert json.loads((tmp_path / "small" / "preprocessor_config.json").read_text())
    figures = run_evaluate(str(tmp_path / "small"), recipe, Placement(), str(source))
    assert figures["accuracy"] == pytest.approx(report["quality"]["pruned"]["accuracy"])
    (tree / "val").symlink_to(tree / "train")
    for command in (
        ["inspect", str(tmp_path / "small"), "--json"],
        ["draw", str(tmp_path / "small"), "--data", str(tree), "--json"],
        ["finetune", str(tmp_path / "small"), "--data", str(tree), "--out", str(tmp_path / "tuned"), "--epochs", "1"],
        ["bench", str(source), str(tmp_path / "small"), "--batch", "1", "--quiet"],
    ):
        monkeypatch.setattr(sys, "argv", ["optin", *command])
        with pytest.raises(SystemExit) as end:
            cli.main()
        assert not end.value.code, capsys.readouterr().err
    assert (tmp_path / "small" / "kept.svg").exists() and (tmp_path / "tuned" / "config.json").exists()


def test_a_timm_model_from_a_folder(tree, tmp_path):
    model = build("timm-vit")
    batches = [{"x": torch.randn(4, 3, 16, 16)} for _ in range(2)]
    optin.prune(model, batches, "60%", recipe=RECIPE).save(tmp_path / "small")
    recipe = optin.Recipe().override(
        task__name="image-classification", task__data=str(tree), task__evaluation_split="train"
    )
    assert run_evaluate(str(tmp_path / "small"), recipe, Placement())["skipped"] == 1
    assert load_processor(str(tmp_path / "small")).crop_size["height"] == 16
    with pytest.raises(InputError, match="unknown timm model 'vit_nothing'"):
        load_model("timm:vit_nothing")


def test_an_image_size_that_the_model_does_not_accept():
    with pytest.raises(InputError, match=r"pixel_values \(2, 3, 20, 20\)"):
        optin.prune(build("vit"), [{"pixel_values": torch.randn(4, 3, 20, 20)}], "50%", recipe=RECIPE)


def test_zero_shot(tree, tmp_path):
    """Classes by their names: the vision tower is pruned, the text tower stays as it is."""
    source, model = tmp_path / "clip", build("clip", "Model")
    model.save_pretrained(source)
    processor().save_pretrained(source)
    tokenizer().save_pretrained(source)
    recipe = job_recipe(optin.Recipe(), source, tree, "zero-shot-image-classification", "95%")
    report = run_prune(recipe, tmp_path / "small", Placement())
    assert report["quality"]["pruned"]["kl"] >= 0 and report["quality"]["pruned"]["top5"] == 1
    small = optin.load(tmp_path / "small")
    for name, value in small.text_model.state_dict().items():
        assert torch.equal(value, model.text_model.state_dict()[name])
    prompts = Both(processor(), tokenizer()).prompts(["ant", "bee"])
    picture = {"pixel_values": torch.randn(2, 3, 16, 16)}
    with torch.inference_mode():
        expected = model(**picture, **prompts).logits_per_image
        torch.testing.assert_close(ZeroShot(model, prompts)(**picture), expected)


def test_names_of_different_lengths():
    """The padding of texts says nothing about the tokens of images."""
    model = build("clip", "Model")
    batch = inputs(model, batch=8)
    assert batch["attention_mask"].sum(1).unique().numel() == 2
    result = optin.prune(model, [batch], "95%", recipe=RECIPE)
    assert result.plan.pruned.macs <= 0.95 * result.plan.dense.macs


def test_networks_are_timed_at_the_size_of_the_plan():
    """DINOv2 takes any size, and is often used at another than its configuration names."""
    model = build("dinov2")
    result = optin.prune(model, [{"pixel_values": torch.randn(4, 3, 24, 32)}], "60%", recipe=RECIPE)
    assert model.config.image_size != 24
    (speed,) = compare_speed(model, result.model, batch=1, rounds=1)
    assert speed.length == 24
    assert speed.ideal == pytest.approx(result.plan.dense.macs / result.plan.pruned.macs)
    (speed,) = compare_speed(model, model, batch=1, rounds=1)
    assert speed.length == model.config.image_size


def test_networks_with_other_inputs_are_not_timed_together():
    with pytest.raises(InputError, match="the second network takes no 'input_ids'"):
        compare_speed(build("bert"), build("vit"), lengths=[9], rounds=1)
