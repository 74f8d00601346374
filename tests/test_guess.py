"""What a network and a file say by themselves: the task, the preset, the columns."""

from __future__ import annotations

import json

import pytest

import optin
from optin.errors import CheckpointError, InputError
from optin.space.options import Task
from optin.tasks import TASKS, load_examples, task_spec
from optin.tasks.guess import guessed_preset, guessed_task
from tests.networks import build
from tests.test_cli import run, workspace
from tests.test_images import processor, tree

__all__ = ["run", "tree", "workspace"]  # fixtures


@pytest.mark.parametrize(
    ("config", "task"),
    [
        ({"architectures": ["BertForSequenceClassification"]}, "text-classification"),
        ({"architectures": ["BertForSequenceClassification"], "id2label": {"0": "x"}}, "text-regression"),
        ({"architectures": ["BertForSequenceClassification"], "problem_type": "regression"}, "text-regression"),
        ({"architectures": ["RobertaForTokenClassification"]}, "token-classification"),
        ({"architectures": ["ViTForImageClassification"]}, "image-classification"),
        ({"architecture": "resnet50"}, "image-classification"),
        ({"architectures": ["SegformerForSemanticSegmentation"]}, "semantic-segmentation"),
        ({"architectures": ["Mask2FormerForUniversalSegmentation"]}, "semantic-segmentation"),
        ({"architectures": ["CLIPModel"], "text_config": {}, "vision_config": {}}, "zero-shot-image-classification"),
        ({"architectures": ["Dinov2Model"], "image_size": 224}, "image-embedding"),
        ({"architectures": ["BertModel"]}, "sentence-embedding"),
        ({"architectures": ["GPT2LMHeadModel"]}, "language-modelling"),
        ({"architectures": ["LlamaForCausalLM"]}, "language-modelling"),
        ({"architectures": ["T5ForConditionalGeneration"]}, None),
        ({"architectures": None}, None),
        ({"architectures": [3]}, None),
        ([], None),
    ],
)
def test_the_task_of_a_checkpoint(config, task, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert guessed_task(str(tmp_path)) == task
    assert task is None or task in TASKS


def test_where_nothing_is_said(tmp_path):
    assert guessed_task(str(tmp_path)) is None
    for source in ("no/such-model", str(tmp_path / "none")):
        with pytest.raises(InputError, match="no such folder"):
            guessed_task(source)
    (tmp_path / "config.json").write_text('{"architectures": 3}')
    assert guessed_task(str(tmp_path)) is None
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(CheckpointError):
        guessed_task(str(tmp_path))
    assert guessed_task("timm:vit_tiny_patch16_224") == "image-classification"
    assert {guessed_preset(task) for task in ("sst2", "sentence-embedding", "no such task")} == {"default"}
    assert (guessed_preset("imagenet-1k"), guessed_preset("cityscapes")) == ("beta", "segmentation")


def test_the_command_line_says_what_it_took(run, tree, tmp_path):
    build("vit").save_pretrained(tmp_path / "vit")
    processor().save_pretrained(tmp_path / "vit")
    data = ("--data", tree, "--examples", 8, "--no-evaluate")
    common = ("prune", tmp_path / "vit", *data, "--budget", "60%", "--out", tmp_path / "small")
    code, _, said = run(*common)
    assert code == 0 and "as the network says: --task image-classification --preset beta" in said
    stored = optin.Recipe.load(tmp_path / "small" / "recipe.yaml")
    assert stored.trajectory == optin.PRESETS["beta"].trajectory and stored.task.name == "image-classification"
    _, _, said = run(*common[:-2], "--dry-run", "--task", "image-classification", "--preset", "default")
    assert "as the network says" not in said


def test_columns_by_the_names_that_others_use(tmp_path):
    file = tmp_path / "a.csv"

    def read():
        return load_examples(task_spec("text-classification"), Task(data=str(file)), "evaluation", labelled=True)

    file.write_text("Review,stars,id\nfine,1,7\nbad,0,8\n")
    with pytest.warns(UserWarning, match="is read from the column") as said:
        found = read()
    assert [str(one.message) for one in said] == [
        "'text' is read from the column 'Review'; --text COLUMN says another.",
        "'label' is read from the column 'stars'; --label COLUMN says another.",
    ]
    assert found.texts == ["fine", "bad"] and [int(str(label)) for label in found.labels] == [1, 0]
    file.write_text("review,comment,label\nfine,so so,1\nbad,no,0\n")
    with pytest.raises(InputError, match="unknown column 'text'"):
        read()


def test_a_network_that_is_not_there_is_said_before_its_data_are_read(run, workspace, tmp_path):
    code, _, error = run("prune", tmp_path / "none", "--budget", "50%", "--data", workspace)
    assert code == 2 and "no such folder" in error


def test_shares_of_a_task_that_has_none(run, workspace, tmp_path):
    command = ("prune", workspace / "dense", "--budget", "50%", "--data", workspace, "--out", tmp_path / "small")
    code, _, error = run(*command, "--share", 1)
    assert code == 2 and "no --share" in error
