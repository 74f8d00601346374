"""Pruned networks generate as others do: with a cache and without, greedily, by beams and at random."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers

import optin
from optin.app.generating import generation
from optin.result import verdict
from tests.slow import slow_but
from tests.test_pipeline import RECIPE

IDS = {"vocab_size": 97, "eos_token_id": 96, "pad_token_id": 0}
ROTARY = {
    **IDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "bos_token_id": 1,
    "max_position_embeddings": 64,
}
TOWERS = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "decoder_start_token_id": 3,
}
NETWORKS = {  # by the class: the options of its configuration
    "GPT2LMHeadModel": {**IDS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "bos_token_id": 1},
    "OPTForCausalLM": {
        **IDS,
        "hidden_size": 32,
        "word_embed_proj_dim": 32,
        "ffn_dim": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    },
    "LlamaForCausalLM": ROTARY,
    "Qwen2ForCausalLM": ROTARY,
    "Qwen3ForCausalLM": ROTARY,
    "Gemma2ForCausalLM": {**ROTARY, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "Phi3ForCausalLM": ROTARY,
    "GPTNeoXForCausalLM": ROTARY,
    "MixtralForCausalLM": {**ROTARY, "num_local_experts": 4, "num_experts_per_tok": 2},
    "T5ForConditionalGeneration": {
        **IDS,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "decoder_start_token_id": 0,
    },
    "BartForConditionalGeneration": {**IDS, **TOWERS, "max_position_embeddings": 64, "forced_eos_token_id": None},
    "WhisperForConditionalGeneration": {
        **IDS,
        **TOWERS,
        "num_mel_bins": 8,
        "max_source_positions": 20,
        "max_target_positions": 32,
        "suppress_tokens": None,
        "begin_suppress_tokens": None,
    },
}
FIRST = ("GPT2LMHeadModel", "LlamaForCausalLM", "T5ForConditionalGeneration", "WhisperForConditionalGeneration")
WAYS = ({}, {"num_beams": 3}, {"do_sample": True, "top_k": 20})


def network(name):
    """With weights so large that what is said depends on what was read."""
    model = getattr(transformers, name)
    torch.manual_seed(0)
    made = model(model.config_class(**NETWORKS[name])).eval()
    for parameter in made.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return made


def prompts(model):
    """Four inputs, of decoders one with padding at the left."""
    torch.manual_seed(1)
    if hasattr(model.config, "num_mel_bins"):
        return {"input_features": torch.randn(4, 8, 40)}
    ids, mask = torch.randint(2, 90, (4, 9)), torch.ones(4, 9, dtype=torch.long)
    mask[1, :3] = int(bool(model.config.is_encoder_decoder))
    return {"input_ids": ids, "attention_mask": mask}


@pytest.mark.filterwarnings("ignore::UserWarning")  # of transformers, of options of generation that are not used
@pytest.mark.parametrize("name", slow_but(FIRST, sorted(NETWORKS)))
def test_it_says_the_same_with_and_without_a_cache(name):
    model = network(name)
    batch = inputs = prompts(model)
    if model.config.is_encoder_decoder:
        batch = {**inputs, "decoder_input_ids": torch.randint(2, 90, (4, 7))}
    result = optin.prune(model, [batch] * 2, "60%", recipe=RECIPE)
    small, cache = result.model, result.report["cache"]
    assert cache["pruned"] <= cache["dense"] and cache["dense"] % (2 * 2 * 8 * 4) == 0  # keys and values, layers
    if not model.config.is_encoder_decoder:
        heads = [(result.plan.kept[group], size) for group, size in result.plan.sizes.items() if "att" in group]
        gone = sum(size - kept for kept, size in heads)
        assert cache["dense"] - cache["pruned"] == gone * 2 * 8 * 4  # of a head: keys and values, features, float32
    for way in WAYS:
        said = []
        for cached in ({"use_cache": True}, {"use_cache": False}, {"cache_implementation": "static"}):
            torch.manual_seed(2)
            said.append(small.generate(**inputs, max_new_tokens=8, **{"do_sample": False, **way}, **cached))
        assert said[0].shape[1] > 3 and torch.equal(said[0], said[1]) and torch.equal(said[0], said[2]), way


@pytest.mark.parametrize("name", FIRST)
def test_how_fast_it_generates(name):
    model = network(name)
    inputs = prompts(model)

    def made(batch):
        return {name: value.repeat(2, *[1] * (value.dim() - 1))[:batch] for name, value in inputs.items()}

    rates = generation(model, copy.deepcopy(model), made, rounds=1)
    assert [entry["batch"] for entry in rates] == [1, 8]
    assert all(entry[which][kind] > 0 for entry in rates for which in ("dense", "pruned") for kind in entry[which])
    lines = [line[0] for line in verdict({"generation": rates})]
    assert len(lines) == 4 and f"tokens per second, decode, batch 8, prompt of {rates[0]['length']}" in lines


def test_what_does_not_generate_has_no_such_figures(bert):
    assert generation(bert, bert, lambda batch: {}) == []
    model = network("GPT2LMHeadModel")
    ids = torch.full((8, 60), 5)
    assert (
        generation(model, model, lambda batch: {"input_ids": ids[:batch]}) == []
    )  # no place for an answer behind such a prompt
