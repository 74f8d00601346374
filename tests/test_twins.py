"""Exact twins compute what the modules do that they stand for."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import nn

import optin
from optin.recipe import Recipe
from optin.running.twins import MultiheadAttention, twinned

RECIPE = Recipe().override(trajectory__draws=8)


@pytest.mark.parametrize(("first", "weights", "bias"), list(itertools.product([True, False], repeat=3)))
@pytest.mark.parametrize("read", ["itself", "another", "keys and values", "other widths"])
@torch.no_grad()
def test_a_twin_of_attention_computes_the_same(first, weights, bias, read, monkeypatch):
    monkeypatch.setattr(torch.backends.mha, "get_fastpath_enabled", lambda: False)
    torch.manual_seed(0)
    width = 24 if read == "other widths" else 32
    module = nn.MultiheadAttention(32, 4, batch_first=first, bias=bias, kdim=width, vdim=width).eval()
    query = torch.randn(3, 7, 32)
    key = torch.randn(3, 5, width) if first else torch.randn(9, 7, width)
    given = {"itself": (query, query, query), "another": (query, key, key)}.get(read, (query, key, key + 1))
    examples, asked = (3, 7) if first else (7, 3)
    offered = given[1].shape[1 if first else 0]
    padding = torch.zeros(examples, offered).masked_fill(torch.arange(offered) == offered - 1, -math.inf)
    for mask in (None, torch.randn(asked, offered), torch.randn(4 * examples, asked, offered)):
        options = {"key_padding_mask": padding, "attn_mask": mask, "need_weights": weights}
        expected = module(*given, **options)
        with twinned(module):
            assert type(module) is MultiheadAttention
            got = module(*given, **options)
        assert type(module) is nn.MultiheadAttention
        torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


class Masked(nn.Module):
    """Torch's own encoder, whose layers take fast paths where there is padding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 24)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(24, 4, 20, batch_first=True), 2)
        self.head = nn.Linear(24, 3)

    def forward(self, input_ids: torch.Tensor, padding: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(self.embed(input_ids), src_key_padding_mask=padding)[:, 0])


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_of_torch_loses_heads_and_runs_on_its_own(tmp_path):
    torch.manual_seed(0)
    model = Masked().eval()
    padding = torch.zeros(4, 9, dtype=torch.bool)
    padding[0, 6:] = True
    batches = [{"input_ids": torch.randint(5, 60, (4, 9)), "padding": padding} for _ in range(4)]
    scores = optin.score(model, batches, recipe=RECIPE)
    space = optin.describe(model, batches[0])
    assert {group.kind for group in space} == {"head", "neuron"}
    result = optin.apply(model, optin.plan(model, scores, "60%", recipe=RECIPE), batches)
    assert type(model.encoder.layers[0].self_attn) is nn.MultiheadAttention
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Masked().eval()).eval()
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**batches[0]), result.model.eval()(**batches[0]))
