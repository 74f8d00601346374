"""Heads that share keys and values: equally many of every group go, and the cache stays as it is."""

from __future__ import annotations

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import optin
from optin.describing import describe
from optin.describing.queries import QUERIES
from optin.errors import ArchitectureError, InputError
from optin.recipe import Recipe
from optin.running.caches import cache_bytes
from tests.slow import slow_but
from tests.test_generate import ROTARY
from tests.test_generate import network as generator
from tests.zoo import NETWORKS, built

RECIPE = Recipe(queries=True).override(trajectory__draws=8)
KINDS = ("llama", "qwen2", "qwen3", "phi3", "gemma2", "mixtral", "gpt-oss", "qwen2-classes")


def macs_of(model, batch) -> int:
    model.set_attn_implementation("eager")
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        model(**batch)
    return counter.get_total_flops() // 2


@pytest.mark.parametrize("name", slow_but(("phi3",), KINDS))
def test_queries_go_and_the_cache_stays(name, tmp_path):
    model, batches = built(name), [NETWORKS[name].inputs() for _ in range(4)]
    space = describe(model, queries=True)
    heads = [group for group in space if group.name.endswith(QUERIES)]
    assert len(heads) == model.config.num_hidden_layers
    assert {group.size for group in heads} == {2}
    recipe = RECIPE.override(only=",".join(group.name for group in heads))
    scores = optin.score(model, batches, recipe=recipe)
    plan = optin.plan(model, scores, "97%", recipe=recipe)
    assert any(len(plan.keep[group.name]) == 1 for group in heads)
    small = optin.apply(model, plan, batches, recipe=recipe, scores=scores)  # compares with the masked network
    assert cache_bytes(small.model, batches[0]) == cache_bytes(model, batches[0])
    one = {key: value[:1] for key, value in batches[0].items()}
    assert plan.dense.macs - plan.pruned.macs == macs_of(built(name), one) - macs_of(small.model, one)
    small.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small")
    with torch.inference_mode():
        torch.testing.assert_close(loaded(**batches[0]).logits, small.model(**batches[0]).logits)


def test_generation_with_the_cache_is_that_without():
    model = generator("LlamaForCausalLM")
    batches = [{"input_ids": torch.randint(3, 95, (4, 12))} for _ in range(4)]
    result = optin.prune(model, batches, "60%", recipe=RECIPE)
    assert any(name.endswith(QUERIES) and len(units) == 1 for name, units in result.plan.keep.items())
    said = [
        result.model.generate(**batches[0], max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False)
    ]
    assert torch.equal(*said)
    assert ROTARY["num_attention_heads"] == 2 * ROTARY["num_key_value_heads"]


@pytest.mark.parametrize("criterion", slow_but(("exact",), ("sketch", "exact", "magnitude")))
def test_other_criteria_know_which_features_are_of_a_query(criterion):
    """With the queries of one place silenced, it is they that go."""
    model, batches = built("llama"), [NETWORKS["llama"].inputs() for _ in range(4)]
    width = model.config.head_dim
    for layer in model.model.layers:
        for weight in (layer.self_attn.o_proj.weight.data, layer.self_attn.q_proj.weight.data.mT):
            weight.unflatten(1, (2, 2, width))[:, :, 0] *= 1e-3
    heads = [group.name for group in describe(model, queries=True) if group.kind == "head"]
    recipe = RECIPE.override(criterion=criterion, only=",".join(heads))
    plan = optin.plan(model, optin.score(model, batches, recipe=recipe), "99%", recipe=recipe)
    assert any(len(units) == 1 for units in plan.keep.values())
    assert all(units in ((1,), (0, 1)) for units in plan.keep.values())


@pytest.mark.parametrize("kind", slow_but(("scales",), ("weights", "scales")))
def test_the_refit_helps(kind):
    model, batches = built("llama"), [NETWORKS["llama"].inputs() for _ in range(6)]
    recipe = RECIPE.override(refit__kind=kind)
    plan = optin.plan(model, optin.score(model, batches, recipe=recipe), "60%", recipe=recipe)

    def far(chosen):
        small = optin.apply(model, plan, batches, recipe=chosen).model
        with torch.inference_mode():
            return sum(float((small(**batch).logits - model(**batch).logits).square().sum()) for batch in batches)

    assert far(recipe) < far(recipe.override(refit__enabled=False))


def test_a_network_whose_heads_share_nothing_is_refused():
    with pytest.raises(ArchitectureError, match="no heads of this"):
        optin.prune(built("bert"), [NETWORKS["bert"].inputs()] * 4, "60%", recipe=RECIPE)


def test_heads_of_one_kind_do_not_become_the_other():
    model, batches = built("llama"), [NETWORKS["llama"].inputs() for _ in range(4)]
    small = optin.prune(model, batches, "60%", recipe=RECIPE).model
    with pytest.raises(InputError, match="with 'queries'"):
        optin.prune(small, batches, "80%", recipe=RECIPE.override(queries=False))
    again = optin.prune(small, batches, "80%", recipe=RECIPE)
    assert again.plan.pruned.macs < 0.8 * again.plan.dense.macs


def test_a_cache_of_one_size_for_all_layers_is_refused_where_heads_went():
    model = generator("LlamaForCausalLM")
    batches = [{"input_ids": torch.randint(3, 95, (4, 12))} for _ in range(4)]
    fewer = optin.prune(model, batches, "45%", recipe=RECIPE.override(queries=False)).model
    with pytest.raises(InputError, match="queries: true"):
        fewer.generate(**batches[0], max_new_tokens=2, cache_implementation="paged")
    assert len(fewer.generate(**batches[0], max_new_tokens=2, cache_implementation="static")) == 4


def test_all_of_them_can_be_left_whole_by_their_names():
    model, batches = built("llama"), [NETWORKS["llama"].inputs() for _ in range(4)]
    names = [group.name for group in optin.describe(model, batches[0], queries=True) if group.kind == "head"]
    assert all(name.endswith(QUERIES) for name in names)
    result = optin.prune(model, batches, "80%", recipe=RECIPE, exclude=names)
    assert not set(names) & result.plan.keep.keys()
