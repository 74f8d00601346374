"""What inputs look like, and others of their kind."""

from __future__ import annotations

import json

import pytest
import torch

from optin.errors import CheckpointError
from optin.running.samples import looks_of, made_of

BATCH = {
    "input_ids": torch.tensor([[2, 17, 30, 3, 0, 0], [2, 9, 8, 7, 6, 3]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1, 0, 0], [1] * 6]),
    "bbox": torch.arange(48).view(2, 6, 4),
    "spatial_shapes": torch.tensor([[[4, 4], [2, 2]]] * 2),
    "pixel_values": torch.rand(2, 3, 8, 10),
    "interpolate": True,
}


def test_others_of_their_kind():
    made = made_of(json.loads(json.dumps(looks_of(BATCH))), 3)
    assert {name: tuple(value.shape) for name, value in made.items()} == {
        "input_ids": (3, 6), "attention_mask": (3, 6), "bbox": (3, 6, 4), "spatial_shapes": (3, 2, 2),
        "pixel_values": (3, 3, 8, 10),
    }  # fmt: skip
    assert made["input_ids"][:, 0].tolist() == [2] * 3 and made["input_ids"][:, -1].tolist() == [3] * 3
    assert int(made["input_ids"].max()) <= 30 and bool((made["attention_mask"] == 1).all())
    assert made["bbox"][1, 2].tolist() == [0, 1, 2, 3] and made["spatial_shapes"][2, 1].tolist() == [2, 2]
    assert float(made["pixel_values"].min()) >= 0 and float(made["pixel_values"].max()) <= 1


def test_no_text_is_kept():
    text = torch.randint(5, 10_000, (2, 64), generator=torch.Generator().manual_seed(0))
    kept = json.dumps(looks_of({"input_ids": text}))
    assert sum(str(int(word)) in kept for word in text[0]) <= 4


def test_texts_and_images_of_other_sizes():
    text = {name: BATCH[name] for name in ("input_ids", "attention_mask")}
    assert made_of(looks_of(text), 1, 9)["attention_mask"].shape == (1, 9)
    assert made_of(looks_of({"x": BATCH["pixel_values"]}), 1, 16, 20)["x"].shape == (1, 3, 16, 20)


@pytest.mark.parametrize(
    "looks",
    [
        7,
        {"x": 3},
        {"x": {"dtype": "object", "shape": [2]}},
        {"x": {"dtype": "float32", "shape": [2**20, 2**20]}},
        {"x": {"dtype": "float32", "shape": [-1]}},
        {"x": {"dtype": "int64", "shape": [4], "values": ["a"]}},
        {"x": {"parts": 3}},
    ],
)
def test_damaged_looks_are_refused(looks):
    with pytest.raises(CheckpointError, match="damaged"):
        made_of(looks, 2)
