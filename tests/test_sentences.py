"""Folders of sentence-transformers: pruned ones stay such folders, and are pooled as they say."""

from __future__ import annotations

import json
import warnings

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import optin
from optin.app.commands import run_evaluate, run_prune
from optin.app.exports import run_export
from optin.app.placement import Job, Placement
from optin.errors import InputError
from optin.recipe import Recipe
from optin.running.outputs import gathered
from optin.tasks import load_preprocessor, task_spec
from optin.tasks.loading import load_model
from optin.tasks.sentences import SentenceTokenizer
from optin.tasks.specs import SENTENCES
from tests.networks import WORDS, build, tokenizer
from tests.test_generate import ROTARY
from tests.test_prose import words

SPEC = task_spec("sentence-embedding")
TYPES = "sentence_transformers.models"
POOLING = {"word_embedding_dimension": 24, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
DENSE = {
    "in_features": 24,
    "out_features": 10,
    "bias": True,
    "activation_function": "torch.nn.modules.activation.Tanh",
}
TEXTS = ["the film is good", "a bad plot", "fine", "THE Film is not good", "awful plot awful film"]


@pytest.fixture
def folder(tmp_path):
    """Class token, a Dense module, unit length; texts begin with a prompt and are put into small letters."""
    home = tmp_path / "dense"
    build("bert", "Model").save_pretrained(home)
    tokenizer().save_pretrained(home)
    kinds = ("Transformer", "Pooling", "Dense", "Normalize")
    places = ("", "1_Pooling", "2_Dense", "3_Normalize")
    modules = [
        {"idx": index, "name": str(index), "path": place, "type": f"{TYPES}.{kind}"}
        for index, (kind, place) in enumerate(zip(kinds, places, strict=True))
    ]
    write(home, "modules.json", modules)
    write(home, "1_Pooling/config.json", POOLING)
    write(home, "2_Dense/config.json", DENSE)
    generator = torch.Generator().manual_seed(3)
    weights = {"linear.weight": torch.randn(10, 24, generator=generator), "linear.bias": torch.randn(10)}
    save_file(weights, home / "2_Dense" / "model.safetensors")
    write(home, "sentence_bert_config.json", {"max_seq_length": 7, "do_lower_case": True})
    prompts = {"prompts": {"query": "fine: ", "document": ""}, "default_prompt_name": "query"}
    write(home, "config_sentence_transformers.json", prompts)
    return home


def write(folder, name, content):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))


def recipe(folder, **changes):
    data = folder.parent / "data.csv"
    data.write_text("text\n" + "".join(f"{a} {b} film\n" for a in WORDS for b in WORDS))
    return Recipe().override(
        model=str(folder),
        budget="70%",
        task__name="sentence-embedding",
        task__data=str(data),
        calibration__examples=16,
        trajectory__rows=12,
        trajectory__draws=4,
        **changes,
    )


def opened(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return sentence_transformers.SentenceTransformer(str(folder), device="cpu", trust_remote_code=True)


def ours(folder):
    """Embeddings as optin evaluates them."""
    model = optin.load(folder) if "optin" in json.loads((folder / "config.json").read_text()) else None
    model = model or load_model(str(folder), SENTENCES)
    prepared = load_preprocessor(str(folder), SPEC, model)
    encoded = prepared(
        TEXTS, padding=True, truncation=True, max_length=prepared.model_max_length, return_tensors="pt"
    )
    with torch.inference_mode():
        return prepared.embed(model(**encoded).last_hidden_state, encoded["attention_mask"].bool(), prepared.pooling)


def test_the_last_token_is_found_whichever_side_is_padded():
    hidden = torch.arange(24.0).reshape(2, 4, 3)
    right, left = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]]), torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])
    assert torch.equal(gathered(hidden, right.bool(), "last"), hidden[[0, 1], [2, 3]])
    assert torch.equal(gathered(hidden, left.bool(), "last"), hidden[[0, 1], [3, 3]])
    stack = torch.stack([hidden, -hidden])
    assert torch.equal(gathered(stack, right.bool(), "last"), stack[:, [0, 1], [2, 3]])


