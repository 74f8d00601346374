"""What is convenient in Python: presets by name, names that stay or alone may go, tables, the hub."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import datasets
import huggingface_hub
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

import optin
from optin.errors import InputError
from optin.recipe import recipe_of
from optin.support.progress import automatic
from tests.networks import ATTENTION, NEURONS, WORDS, build, tokenizer
from tests.test_pipeline import RECIPE


def test_a_recipe_by_the_name_of_a_preset_or_as_a_dictionary(bert, batches):
    scores = optin.score(bert, batches, recipe={"preset": "beta", "trajectory": {"draws": 8}})
    assert scores.provenance["recipe"] == optin.PRESETS["beta"].override(trajectory__draws=8).to_dict()
    plan = optin.plan(bert, scores, "80%", recipe="beta")
    assert plan.provenance["recipe"]["trajectory"]["balance"] == 0.1
    with pytest.raises(InputError, match="recipe must be .*default, thorough"):
        optin.prune(bert, batches, "80%", recipe="gamma")


@pytest.mark.parametrize("names", [NEURONS[:2], ", ".join(NEURONS[:2])])
def test_only_what_is_named_loses_units(names, bert, batches):
    result = optin.prune(bert, batches, "90%", recipe=RECIPE, only=names)
    assert result.plan.sizes.keys() == set(NEURONS[:2])
    space = result.plan.description
    assert "left out by 'only'" in space.whole[ATTENTION[0].removesuffix(".heads")]
    assert optin.apply(bert, result.plan).plan.keep == result.plan.keep


def test_what_is_excluded_wins_over_what_alone_may_go(bert, batches):
    names = {"only": "bert.encoder.layer.1", "exclude": [NEURONS[1]]}
    (result,) = optin.sweep(bert, batches, ["95%"], recipe=RECIPE, **names)
    assert result.plan.sizes.keys() == {ATTENTION[1]}
    with pytest.raises(InputError, match="no group is of that name"):
        optin.score(bert, batches, recipe=RECIPE, only=["bert.encoder.layer.7"])
    with pytest.raises(InputError, match="everything that could lose units"):
        optin.score(bert, batches, recipe=RECIPE, only=NEURONS[0], exclude=NEURONS[0])


def test_everything_shows_itself_as_a_table(bert, batches):
    scores = optin.score(bert, batches, recipe=RECIPE)
    plan = optin.plan(bert, scores, "60%", recipe=RECIPE)
    result = optin.apply(bert, plan)
    for data, said in (
        (optin.describe(bert), "whole"),
        (optin.inspect(bert), "MACs each"),
        (scores, "cost of half"),
        (plan, "kept"),
        (result, "MACs"),
    ):
        lines = data.summary().splitlines()
        assert lines[0] == repr(data) and said in data.summary() and len(lines) == 3 + len(data.listing().rows)
        assert data._repr_html_().count("<tr>") == 1 + len(data.listing().rows)
    assert f"{plan.kept[NEURONS[0]]}  {plan.sizes[NEURONS[0]]}".replace(" ", "") in plan.summary().replace(" ", "")


@pytest.mark.parametrize("watched", [True, False])
def test_progress_is_shown_where_somebody_looks(watched, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", SimpleNamespace(isatty=lambda: watched, write=sys.stderr.write, flush=int))
    assert list(automatic([1, 2], "stage", 2)) == [1, 2]
    assert ("stage" in capsys.readouterr().err) is watched


def test_a_result_is_uploaded_with_its_card(bert, batches, monkeypatch):
    seen = {}

    class Hub:
        def create_repo(self, repo_id, *, private, exist_ok):
            assert private is True and exist_ok
            return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

        def upload_folder(self, *, folder_path, repo_id, commit_message):
            seen[repo_id] = {file.name for file in folder_path.iterdir()}

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    result = optin.apply(bert, optin.plan(bert, optin.score(bert, batches, recipe=RECIPE), "60%", recipe=RECIPE))
    assert result.push_to_hub("somebody/small", private=True).endswith("somebody/small")
    assert seen["somebody/small"] >= {"config.json", "model.safetensors", "README.md", "plan.json", "report.html"}


TEXTS = [f"{WORDS[0]} {WORDS[1]} " * (1 + place % 5) for place in range(12)]


@pytest.mark.filterwarnings("ignore:the data has")
def test_texts_with_a_tokenizer(bert):
    with pytest.warns(UserWarning, match="the data has 12 examples"):
        result = optin.prune(bert, TEXTS, "80%", tokenizer=tokenizer(), batch_size=4, recipe=RECIPE)
    assert result.plan.pruned.macs <= 0.8 * result.plan.dense.macs
    assert result.plan.provenance["data"]["examples"] == 12
    batches = optin.batches_of(bert, [(text, WORDS[2]) for text in TEXTS], tokenizer=tokenizer(), examples=8)
    assert sum(len(batch["input_ids"]) for batch in batches) == 8
    with pytest.raises(InputError, match=r"pass what prepares them \(tokenizer="):
        optin.prune(bert, TEXTS, "80%", recipe=RECIPE)
    with pytest.raises(InputError, match="3 is none: pass a list of texts"):
        optin.batches_of(bert, ["a", 3], tokenizer=tokenizer())
    with pytest.raises(InputError, match="and not both"):
        optin.batches_of(bert, TEXTS)


@pytest.mark.filterwarnings("ignore:the data has")
def test_a_data_set_of_texts_or_of_encoded_texts(bert):
    rows = datasets.Dataset.from_dict({"title": ["x"] * 12, "sentence": TEXTS, "label": [0, 1] * 6})
    plain = optin.batches_of(bert, rows, tokenizer=tokenizer(), batch_size=12)
    encoded = rows.map(lambda row: tokenizer()(row["sentence"]))
    padded = optin.batches_of(bert, encoded, tokenizer=tokenizer(), batch_size=12)
    assert plain[0].keys() == padded[0].keys()
    assert all(torch.equal(plain[0][name].sort(0).values, padded[0][name].sort(0).values) for name in plain[0])
    with pytest.raises(InputError, match="several columns hold texts .title, words.*dataset"):
        optin.batches_of(bert, rows.rename_column("sentence", "words"), tokenizer=tokenizer())
    with pytest.raises(InputError, match="no column of label holds texts"):
        optin.batches_of(bert, rows.select_columns("label"), tokenizer=tokenizer())
    with pytest.raises(InputError, match="several data sets .train."):
        optin.batches_of(bert, datasets.DatasetDict(train=rows), tokenizer=tokenizer())


@pytest.mark.filterwarnings("ignore:the data has")
def test_images_with_a_processor():
    network = build("vit")
    side = network.config.image_size
    processor = transformers.ViTImageProcessor(size={"height": side, "width": side})
    images = [Image.new("L", (20, 30), place) for place in range(6)]
    for data in (images, [np.array(image.convert("RGB")) for image in images]):
        batches = optin.batches_of(network, data, processor=processor, batch_size=4)
        assert [len(batch["pixel_values"]) for batch in batches] == [4, 2]
    with pytest.raises(InputError, match="prepares images, and 'a' is none"):
        optin.batches_of(network, ["a", "b"], processor=processor)


def test_a_network_by_its_folder(bert, batches, tmp_path):
    bert.save_pretrained(tmp_path / "dense")
    result = optin.prune(tmp_path / "dense", batches, "80%", recipe=RECIPE)
    assert result.plan.keep == optin.prune(bert, batches, "80%", recipe=RECIPE).plan.keep


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("hello", "list of texts"),
        ([], "at least 2"),
        (["a film", None, "b"], "None is none"),
        (["a film"], "at least 2"),
    ],
)
def test_texts_that_are_none(bert, texts, message):
    with pytest.raises(InputError, match=message):
        optin.batches_of(bert, texts, tokenizer=tokenizer())


def test_names_in_the_place_of_what_they_name(bert):
    with pytest.raises(InputError, match="that is loaded"):
        optin.batches_of(bert, ["a film", "a plot"], tokenizer="bert")
    for wrong in (3, [3], [None]):
        with pytest.raises(InputError, match="must be names"):
            recipe_of(None, exclude=wrong)
