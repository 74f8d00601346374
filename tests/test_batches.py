"""Calibration holds still, everything that a forward takes reaches it, and padding is told by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import optin
from optin.inspection import calibration_of
from optin.recipe import Recipe
from optin.running import batches as module
from optin.running.batch import position_mask, split
from optin.running.batches import Batches
from tests.networks import build, tokens
from tests.zoo import NETWORKS, built

RECIPE = Recipe().override(trajectory__draws=8)

CPU = torch.device("cpu")
ROWS = torch.randint(5, 60, (32, 9), generator=torch.Generator().manual_seed(1))


class Augmented(torch.utils.data.Dataset):
    """Another row at every look."""

    def __len__(self):
        return len(ROWS)

    def __getitem__(self, index):
        return {"input_ids": ROWS[torch.randint(len(ROWS), ())]}


class Drained(IterableDataset):
    """Can be read once, and is no iterator."""

    def __init__(self):
        self.source = iter([{"input_ids": row} for row in ROWS])

    def __iter__(self):
        return self.source


def generator():
    yield from ({"input_ids": ROWS[start : start + 8]} for start in range(0, 32, 8))


ROW_DICTS = [{"input_ids": row} for row in ROWS]
SOURCES = {
    "shuffled": lambda: DataLoader(ROW_DICTS, batch_size=8, shuffle=True),
    "augmented": lambda: DataLoader(Augmented(), batch_size=8),
    "drained": lambda: DataLoader(Drained(), batch_size=8),
    "generator": generator,
    "list": lambda: list(generator()),
    "tuple": lambda: tuple(generator()),
}


@pytest.mark.parametrize("kept", [2**30, 0], ids=["in memory", "on disk"])
@pytest.mark.parametrize("source", SOURCES)
def test_every_pass_sees_the_same_batches(source, kept, monkeypatch):
    monkeypatch.setattr(module, "KEPT", kept)
    batches = Batches.of(SOURCES[source](), CPU)
    first, second = list(batches), list(batches)
    assert len(first) == len(second) == len(batches) == 4
    for one, other in zip(first, second, strict=True):
        assert torch.equal(one["input_ids"], other["input_ids"])
    assert Batches.of(first, CPU).digest == batches.digest


@pytest.mark.parametrize("source", ["shuffled", "augmented", "drained"])
def test_the_job_on_what_a_loader_gave_first(source, bert):
    """The same network as from a list of the same batches."""
    torch.manual_seed(3)
    batches = list(SOURCES[source]())
    expected = optin.prune(bert, batches, "60%", recipe=RECIPE).model.state_dict()
    torch.manual_seed(3)
    found = optin.prune(bert, SOURCES[source](), "60%", recipe=RECIPE).model.state_dict()
    assert all(torch.equal(value, found[name]) for name, value in expected.items())


def test_digests_tell_shapes_types_and_values_apart():
    ids = torch.arange(12)
    sets = [
        [{"input_ids": ids.view(2, 6)}],
        [{"input_ids": ids.view(3, 4)}],
        [{"input_ids": ids.view(2, 6).int()}],
        [{"input_ids": ids.view(2, 6), "interpolate": True}],
        [{"input_ids": ids.view(2, 6), "interpolate": False}],
        [{"input_ids": ids.view(2, 6) + 1}],
    ]
    assert len({Batches.of(one, CPU).digest for one in sets}) == len(sets)


@pytest.mark.parametrize("form", [torch.Tensor.tolist, torch.Tensor.numpy, lambda mask: list(mask), np.asarray])
def test_masks_of_any_form_reach_the_network(form, bert):
    mask = torch.ones(8, 9, dtype=torch.long)
    mask[:, 5:] = 0
    (batch,) = Batches.of([{"input_ids": ROWS[:8], "attention_mask": form(mask)}], CPU)
    assert torch.equal(batch["attention_mask"], mask)
    assert Batches.of([{"input_ids": ROWS[:8], "attention_mask": form(mask)}], CPU).positions == 5


def test_arrays_in_double_precision_come_as_networks_take_them():
    (batch,) = Batches.of([{"x": np.zeros((2, 3, 4, 4))}], CPU)
    assert batch["x"].dtype == torch.float32


def test_values_that_are_no_tensors_reach_every_forward():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
            self.seen = set()

        def forward(self, x, double=False, times=1, name=None, nothing=0):
            self.seen.add((double, times, name, nothing))
            return self.c(self.b(self.a(x * times).relu()).mean((2, 3))) * (2 if double else 1)

    net = Net().eval()
    list(net.parameters())
    optin.inspect(net)  # its own trace takes no keywords
    net.seen.clear()
    extra = {"double": True, "times": 3, "name": "words", "nothing": None}
    batches = [{"x": torch.randn(4, 3, 32, 32), **extra} for _ in range(2)]
    result = optin.prune(net, batches, "70%", recipe=RECIPE)
    assert {(True, 3, "words", None)} == net.seen | result.model.seen
    assert result.plan.provenance["data"]["keywords"] == extra


def test_what_is_left_out_is_known_by_name(bert):
    batch = {**tokens(bert), "labels": torch.zeros(4, dtype=torch.long), "text": ["a"] * 4, "source": "reviews"}
    batches = Batches.of([batch], CPU)
    assert set(batches.left_out) == {"labels", "text", "source"}
    assert set(next(iter(batches))) == set(tokens(bert))
    result = optin.prune(bert, [batch], "60%", recipe=RECIPE)
    assert set(result.plan.provenance["data"]["left_out"]) == {"labels", "text", "source"}


@pytest.mark.parametrize("own", [True, False], ids=["by itself", "by its configuration"])
@pytest.mark.parametrize("name", ["t5", "bart", "whisper"])
def test_a_decoder_reads_the_labels_that_stand_alone(name, own, monkeypatch):
    """As in the network's own loss."""
    if not own:
        kind = getattr(transformers, type(built(name)).__name__)
        monkeypatch.delattr(kind, "prepare_decoder_input_ids_from_labels", raising=False)
    model, inputs = built(name).eval(), NETWORKS[name].inputs()
    given = {key: value for key, value in inputs.items() if not key.startswith("decoder")}
    labels = torch.randint(5, 60, (len(next(iter(given.values()))), 7))
    labels[1, 4:] = -100
    batch = next(iter(calibration_of(model, [{**given, "labels": labels}])))
    assert batch["decoder_input_ids"].shape == labels.shape
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, model(**given, labels=labels).logits)
    there = {**given, "labels": labels, "decoder_input_ids": labels.clamp_min(0)}
    assert torch.equal(next(iter(calibration_of(model, [there])))["decoder_input_ids"], labels.clamp_min(0))


