"""Weights in mapped files compute what they did in memory, and are none of the other network's."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
import torch
from torch import nn

import optin
from optin.recipe import Recipe
from optin.running.mapped import copied, into_files
from tests.networks import build, tokens


def anonymous() -> int:
    """Bytes of this process that no file stands behind."""
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return 1024 * int(status["RssAnon"].split()[0])


def test_a_copy_in_files_takes_no_memory_of_its_own():
    model = nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(2)))
    size, before = sum(value.nbytes for value in model.parameters()), anonymous()
    copy = copied(model, offload=True)
    assert anonymous() - before < 0.2 * size
    plain = copied(model, offload=False)
    assert anonymous() - before > 0.8 * size
    full = anonymous()
    into_files(plain, offload=True)
    assert full - anonymous() > 0.6 * size
    for one in (copy, plain):
        for value, same in zip(one.parameters(), model.parameters(), strict=True):
            assert torch.equal(value, same) and value.untyped_storage().filename


def test_a_copy_is_a_copy():
    model = build("bert")
    model.bert.embeddings.word_embeddings.weight.requires_grad_(False)
    model.bert.pooler.dense.weight = model.bert.encoder.layer[0].attention.output.dense.weight  # tied
    model.register_buffer("maps", torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last))
    copy = copied(model, offload=True)
    assert copy.bert.pooler.dense.weight is copy.bert.encoder.layer[0].attention.output.dense.weight
    assert not copy.bert.embeddings.word_embeddings.weight.requires_grad
    assert copy.maps.stride() == model.maps.stride() and torch.equal(copy.maps, model.maps)
    with torch.no_grad():
        copy.bert.pooler.dense.weight += 1
    assert not torch.equal(copy.bert.pooler.dense.weight, model.bert.pooler.dense.weight)


@pytest.mark.parametrize("inplace", [False, True])
def test_the_pruned_network_is_the_same(inplace, batches):
    results = []
    for offload in (False, True):
        torch.manual_seed(0)
        recipe = Recipe().override(trajectory__rows=12, trajectory__draws=8, offload=offload)
        results.append(optin.prune(build("bert"), batches[:2], "60%", recipe=recipe, inplace=inplace))
    plain, mapped = results
    assert plain.plan.keep == mapped.plan.keep
    batch = tokens(plain.model, seed=9)
    torch.testing.assert_close(mapped.model(**batch).logits, plain.model(**batch).logits, rtol=1e-3, atol=1e-4)
    assert all(value.untyped_storage().filename for value in mapped.model.bert.encoder.parameters())
