from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

import optin
from optin.errors import InputError
from optin.finetune import finetune, follow
from optin.merging import merging_of
from optin.plans import Plan
from optin.recipe import Recipe, Training
from optin.tasks import Images, load_model
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


def test_following_a_teacher_by_hand():
    student, teacher = torch.randn(3, 4), torch.randn(3, 4)
    p, q = (teacher / 2).softmax(-1), (student / 2).softmax(-1)
    expected = 4 * float((p * (p / q).log()).sum(-1).mean())
    assert float(follow(student, teacher, 2.0)) == pytest.approx(expected, rel=1e-5)
    assert float(follow(teacher, teacher, 2.0)) == pytest.approx(0, abs=1e-6)