def test_one_example_is_told_from_a_batch():
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for batches in (torch.randn(6, 3, 16, 16), [{"input": row} for row in torch.randn(6, 3, 16, 16)]):
        with pytest.raises(optin.InputError, match="'input' of shape .3, 16, 16. is one example, not a batch"):
            optin.prune(net, batches, "60%", recipe=RECIPE)


REFUSED = {
    "rows of text": ([{"input_ids": row} for row in ROWS], "one example, not a batch"),
    "rows of images": ([{"pixel_values": torch.zeros(3, 8, 8)}], "one example, not a batch"),
    "a tensor": ([torch.zeros(2, 3)], "mapping of keyword inputs"),
    "a list of rows": ([[{"input_ids": ROWS[0]}, {"input_ids": ROWS[1]}]], "not a list of rows"),
    "a text": ("input", "iterable of keyword inputs"),
    "a mapping": ({"input_ids": ROWS}, "iterable of keyword inputs"),
    "a number": (3, "iterable of keyword inputs"),
    "nothing": ([], "is empty"),
    "a drained iterator": (iter([]), "is empty"),
    "no tensors": ([{"text": ["a"]}], "holds no tensors"),
    "no examples": ([{"input_ids": ROWS[:0]}], "has no examples"),
    "ragged lists": ([{"input_ids": [[1, 2], [3]]}], "Pad its rows"),
    "an object": ([{"input_ids": ROWS, "mask": object()}], "is a object"),
    "a number as a key": ([{"input_ids": ROWS, "more": {1: ROWS}}], "keys must be texts without"),
    "two sizes": ([{"input_ids": ROWS, "attention_mask": ROWS[:3]}], "share their first axis"),
    "numbers as names": ([{0: ROWS}], "named by texts"),
    "another rank": ([{"x": torch.zeros(2, 3, 8, 8)}, {"x": torch.zeros(2, 8, 8)}], "not made as the first"),
    "another type": ([{"input_ids": ROWS}, {"input_ids": ROWS.float()}], "not made as the first"),
    "another keyword": ([{"x": ROWS, "a": 1}, {"x": ROWS, "a": 2}], "not made as the first"),
    "a keyword less": ([{"x": ROWS, "a": 1}, {"x": ROWS}], "not made as the first"),
    "NaN": ([{"x": torch.full((2, 3, 8, 8), torch.nan)}], "NaN or infinity"),
    "infinity": ([{"x": torch.full((2, 3, 8, 8), torch.inf)}], "NaN or infinity"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_calibration_set_is_refused(case):
    source, said = REFUSED[case]
    with pytest.raises(optin.InputError, match=said):
        Batches.of(source, CPU)


def test_a_loader_of_the_user_that_fails_says_why():
    class Broken(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            raise KeyError("the user's own fault")

    with pytest.raises(KeyError, match="own fault"):
        Batches.of(DataLoader(Broken(), batch_size=2), CPU)


def test_padding_is_told_by_name_not_by_equal_length():
    mask = torch.ones(2, 17, dtype=torch.long)
    mask[:, 9:] = 0
    hidden = torch.zeros(2, 17, 8)
    text = {"input_ids": mask, "attention_mask": mask}
    assert position_mask(text, hidden).sum() == mask.sum()
    for other in (
        {"pixel_values": torch.zeros(2, 3, 8, 8), **text},  # patches of the image tower
        {"input_values": torch.zeros(2, 17), "attention_mask": mask},  # samples of a sound
        {"pixel_values": torch.zeros(2, 3, 8, 8), "attention_mask": mask},
    ):
        assert position_mask(other, hidden).all()
    framed = {"input_features": torch.zeros(2, 17, 4), "attention_mask": mask}
    assert torch.equal(position_mask(framed, hidden), mask.bool())


def test_embeddings_count_as_many_tokens_as_they_are(bert):
    """MACs are those of the true length; of embeddings they were those of one token."""
    ids = ROWS[:4]
    given = [{"inputs_embeds": bert.get_input_embeddings()(ids).detach()}]
    assert optin.score(bert, given).length == optin.score(bert, [{"input_ids": ids}]).length == 9


def test_splitting_leaves_what_is_the_same_for_all():
    batch = {"x": torch.zeros(5, 2), "flag": True, "scale": torch.tensor(2.0)}
    parts = list(split(batch, 2))
    assert [len(part["x"]) for part in parts] == [2, 2, 1]
    assert all(part["flag"] is True and part["scale"].dim() == 0 for part in parts)


def test_a_network_with_a_keyword_that_it_needs():
    model = build("vit", "ImageClassification")
    side = model.config.image_size + 2 * model.config.patch_size
    batch = {"pixel_values": torch.randn(4, 3, side, side), "interpolate_pos_encoding": True}
    result = optin.prune(model, [batch], "60%", recipe=RECIPE)
    assert result.plan.length == side and result.plan.pruned.macs <= 0.6 * result.plan.dense.macs


def test_a_list_that_may_be_examples_or_inputs_is_refused():
    with pytest.raises(optin.InputError, match="stack examples into one tensor, or pass inputs as a tuple"):
        Batches.of([{"x": [torch.randn(6, 10), torch.randn(6, 10)]}], torch.device("cpu"))
