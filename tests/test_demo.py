"""The parts of the demo; `make demo` runs the whole."""

from __future__ import annotations

import pytest

from optin.app.demo import HEAD, with_head
from optin.app.demo_data import minilm_folder, package_folder, rotten_tomatoes
from optin.errors import DependencyError
from optin.tasks import Examples, load_tokenizer, task_spec
from optin.tasks.text import evaluate


def test_the_network_of_the_demo_is_good():
    """Its head is tuned: over 80 % of some held-out sentences, and it says neg and pos."""
    model, held_out = with_head(minilm_folder()), rotten_tomatoes()[1].head(128)
    tokenizer = load_tokenizer(str(minilm_folder()))
    found = evaluate(
        model, tokenizer, task_spec("text-classification"), Examples(held_out.texts, None, list(held_out.labels))
    )
    assert found["accuracy"] > 0.8 and model.config.id2label == {0: "neg", 1: "pos"}
    assert HEAD.stat().st_size < 10**7


def test_the_data_is_split_once_and_for_all():
    train, held_out = rotten_tomatoes()
    assert (len(train), len(held_out)) == (7530, 1000)
    assert rotten_tomatoes()[1] == held_out and rotten_tomatoes(seed=1)[1] != held_out
    assert abs(sum(held_out.labels) - 500) < 60
    assert train.head(3).texts == train.texts[:3]
    assert (minilm_folder() / "model.safetensors").exists()


def test_a_missing_package_is_named():
    with pytest.raises(DependencyError, match=r"'no-such-package'.*optin\[demo\]"):
        package_folder("no_such_package")
