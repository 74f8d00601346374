"""Inputs that hold others reach the forward as they were."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import optin
from optin.errors import InputError
from optin.running.nesting import leaves, nested


def test_leaves_and_back():
    given = {"a": 1, "pair": (2, [3, {"left": 4, "right": (5,)}]), "many": {"x": [6, 7]}}
    flat = dict(leaf for name, value in given.items() for leaf in leaves(name, value))
    pair = ["pair(0)", "pair(1)[0]", "pair(1)[1].left", "pair(1)[1].right(0)"]
    assert list(flat) == ["a", *pair, "many.x[0]", "many.x[1]"]
    assert nested(flat) == given and isinstance(nested(flat)["pair"], tuple)
    assert nested({"x": 1}) == {"x": 1}
    twelve = {"x": list(range(12))}
    assert nested(dict(leaves("x", twelve["x"]))) == twelve
    for key in (3, "a.b", "a(0)", ""):
        with pytest.raises(InputError, match="keys must be texts without"):
            list(leaves("x", {key: 1}))


class Fused(nn.Module):
    """Two series and their settings: a tuple, and a mapping with a list."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Linear(6, 24), nn.Linear(4, 24)
        self.middle, self.last = nn.Linear(24, 16), nn.Linear(16, 3)

    def forward(self, pair: tuple[torch.Tensor, torch.Tensor], extra: dict) -> dict:
        assert isinstance(pair, tuple) and isinstance(extra["more"], list)
        both = torch.relu(self.left(pair[0]) + extra["factor"] * self.right(extra["more"][0]) + pair[1])
        return {"classes": self.last(torch.relu(self.middle(both)))}


def batch(seed: int, examples: int = 8) -> dict:
    generator = torch.Generator().manual_seed(seed)
    left, bias, right = (torch.randn(examples, size, generator=generator) for size in (6, 24, 4))
    return {"pair": (left, bias), "extra": {"more": [right], "factor": 0.5}, "labels": [{"boxes": left}] * examples}


def test_a_network_with_such_inputs(tmp_path):
    torch.manual_seed(0)
    model = Fused().eval()
    result = optin.prune(model, [batch(seed) for seed in range(4)], "60%")
    assert set(result.plan.provenance["data"]["inputs"]) == {"pair(0)", "pair(1)", "extra.more[0]"}
    assert result.plan.provenance["data"]["left_out"] == ["labels"]
    assert result.plan.kept.keys() == {"middle"} and result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Fused())
    one = {name: value for name, value in batch(9).items() if name != "labels"}
    assert torch.equal(loaded(**one)["classes"], result.model(**one)["classes"])
    assert optin.inspect(model, example=batch(0))["macs"] == result.plan.dense.macs
    plan = optin.plan(model, optin.score(model, [batch(0)]), "70%")
    assert optin.apply(model, plan).report["macs"]["pruned"] == plan.pruned.macs
