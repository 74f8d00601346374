"""Decoders in the format of llama.cpp."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from transformers.convert_slow_tokenizer import bytes_to_unicode

from optin.tasks import load_model
from tests.test_cli import run
from tests.test_prose import FEW, decoder, story

__all__ = ["run"]  # a fixture


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    gguf = pytest.importorskip("gguf")
    place = tmp_path_factory.mktemp("gguf") / "model.gguf"
    model = decoder(tie_word_embeddings=False, vocab_size=264)
    config, writer = model.config, gguf.GGUFWriter(place, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_vocab_size(config.vocab_size)
    signs = list(bytes_to_unicode().values())
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["[UNK]", "[END]", "[START]", *signs, "ab", "cd"])
    writer.add_token_types([3] * 3 + [1] * (len(signs) + 2))
    writer.add_token_merges(["a b", "c d"])
    writer.add_eos_token_id(1)
    writer.add_bos_token_id(2)
    names = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
        "model.layers": "blk",
    }  # fmt: skip
    for name, value in model.state_dict().items():
        data = value
        if "q_proj" in name or "k_proj" in name:  # llama.cpp turns neighbours, and transformers halves
            heads = value.shape[0] // config.head_dim
            data = value.reshape(heads, 2, config.head_dim // 2, -1).transpose(1, 2).reshape(value.shape)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, data.contiguous().numpy())
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    return SimpleNamespace(place=place, model=model)


def test_it_is_the_network_that_it_was_made_of(file):
    ids = torch.arange(3, 40)[None]
    with torch.inference_mode():
        found = load_model(str(file.place))(input_ids=ids).logits
        torch.testing.assert_close(found, file.model(input_ids=ids).logits)


def test_it_is_pruned(run, file, tmp_path):
    (tmp_path / "text.txt").write_text(story(0, 900))
    code, _, error = run(
        "prune", file.place, "--budget", "80%", "--data", tmp_path / "text.txt", "--out", tmp_path / "small",
        *FEW, "--json",
    )  # fmt: skip
    assert code == 0 and "--task language-modelling" in error, error
    assert str(file.place.parent) not in (tmp_path / "small" / "README.md").read_text()
    small = load_model(str(tmp_path / "small"))
    assert small.generate(torch.arange(3, 9)[None], max_new_tokens=2, do_sample=False).shape == (1, 8)


def test_without_the_package(run, file, monkeypatch):
    monkeypatch.setattr("optin.storage.gguf.PACKAGES", ("a_package_that_nobody_has",))
    code, _, error = run("inspect", file.place)
    assert code == 7 and "optin[gguf]" in error
