from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessorPil

import optin
from optin.app.finetune import finetune, follow
from optin.errors import InputError, NumericalError
from optin.recipe import Recipe
from optin.running.merging import merging_of
from optin.space.options import Training
from optin.space.plans import Plan
from optin.tasks import Images, load_model
from optin.tasks.images import Unreadable
from tests.networks import build, inputs
from tests.test_images import processor

RECIPE = Recipe().override(trajectory__rows=12, trajectory__draws=4, tokens__merge="constant")


def bright_and_dark(count: int, seed: int) -> Images:
    """Two classes that a glance tells apart."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, count).tolist()
    pixels = [generator.integers(0, 60, (16, 16, 3)) + 190 * label for label in labels]
    return Images(lambda index: Image.fromarray(pixels[index].astype(np.uint8)), count, labels, ("dark", "bright"))


@pytest.fixture
def pruned():
    model = build("vit")
    return optin.prune(model, [inputs(model, seed=seed) for seed in range(2)], "80%", recipe=RECIPE).model


@pytest.mark.parametrize("head_only", [True, False])
def test_a_pruned_network_learns_another_data_set(pruned, tmp_path, head_only):
    before = {name: value.clone() for name, value in pruned.state_dict().items()}
    options = Training(epochs=4, batch_size=8, learning_rate=5e-3, head_only=head_only)
    out = tmp_path / "tuned"
    figures = finetune(pruned, processor(), bright_and_dark(64, 0), bright_and_dark(32, 1), out, options)
    assert figures["accuracy"] > 0.9 and figures["classes"] == 2
    loaded = optin.load(out)
    assert loaded.config.id2label == {0: "dark", 1: "bright"}
    assert merging_of(loaded).schedule == merging_of(pruned).schedule
    assert Plan.from_dict(loaded.config.optin).kept == Plan.from_dict(pruned.config.optin).kept
    encoder = {name: value for name, value in loaded.state_dict().items() if not name.startswith("classifier")}
    changed = [name for name, value in encoder.items() if not torch.equal(value, before[name])]
    assert bool(changed) != head_only


def test_a_dense_network_and_a_teacher(tmp_path):
    data = bright_and_dark(32, 0), bright_and_dark(16, 1)
    options = Training(epochs=4, batch_size=8, learning_rate=5e-3)
    finetune(build("vit"), processor(), *data, tmp_path / "dense", options)
    teacher = load_model(str(tmp_path / "dense"))
    figures = finetune(build("deit"), processor(), *data, tmp_path / "student", options, teacher=teacher)
    assert figures["accuracy"] > 0.8
    with pytest.raises(InputError, match="teacher must know the 2 classes"):
        finetune(build("vit"), processor(), *data, tmp_path / "none", options, teacher=build("vit"))
    with pytest.raises(InputError, match="no linear 'classifier'"):
        finetune(build("vit", "Model"), processor(), *data, tmp_path / "none", options)


def tuned(tmp_path, *, train=None, held_out=None, model=None, **options):
    train = bright_and_dark(16, 0) if train is None else train
    held_out = bright_and_dark(8, 1) if held_out is None else held_out
    return finetune(model or build("vit"), processor(), train, held_out, tmp_path / "tuned", Training(**options))


@pytest.mark.parametrize("pruned_before", [True, False])
def test_a_training_that_diverges_writes_nothing(pruned_before, pruned, tmp_path):
    model = pruned if pruned_before else build("vit")
    with torch.no_grad():  # finite weights whose forward is not
        for name, parameter in model.named_parameters():
            if "attention" in name and name.endswith("weight"):
                parameter.fill_(1e25)
    with pytest.raises(NumericalError, match="diverged .* smaller --learning-rate"):
        tuned(tmp_path, model=model, learning_rate=1.0, epochs=2, batch_size=8)
    assert list(tmp_path.iterdir()) == []


NEVER = (0, -1, float("nan"))
ENDLESS = (1e300, float("inf"), 1e5)
OPTIONS = [(name, value) for name in ("epochs", "learning_rate", "batch_size", "temperature") for value in NEVER]
OPTIONS += [(name, value) for name in ("epochs", "learning_rate") for value in ENDLESS]


@pytest.mark.parametrize(("option", "value"), OPTIONS)
def test_options_that_no_training_survives(option, value, tmp_path):
    with pytest.raises(InputError, match=option.replace("_", "[_ ]")):
        tuned(tmp_path, **{option: value})
    assert list(tmp_path.iterdir()) == []


def test_a_batch_beyond_the_data(tmp_path):
    assert tuned(tmp_path, batch_size=10**6, epochs=1)["images"] == 16


@pytest.mark.parametrize(
    ("labels", "classes", "message"),
    [
        (None, (), "needs labels"),
        ([0, -1], (), "row 2"),
        ([0, 0.5], (), "row 2"),
        ([0, None], (), "row 2"),
        ([0, 1], ("dark", "grey"), "'grey' is evaluated"),
        ([], (), "none of the 0 images"),
    ],
)
def test_data_that_cannot_be_trained_on(labels, classes, message, tmp_path):
    whole = bright_and_dark(2, 0)
    part = Images(whole.read, 2 if labels is None else len(labels), labels, classes)
    with pytest.raises(InputError, match=message):
        tuned(tmp_path, held_out=part)
    if not classes:
        with pytest.raises(InputError, match=message):
            tuned(tmp_path, train=part)


def test_one_class_and_images_that_cannot_be_read(tmp_path):
    whole = bright_and_dark(2, 0)
    one = Images(whole.read, 2, [0, 0])
    with pytest.raises(InputError, match="a classifier needs two"):
        tuned(tmp_path, train=one, held_out=one)

    def unreadable(index):
        raise Unreadable("broken.png: no image")

    with pytest.raises(InputError, match=r"none of the 2 images can be read: broken\.png"):
        tuned(tmp_path, held_out=Images(unreadable, 2, [0, 1]))


def test_a_processor_of_another_size(tmp_path):
    with pytest.raises(InputError, match=r"does not take what is prepared for it \(pixel_values \(1, 3, 20, 20\)\)"):
        other = ViTImageProcessorPil(size={"height": 20, "width": 20})
        finetune(build("vit"), other, bright_and_dark(4, 0), bright_and_dark(4, 1), tmp_path / "tuned")


def test_an_accuracy_of_the_images_trained_on_is_called_so(tmp_path):
    whole = dataclasses.replace(bright_and_dark(16, 0), origin="one folder")
    assert "trained on" in tuned(tmp_path, train=whole, held_out=whole, epochs=1)["seen"]
    assert "seen" not in tuned(tmp_path / "two", epochs=1)


def test_following_a_teacher_by_hand():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * float((p * (p / q).log()).sum(-1).mean())
    assert float(follow(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(follow(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