def test_a_decoder_that_embeds(tmp_path):
    """As Qwen3-Embedding: padded at the left, pooled by the last token."""
    home = tmp_path / "dense"
    torch.manual_seed(0)
    transformers.Qwen3Model(
        transformers.Qwen3Config(**{**ROTARY, "vocab_size": 40, "pad_token_id": 1})
    ).save_pretrained(home)
    words(padding_side="left", pad_token="[END]", model_max_length=32).save_pretrained(home)
    modules = [{"idx": 0, "name": "0", "path": "", "type": f"{TYPES}.Transformer"}]
    modules.append({"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{TYPES}.Pooling"})
    write(home, "modules.json", modules)
    write(home, "1_Pooling/config.json", {"word_embedding_dimension": 32, "pooling_mode_lasttoken": True})
    report = run_prune(recipe(home), tmp_path / "small", Placement())
    assert 0.5 < report["quality"]["pruned"]["cosine"] < 1
    alone = []
    for text in TEXTS:  # without any padding
        model = load_model(str(home), SENTENCES)
        ids = load_preprocessor(str(home), SPEC, model)([text], return_tensors="pt")["input_ids"]
        with torch.inference_mode():
            alone.append(model(input_ids=ids).last_hidden_state[0, -1])
    torch.testing.assert_close(
        ours(home), torch.nn.functional.normalize(torch.stack(alone), dim=-1), atol=1e-5, rtol=0
    )


