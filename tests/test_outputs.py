"""Whatever a network returns is read in one place."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import optin
from optin.recipe import Recipe
from optin.running.outputs import Output, answers, field_reader, read_output
from optin.scoring.trajectory import Positions, output_loss

RECIPE = Recipe().override(trajectory__draws=8)
BATCH = {"x": torch.randn(2, 6)}


def read(output, **options) -> Output:
    return read_output(output, Positions(BATCH, 4, torch.Generator().manual_seed(0)), **options)


@pytest.mark.parametrize(
    ("output", "kind", "name"),
    [
        (torch.randn(2, 4), "distribution", "the output"),
        (torch.randn(2), "point", "the output"),
        ({"out": torch.randn(2, 4, 8, 8), "aux": torch.randn(2, 4, 8, 8)}, "distribution", "out"),
        ({"depth": torch.randn(2, 8, 8)}, "values", "depth"),
        ((torch.randn(2, 4), torch.randn(2, 5, 4)), "values", "0, 1"),
        ([{"boxes": torch.randn(2, 4), "scores": torch.randn(2)}], "values", "0.boxes, 0.scores"),
        ({"depth": torch.randn(2, 8), "hidden_states": torch.randn(2, 9), "loss": torch.ones(())}, "values", "depth"),
        (SimpleNamespace(logits=torch.randn(2, 4)), "distribution", "logits"),
    ],
)
def test_what_is_read_of_an_output(output, kind, name):
    found = read(output)
    assert (found.kind, found.name) == (kind, name)
    assert float(output_loss(found, found, 4.0)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ({"value": torch.randn(2, 1)}, "point"),
        ({"value": torch.randn(2)}, "point"),
        ({"value": torch.randn(2, 1), "twice": torch.randn(2, 1)}, "values"),
        ((torch.randn(2, 1), torch.ones(2, 1), torch.zeros(2, 3)), "values"),
    ],
)
def test_numbers_that_are_alike_are_compared_too(output, kind):
    """Also those of one example alone, which have no variance."""
    found = read(output)
    one = replace(found, values=found.values[:, :1])
    assert found.kind == kind
    for part in (found, one):
        other = replace(part, values=part.values * 1.5)
        assert 0 < float(output_loss(other, part, 4.0)) < torch.inf


def test_boxes_are_compared_beside_classes():
    found = read({"logits": torch.randn(2, 5, 4), "pred_boxes": torch.randn(2, 5, 4)})
    assert found.said == "logits by KL divergence, pred_boxes by squared error at unit variance"


def test_every_tensor_counts_alike():
    one, other = torch.randn(2, 8), torch.randn(2, 8)
    reference = read((one, 1000 * other))
    for changed in ((one + 0.1, 1000 * other), (one, 1000 * (other + 0.1))):
        loss = output_loss(read(changed), reference, 1.0)
        assert 0.001 < float(loss) < 0.02


def test_a_field_is_taken_by_name_and_place():
    output = {"a": [SimpleNamespace(b=torch.ones(2, 3))]}
    assert field_reader("a.0.b")(output).shape == (2, 3)
    with pytest.raises(optin.ArchitectureError, match="no field 'c'"):
        field_reader("c")(output)
    assert answers(output["a"][0].b).shape == (2, 3)


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.other = nn.Linear(6, 12), nn.Linear(12, 4), nn.Linear(12, 5)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        y = self.up(x).relu()
        return {"one": self.down(y), "two": self.other(y)}


@pytest.mark.parametrize("output", [None, "two", lambda output: output["two"]])
def test_the_caller_says_what_matters(output):
    torch.manual_seed(0)
    model, batches = Two().eval(), [{"x": torch.randn(8, 6)} for _ in range(4)]
    result = optin.prune(model, batches, "60%", recipe=RECIPE, output=output)
    said = {None: "one, two by squared error at unit variance"}.get(output, "the output by KL divergence")
    assert result.report["compared"] == said
