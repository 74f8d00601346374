"""Networks too large to copy are tried by one block of every kind, and on the meta device."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import optin
from optin.describing import describe, labels
from tests.zoo import NETWORKS, built


def places(space):
    """Cuts and gates of every group."""
    return {group.name: (group.kind, group.size, group.cuts, group.gates) for group in space}


@pytest.mark.parametrize("name", ["llama", "gpt2", "deberta-v2", "timm:eva02_tiny_patch14_224"])
def test_blocks_say_what_the_whole_network_does(name, monkeypatch):
    inputs = NETWORKS[name].inputs()
    whole = optin.describe(built(name), inputs)
    monkeypatch.setattr(labels, "LARGE", 0)
    model = built(name)
    space = optin.describe(model, inputs)
    inside = {group.name for group in whole if whole.in_body(group.gates[0].module)}
    assert places(space) == {group: found for group, found in places(whole).items() if group in inside}
    assert all(space[group].twins == whole[group].twins for group in inside)
    result = optin.prune(model, [inputs] * 2, "80%", recipe=optin.Recipe().override(trajectory__draws=8))
    assert result.plan.pruned.macs <= 0.8 * result.plan.dense.macs  # `self_check` compares what it computes


def test_a_network_without_values(monkeypatch):
    monkeypatch.setattr(labels, "LARGE", 0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 60}
    config = LlamaConfig(num_attention_heads=4, num_key_value_heads=2, **sizes)
    with torch.device("meta"):
        model = LlamaForCausalLM(config).eval()
    ids = torch.randint(5, 60, (2, 8))
    found = describe(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert places(found) == places(optin.describe(LlamaForCausalLM(config).eval(), {"input_ids": ids}))
    assert all(weight.is_meta for weight in model.parameters())
