"""Public names say what they do, with an example that runs."""

from __future__ import annotations

import inspect
import shutil
import textwrap

import pytest
import torch

import optin
from tests.networks import WORDS, build, inputs, tokenizer
from tests.test_pipeline import RECIPE

NAMES = [name for name in optin.__all__ if name != "PRESETS" and not name.endswith("Error")]


class MyNetwork(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = torch.nn.Linear(8, 24), torch.nn.Linear(24, 3)

    def forward(self, x):
        return self.other(self.one(x).relu())


def examples(name):
    """The paragraphs of a docstring that are indented."""
    parts = inspect.cleandoc(getattr(optin, name).__doc__).split("\n\n")
    return [textwrap.dedent(part) for part in parts if all(line.startswith("    ") for line in part.splitlines())]


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    """What the examples speak of, and a folder with what they read."""
    folder = tmp_path_factory.mktemp("docs")
    model = build("bert", num_labels=2)
    batches = [inputs(model, seed=seed) for seed in range(3)]
    result = optin.prune(model, batches, "60%", recipe=RECIPE, track=optin.silent)
    scores = optin.score(model, batches, recipe=RECIPE, track=optin.silent)
    own = [{"x": torch.randn(16, 8)} for _ in range(2)]
    result.save(folder / "small")
    optin.prune(MyNetwork(), own, "60%", recipe=RECIPE, track=optin.silent).save(folder / "small-own")
    optin.save_scores(scores, folder / "scores-of-before")
    (folder / "scores-of-before").rename(folder / "scores")
    optin.export(result.model, batches[0], folder / "onnx")
    return folder, {
        "model": model,
        "batches": batches,
        "batch": batches[0],
        "texts": [" ".join(WORDS[start:]) for start in range(16)],
        "tokenizer": tokenizer(),
        "result": result,
        "plan": result.plan,
        "scores": scores,
        "space": optin.describe(model, batches[0]),
        "MyNetwork": MyNetwork,
        "loader": iter(batches),
        "torch": torch,
    }


@pytest.mark.filterwarnings("ignore:the data has:UserWarning")
@pytest.mark.parametrize("name", NAMES)
def test_the_example_runs(name, known, tmp_path, monkeypatch):
    folder, values = known
    found = examples(name)
    assert found, f"{name} has no example"
    for part in found:
        place = tmp_path / str(len(list(tmp_path.iterdir())))
        shutil.copytree(folder, place)
        written = {"save_scores": "scores", "export": "onnx", "Result": "small"}
        if name in written:
            shutil.rmtree(place / written[name])
        monkeypatch.chdir(place)
        exec(part, {"optin": optin, **values})


@pytest.mark.parametrize("name", NAMES)
def test_arguments_are_said(name):
    value = getattr(optin, name)
    if not inspect.isfunction(value) or name in ("silent", "rich_track"):  # a `Track` says them
        return
    documented = inspect.getdoc(value)
    own = [one for one in inspect.signature(value).parameters if one not in ("model", "folder", "options")]
    assert all(one in documented for one in own), [one for one in own if one not in documented]
