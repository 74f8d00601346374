"""What keeps a network from being evaluated, and a tokenizer from being its own, is found before any scoring."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from rich.console import Console
from torch import nn

import optin
from optin.app import cli, tables
from optin.app.commands import run_evaluate, run_prune, run_sweep
from optin.app.placement import Job, Placement
from optin.errors import DependencyError, InputError
from optin.recipe import Recipe
from optin.space.options import Calibration
from optin.storage.report import warnings
from optin.tasks import (
    Examples,
    Images,
    check_evaluation,
    check_pooling,
    held_out,
    load_model,
    load_preprocessor,
    load_tokenizer,
    metrics,
    task_spec,
    vision,
)
from optin.tasks.held_out import LEAST
from optin.tasks.images import Unreadable
from optin.tasks.specs import CLASSES, SENTENCES, TAGS
from tests.networks import WORDS, build, tokenizer
from tests.test_images import processor
from tests.test_segmentation import Painter
from tests.test_segmentation import processor as painting

ROWS = Examples(["the film", "a plot", "good"], None, [0, 1, 1])
TAGGED = Examples([["the", "film"], ["good"]], None, [[0, 1], [1]])
EMBEDDED = Examples(["the film", "a plot"])


def pictures(labels=(0, 1, 2), classes=()):
    image = Image.fromarray(np.full((20, 18, 3), 90, np.uint8))
    return Images(lambda index: image, len(labels), list(labels), classes)


def bert(head, **changes):
    return lambda: build("bert", head, **changes)


def vit(head, **changes):
    return lambda: build("vit", head, **changes)


MISFITS = {
    "several outputs for a regression": (bert("SequenceClassification"), "text-regression", ROWS, "3 outputs"),
    "one output for classes": (
        bert("SequenceClassification", num_labels=1),
        "text-classification",
        ROWS,
        "one output",
    ),
    "tags for texts": (bert("TokenClassification"), "text-classification", ROWS, "no one row of logits per text"),
    "texts for tags": (bert("SequenceClassification"), "token-classification", TAGGED, "per token"),
    "bare for texts": (bert("Model"), "text-classification", ROWS, "no one row of logits"),
    "questions for texts": (bert("QuestionAnswering"), "text-classification", ROWS, "no one row of logits"),
    "masked words for texts": (bert("MaskedLM"), "text-classification", ROWS, "no one row of logits"),
    "classifier for embeddings": (bert("SequenceClassification"), "sentence-embedding", EMBEDDED, "no hidden states"),
    "texts for images": (bert("SequenceClassification"), "image-classification", pictures(), "takes no images"),
    "images for texts": (vit("ImageClassification"), "text-classification", ROWS, "takes no texts"),
    "bare for images": (vit("Model"), "image-classification", pictures(), "no one row of logits per image"),
    "classifier for pixels": (vit("ImageClassification"), "semantic-segmentation", pictures(), "per pixel"),
    "one tower": (vit("Model"), "zero-shot-image-classification", pictures(), "no towers"),
    "three outputs for two classes": (bert("SequenceClassification"), "mrpc", ROWS, "the task has 2 classes"),
    "label too large": (
        bert("SequenceClassification"),
        "text-classification",
        Examples(["film", "plot"], None, [0, 3]),
        "row 2 is outside",
    ),
    "no labels": (bert("SequenceClassification"), "text-classification", EMBEDDED, "needs a label column"),
    "no examples": (bert("SequenceClassification"), "text-classification", Examples([]), "no examples"),
    "one value": (
        bert("SequenceClassification", num_labels=1),
        "text-regression",
        Examples(["film", "plot"], None, [1, 1.0]),
        "different labels",
    ),
    "one embedding": (bert("Model"), "sentence-embedding", Examples(["film"]), "two examples"),
    "too many classes": (vit("ImageClassification"), "image-classification", pictures((0, 3)), "4 classes"),
    "negative class": (vit("ImageClassification"), "image-classification", pictures((0, -1)), "row 2"),
}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("name", MISFITS)
def test_what_does_not_fit_is_said(name, prepared):
    make, task, examples, message = MISFITS[name]
    spec = task_spec(task)
    preprocessor = (processor() if spec.kind.of_images else tokenizer()) if prepared else None
    with pytest.raises(InputError, match=message) as caught:
        check_evaluation(make(), spec, examples, preprocessor)
    assert "\n" not in str(caught.value)


FITS = {
    "text-classification": (bert("SequenceClassification"), ROWS),
    "text-regression": (bert("SequenceClassification", num_labels=1), ROWS),
    "token-classification": (bert("TokenClassification"), TAGGED),
    "sentence-embedding": (bert("Model"), EMBEDDED),
    "image-classification": (vit("ImageClassification"), pictures()),
    "image-embedding": (vit("Model"), pictures()),
    "mnist": (lambda: build("timm-vit"), pictures()),
    "zero-shot-image-classification": (lambda: build("clip", "Model"), pictures(classes=("ant", "bee", "cat"))),
}


@pytest.mark.parametrize("prepared", [True, False])
@pytest.mark.parametrize("task", FITS)
def test_what_fits_passes(task, prepared):
    make, examples = FITS[task]
    spec = task_spec(task)
    check_evaluation(
        make(), spec, examples, (processor() if spec.kind.of_images else tokenizer()) if prepared else None
    )


@pytest.mark.parametrize("size", [15, 17, 32])
def test_an_image_processor_of_another_network(size):
    other = transformers.ViTImageProcessorPil(size={"height": size, "width": size})
    with pytest.raises(InputError, match=rf"\(1, 3, {size}, {size}\)"):
        check_evaluation(build("vit"), task_spec("image-classification"), pictures(), other)


def test_an_image_processor_of_other_channels():
    with pytest.raises(InputError, match=r"does not take what is prepared for it \(pixel_values \(1, 3, 16, 16\)\)"):
        check_evaluation(build("vit", num_channels=1), task_spec("image-classification"), pictures(), processor())


def test_masks_are_looked_at_before(tmp_path):
    for part, values in (("images", np.zeros((64, 72, 3))), ("masks", np.full((64, 72), 7))):
        (tmp_path / part).mkdir()
        Image.fromarray(values.astype(np.uint8)).save(tmp_path / part / "0.png")
    spec = task_spec("semantic-segmentation")
    scenes = optin.tasks.load_scenes(spec, optin.space.options.Task(data=str(tmp_path)), "evaluation", labelled=True)
    with pytest.raises(InputError, match="class 7 and the model 3"):
        check_evaluation(Painter(), spec, scenes, painting())
    Image.fromarray(np.zeros((10, 10), np.uint8)).save(tmp_path / "masks" / "0.png")
    with pytest.raises(InputError, match="its mask 10 x 10"):
        check_evaluation(Painter(), spec, scenes, painting())


def test_names_that_the_network_knows_in_part():
    """Neither names nor numbers could be relied on."""
    model = build("vit", label2id={"ant": 0, "bee": 1, "cat": 2}, id2label={0: "ant", 1: "bee", 2: "cat"})
    check_evaluation(model, task_spec("image-classification"), pictures(classes=("Bee", "ant", "cat")))
    with pytest.raises(InputError, match="class 'dog' is none of the model's"):
        check_evaluation(model, task_spec("image-classification"), pictures(classes=("ant", "bee", "dog")))


def test_names_that_differ_in_large_letters_alone():
    model = build("bert", label2id={"A": 0, "a": 1, "b": 2}, id2label={0: "A", 1: "a", 2: "b"})
    found = optin.tasks.text.class_indices(
        model, task_spec("text-classification"), Examples(["film"] * 4, None, ["a", "A", "B", "b"])
    )
    assert found == [1, 0, 2, 2]
    vars(model.config)["label2id"] = ["a"]  # as a file may have it; the library checks what is set
    with pytest.raises(InputError, match="label2id"):
        check_evaluation(model, task_spec("text-classification"), ROWS)


def test_a_package_that_is_missing(monkeypatch):
    def absent():
        raise DependencyError("metrics need torchmetrics")

    monkeypatch.setattr(metrics, "_functional", absent)
    with pytest.raises(DependencyError, match="torchmetrics"):
        check_evaluation(build("bert"), task_spec("text-classification"), ROWS)


@pytest.fixture
def workspace(tmp_path):
    """A classifier with its tokenizer, and a file of 160 texts that serves for both parts."""
    build("bert", num_labels=2).save_pretrained(tmp_path / "dense")
    tokenizer().save_pretrained(tmp_path / "dense")
    write(tmp_path / "data.csv", 160)
    return tmp_path


def write(path, count, texts=lambda index: f"{WORDS[index % 10]} {WORDS[index // 10 % 10]} film"):
    path.write_text("text,label\n" + "".join(f"{texts(index)},{index % 2}\n" for index in range(count)))


def recipe(workspace, examples=32, **changes):
    return Recipe().override(
        model=str(workspace / "dense"),
        budget="70%",
        criterion="magnitude",
        refit__enabled=False,
        task__data=str(workspace / "data.csv"),
        calibration__examples=examples,
        **changes,
    )


def test_calibration_is_kept_out_of_the_evaluation(workspace):
    job = Job.of(recipe(workspace), Placement(), True)
    assert job.overlap == {"left_out": 32} and len(job.evaluation) == 128
    again = Job.of(recipe(workspace), Placement(), True)
    assert again.evaluation == job.evaluation
    other = Job.of(recipe(workspace, seed=1), Placement(), True)
    assert other.evaluation != job.evaluation
    every = Job.of(recipe(workspace, 160 - LEAST + 1), Placement(), True)
    assert every.overlap == {"seen": 61} and len(every.evaluation) == 160


@pytest.mark.parametrize(("examples", "said"), [(32, "32 examples that calibration saw were not"), (80, "saw 80 of")])
def test_table_and_report_say_what_calibration_saw(workspace, examples, said):
    report = run_prune(recipe(workspace, examples), workspace / "small", Placement())
    console = Console(width=200)
    with console.capture() as printed:
        console.print(tables.pruning(report))
    assert said in printed.get() and any(said in line for line in warnings(report))
    assert said in (workspace / "small" / "report.html").read_text()
    found = run_sweep(recipe(workspace, examples), ["90%"], workspace / "sweep", Placement())
    with console.capture() as printed:
        console.print(tables.sweep(found))
    assert said in printed.get()


def test_images_that_calibration_drew_are_kept_apart():
    """Those that took the place of others, which could not be read, among them."""
    whole = pictures([index % 3 for index in range(150)])

    def read(index):
        if index % 5 == 0:
            raise Unreadable("broken")
        return whole.read(index)

    images = Images(read, 150, whole.labels, origin="one folder")
    options = Calibration(examples=40, batch_size=16)
    batches, drawn = vision.drawn_batches(build("vit"), images, processor(), options, 0)
    assert len(set(drawn)) == 40 == sum(len(batch["pixel_values"]) for batch in batches)
    rest, said = held_out(images, drawn, images)
    assert said == {"left_out": 40} and rest.labels == [i % 3 for i in range(150) if i not in set(drawn)]
    assert held_out(images, drawn, Images(read, 150, whole.labels)) == (Images(read, 150, whole.labels), {})


def test_an_evaluation_says_how_many_calibration_saw(workspace):
    run_prune(recipe(workspace), workspace / "small", Placement(), quality=False)
    assert (
        run_evaluate(str(workspace / "small"), recipe(workspace), Placement())["drawn from it by calibration"] == 32
    )
    write(workspace / "other.csv", 160)
    other = recipe(workspace).override(task__data=str(workspace / "other.csv"))
    assert "drawn from it by calibration" not in run_evaluate(str(workspace / "small"), other, Placement())
    assert "drawn from it by calibration" not in run_evaluate(
        str(workspace / "dense"), recipe(workspace), Placement()
    )


def test_two_files_have_nothing_in_common(workspace):
    (workspace / "both").mkdir()
    write(workspace / "both" / "train.csv", 160)
    write(workspace / "both" / "validation.csv", 160)
    job = Job.of(recipe(workspace).override(task__data=str(workspace / "both")), Placement(), True)
    assert job.overlap == {} and len(job.evaluation) == 160


def test_an_evaluation_that_cannot_be_is_refused_before_scoring(workspace, monkeypatch):
    def scored(*_, **__):
        raise AssertionError("scored")

    monkeypatch.setattr("optin.app.kept.score", scored)
    wrong = recipe(workspace)
    for changes, message in (
        ({"task__label": "lable"}, "unknown column 'lable'"),
        ({"task__name": "text-regression"}, "2 outputs, and a regression one|num_labels"),
        ({"task__name": "image-classification"}, "cannot load|takes no images|expected a folder"),
    ):
        with pytest.raises(InputError, match=message):
            run_prune(wrong.override(**changes), workspace / "small", Placement())
    (workspace / "half").mkdir()
    write(workspace / "half" / "train.csv", 160)
    with pytest.raises(InputError, match="no file for the part 'validation'"):
        run_prune(wrong.override(task__data=str(workspace / "half")), workspace / "small", Placement())
    with pytest.raises(AssertionError, match="scored"):
        run_prune(wrong.override(task__data=str(workspace / "half")), workspace / "small", Placement(), quality=False)


def test_a_folder_without_a_tokenizer(workspace):
    build("bert", num_labels=2).save_pretrained(workspace / "bare")
    with pytest.raises(InputError, match=r"bare holds no tokenizer \(.*tokenizer\.json"):
        Job.of(recipe(workspace).override(model=str(workspace / "bare")), Placement())
    # Its configuration alone names a class and no words.
    (workspace / "bare" / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    with pytest.raises(InputError, match="holds no tokenizer"):
        load_tokenizer(str(workspace / "bare"))


@pytest.mark.parametrize(
    ("rows", "message"), [(10, "15 tokens and the network 10"), (120, "11 tokens beside"), (110, None), (15, None)]
)
def test_a_vocabulary_must_fit(rows, message, workspace):
    model = build("bert", vocab_size=rows)
    load = lambda: load_preprocessor(str(workspace / "dense"), task_spec("text-classification"), model)  # noqa: E731
    if message is None:
        assert load().get_vocab()
    else:
        with pytest.raises(InputError, match=message):
            load()


def test_a_tokenizer_that_does_not_know_the_words(workspace):
    write(workspace / "data.csv", 160, lambda index: "le film est un peu long" if index % 2 else "good film")
    with pytest.raises(InputError, match="does not know"):
        Job.of(recipe(workspace), Placement())
    with pytest.raises(InputError, match="does not know"):
        run_evaluate(str(workspace / "dense"), recipe(workspace), Placement())
    write(workspace / "data.csv", 160, lambda index: "the plot is a long film")  # one word of six
    assert Job.of(recipe(workspace), Placement()).batches


@pytest.mark.parametrize(
    ("saved", "kind", "missing"),
    [
        ("Model", CLASSES, "classifier"),
        ("Model", TAGS, "classifier"),
        ("MaskedLM", CLASSES, "classifier"),
        ("TokenClassification", None, None),
        ("MaskedLM", SENTENCES, None),
    ],
)
def test_weights_that_a_checkpoint_lacks_are_not_made_up(saved, kind, missing, tmp_path):
    build("bert", saved).save_pretrained(tmp_path / "dense")
    if missing:
        with pytest.raises(InputError, match=f"no weights for '{missing}"):
            load_model(str(tmp_path / "dense"), kind)
        return
    model = load_model(str(tmp_path / "dense"), kind)
    check_pooling(model, "mean")
    if saved == "MaskedLM":
        with pytest.raises(InputError, match=r"no weights for 'pooler"):
            check_pooling(model, "pooler")


@pytest.mark.parametrize(
    ("name", "message"), [("pytorch_model.bin", "unpickled"), ("model.gguf", "pass the file itself")]
)
def test_weights_of_another_kind(name, message, tmp_path):
    build("bert").config.save_pretrained(tmp_path)
    (tmp_path / name).write_bytes(b"weights")
    with pytest.raises(InputError, match=message):
        load_model(str(tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"num_hidden_layers": "many"},
        {"model_type": []},
        {"hidden_size": -4},
        {"architectures": "Bert"},
        {"id2label": 5},
    ],
    ids=str,
)
def test_odd_configurations_give_one_line(changes, tmp_path):
    build("bert").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | changes))
    with pytest.raises(optin.OptinError) as caught:
        load_model(str(tmp_path))
    assert "\n" not in str(caught.value)


def test_a_home_folder_and_a_long_name(workspace, monkeypatch):
    monkeypatch.setenv("HOME", str(workspace))
    assert isinstance(load_model("~/dense"), nn.Module) and load_tokenizer("~/dense").get_vocab()
    with pytest.raises(InputError, match="no such folder"):
        load_model("a" * 300)
    with torch.no_grad():
        job = Job.of(recipe(workspace).override(model="~/dense", task__data="~/data.csv"), Placement())
    assert len(job.batches) == 1


def test_the_command_line_says_it_too(workspace, monkeypatch, capsys):
    command = ["evaluate", str(workspace / "dense"), "--task", "token-classification", "--data"]
    monkeypatch.setattr("sys.argv", ["optin", *command, str(workspace / "data.csv")])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 2 and "unknown column 'tokens'" in capsys.readouterr().err