def test_a_pruned_folder_is_a_folder_of_sentence_transformers(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    report = run_prune(recipe(folder), tmp_path / "small", Placement())
    assert 0 < report["quality"]["pruned"]["cosine"] < 1
    small = tmp_path / "small"
    assert Recipe.load(small / "recipe.yaml").trajectory.pooling == "first"
    for name in ("modules.json", "1_Pooling/config.json", "2_Dense/config.json", "config_sentence_transformers.json"):
        assert json.loads((small / name).read_text()) == json.loads((folder / name).read_text())
    dense, kept = (load_file(home / "2_Dense" / "model.safetensors") for home in (folder, small))
    assert all(torch.equal(dense[name], kept[name]) for name in dense)
    figures = run_evaluate(str(small), recipe(folder), Placement(), str(folder))
    assert 0 < figures["cosine"] < 1
    for home in (folder, small):
        theirs = torch.as_tensor(opened(home).encode(TEXTS))
        assert theirs.shape == (5, 10)
        torch.testing.assert_close(ours(home), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(
    ("pooling", "name"),
    [
        ({"pooling_mode_mean_tokens": True}, "mean"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": ["cls"]}, "first"),
        ({"pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean"),
        ({}, "mean"),
    ],
    ids=str,
)
def test_calibration_pools_as_the_folder_says(pooling, name, folder):
    write(folder, "1_Pooling/config.json", pooling)
    job = Job.of(recipe(folder), Placement(), True)
    assert job.recipe.trajectory.pooling == name
    assert max(batch["input_ids"].shape[1] for batch in job.batches) == 7
    assert Job.of(recipe(folder, trajectory__pooling="pooler"), Placement()).recipe.trajectory.pooling == "pooler"


def test_other_folders_and_tasks_are_as_they_were(folder):
    model = build("bert", "Model")
    assert not isinstance(load_preprocessor(str(folder), task_spec("text-classification"), model), SentenceTokenizer)
    (folder / "modules.json").unlink()
    assert not isinstance(load_preprocessor(str(folder), SPEC, model), SentenceTokenizer)
    assert Job.of(recipe(folder), Placement()).recipe.trajectory.pooling == "mean"


def test_an_export_pools_and_keeps_them_too(folder, tmp_path, monkeypatch):
    def written(model, inputs, targets, preprocessor, track, overwrite):
        preprocessor.save_pretrained(tmp_path / "out")
        assert inputs["input_ids"].shape == (4, 7) and preprocessor.pooling == "first"
        return []

    monkeypatch.setattr("optin.app.exports.export_all", written)
    run_export(str(folder), ["onnx"], recipe(folder), Placement(), out=tmp_path / "out", batch=4)
    assert (tmp_path / "out" / "1_Pooling" / "config.json").is_file()


BROKEN = {
    "max": ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pools by \\['max'\\]"),
    "two": ("1_Pooling/config.json", POOLING | {"pooling_mode_mean_tokens": True}, "pools by"),
    "weighted": ("1_Pooling/config.json", {"pooling_mode": "weightedmean"}, "pools by"),
    "odd": ("1_Pooling/config.json", {"pooling_mode": [[]]}, "pools by"),
    "list": ("1_Pooling/config.json", [], "must be a mapping"),
    "no JSON": ("1_Pooling/config.json", "{", "is not JSON"),
    "prompt left out": ("1_Pooling/config.json", POOLING | {"include_prompt": False}, "leaves its prompt out"),
    "no pooling": ("1_Pooling/config.json", None, "lacks 1_Pooling/config.json"),
    "no weights": ("2_Dense/model.safetensors", None, "lacks 2_Dense/model.safetensors.* save it again"),
    "damaged weights": ("2_Dense/model.safetensors", "weights", "no linear map"),
    "code": ("2_Dense/config.json", DENSE | {"activation_function": "os.system"}, "expected one of torch.nn"),
    "no activation": (
        "2_Dense/config.json",
        DENSE | {"activation_function": "torch.nn.modules.activation.x"},
        "expected",
    ),
    "residual": ("2_Dense/config.json", DENSE | {"use_residual": True}, "no plain linear map"),
    "not JSON": ("modules.json", "[", "is not JSON"),
    "deep": ("modules.json", "[" * 100_000, "is not JSON"),
    "empty": ("modules.json", [], "must begin with"),
    "mapping": ("modules.json", {}, "must begin with"),
    "numbers": ("modules.json", [1], "names the module None"),
    "own module": ("modules.json", [{"type": "mine.Pooling", "path": ""}], "names the module 'mine.Pooling'"),
    "other module": ("modules.json", [{"type": f"{TYPES}.LSTM", "path": ""}], "names the module"),
    "elsewhere": (
        "modules.json",
        [{"type": f"{TYPES}.Transformer", "path": ""}, {"type": f"{TYPES}.Pooling", "path": "../x"}],
        "must name a folder in it",
    ),
    "below": (
        "modules.json",
        [{"type": f"{TYPES}.Transformer", "path": "0_T"}, {"type": f"{TYPES}.Pooling", "path": "1_Pooling"}],
        "keeps its network in '0_T'",
    ),
    "arguments": ("sentence_bert_config.json", {"model_args": {"trust_remote_code": True}}, "asks for 'model_args'"),
    "task": ("sentence_bert_config.json", {"transformer_task": "fill-mask"}, "asks for 'transformer_task'"),
    "absent prompt": ("config_sentence_transformers.json", {"default_prompt_name": "x"}, "has no prompt 'x'"),
    "wrong prompt": (
        "config_sentence_transformers.json",
        {"default_prompt_name": ["x"], "prompts": {"x": 1}},
        "has no prompt",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_cannot_be_kept_is_refused(name, folder):
    file, content, message = BROKEN[name]
    if content is None:
        (folder / file).unlink()
    else:
        write(folder, file, content)
    with pytest.raises(InputError, match=message) as caught:
        Job.of(recipe(folder), Placement())
    assert "\n" not in str(caught.value)


def test_a_dense_module_of_another_width(folder):
    save_file({"linear.weight": torch.randn(10, 25)}, folder / "2_Dense" / "model.safetensors")
    with pytest.raises(InputError, match="Dense modules do not fit"):
        Job.of(recipe(folder), Placement(), True)
