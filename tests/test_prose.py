"""Documents as windows of tokens: what is drawn, what is scored, and decoders pruned on them."""

from __future__ import annotations

import json
import math

import pytest
import torch
import transformers

import optin
from optin.errors import InputError
from optin.space.options import Calibration, Task
from optin.tasks import Comparison, Examples, held_out, load_model, prose, task_of, task_spec
from optin.tasks.prose import Documents, foreseen, windows_of
from tests.networks import WORDS
from tests.test_cli import run
from tests.test_generate import ROTARY
from tests.test_pipeline import RECIPE

__all__ = ["run"]  # a fixture
SPEC = task_spec("language-modelling")
FEW = ("--examples", 12, "--max-length", 16, "--batch-size", 4)


def decoder(**changes):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**ROTARY, "vocab_size": 40, "eos_token_id": 1, "bos_token_id": 2, **changes})
    return transformers.LlamaForCausalLM(config).eval()


def words(start=False, **options):
    """A tokenizer of words without padding token; with `start` it begins texts with a token of its own."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ("[UNK]", "[END]", "[START]", *WORDS)
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    if start:
        backend.post_processor = processors.TemplateProcessing(single="[START] $A", special_tokens=[("[START]", 2)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", eos_token="[END]", bos_token="[START]", **options
    )


def story(seed, count):
    generator = torch.Generator().manual_seed(seed)
    return " ".join(WORDS[place] for place in torch.randint(len(WORDS), (count,), generator=generator).tolist())


def documents(*sources, shares=None):
    """Of texts of so many words, a list for each source."""
    found = [
        Examples([story(10 * place + index, count) for index, count in enumerate(counts)], origin=f"source {place}")
        for place, counts in enumerate(sources)
    ]
    return Documents(found, shares or [1 / len(found)] * len(found))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A decoder, and two files of documents."""
    folder = tmp_path_factory.mktemp("prose")
    decoder().save_pretrained(folder / "dense")
    words().save_pretrained(folder / "dense")
    (folder / "novel.txt").write_text("\n".join(story(seed, 40) for seed in range(60)) + "\n")
    rows = [json.dumps({"text": story(seed, 100)}) for seed in range(100, 130)]
    (folder / "news.jsonl").write_text("\n".join(rows) + "\n")
    return folder


@pytest.mark.parametrize("start", [False, True])
def test_every_token_is_scored_once_behind_half_a_window(start):
    model = decoder()
    windows = windows_of(model, words(start), documents([50, 30], [25]), 16 + start)
    assert windows.step == 8
    sizes = [len(stream) // 8 * 8 for stream in windows.streams]
    assert [len(stream) for stream in windows.streams] == [82, 26]  # with an end behind every document
    found = foreseen([model], windows, batch_size=3)
    first = 0 if start else 2  # tokens that nothing stands before
    assert found.tokens.sum() == sum(sizes) - first
    surprise, hits = 0.0, 0
    for stream, size in zip(windows.streams, sizes, strict=True):
        for at in range(0 if start else 1, size):
            begin = max(0, at // 8 * 8 - 8)
            before = torch.cat([windows.start, stream[begin:at]])
            with torch.inference_mode():
                logits = model(input_ids=before[None]).logits[0, -1]
            surprise -= float(logits.log_softmax(-1)[stream[at]])
            hits += int(logits.argmax() == stream[at])
    figures = found.figures()
    assert figures["perplexity"] == pytest.approx(math.exp(surprise / float(found.tokens.sum())), rel=1e-5)
    assert figures["accuracy"] == pytest.approx(hits / float(found.tokens.sum()))


def test_the_loss_is_that_of_transformers():
    model = decoder()
    windows = windows_of(model, words(), documents([40]), 16)
    losses = []
    for source, step in windows.places:
        ids = windows.tokens(source, step)[None]
        labels = ids.clone()
        labels[:, : -windows.step] = -100
        with torch.inference_mode():
            losses.append(float(model(input_ids=ids, labels=labels).loss))
    found = foreseen([model], windows)
    assert (found.surprise[0] / found.tokens).tolist() == pytest.approx(losses, rel=1e-5)


def test_what_calibration_saw_is_not_scored():
    model = decoder()
    windows = windows_of(model, words(), documents([3000]), 16)
    batches, drawn = prose.drawn_batches(model, windows, Calibration(examples=40, batch_size=16), 0)
    seen = {tuple(row.tolist()) for batch in batches for row in batch["input_ids"]}
    assert [len(batch["input_ids"]) for batch in batches] == [16, 16, 8] and len(drawn) == 80
    rest, said = held_out(windows, drawn, windows)
    assert said == {"left_out": 80} and len(rest) == len(windows) - 80
    scored = {tuple(windows.tokens(*place)[-8:].tolist()) for place in rest.places}
    assert not scored & {part for row in seen for part in (row[:8], row[8:])}
    other = windows_of(model, words(), Documents([Examples([story(7, 3000)], origin="another")], [1.0]), 16)
    assert held_out(windows, drawn, other) == (other, {})


def test_sources_have_their_shares():
    model = decoder()
    windows = windows_of(model, words(), documents([900], [900], [900], shares=[0.5, 0.3, 0.2]), 16)
    _, drawn = prose.drawn_batches(model, windows, Calibration(examples=31), 0)
    counts = [sum(windows.places[index][0] == source for index in drawn) // 2 for source in range(3)]
    assert sum(counts) == 31 and counts in ([15, 9, 7], [16, 9, 6])
    with pytest.warns(UserWarning, match="source 1 has 2 windows"):
        windows = windows_of(model, words(), documents([900], [39]), 16)
        _, drawn = prose.drawn_batches(model, windows, Calibration(examples=20), 0)
    assert len(drawn) == 2 * (10 + 2)


def test_the_same_seed_draws_the_same():
    model = decoder()
    windows = windows_of(model, words(), documents([900], [900]), 16)
    one, two, three = (prose.drawn_batches(model, windows, Calibration(examples=20), seed)[1] for seed in (1, 1, 2))
    assert one == two != three


def test_two_networks_side_by_side():
    dense, other = decoder(), decoder(rms_norm_eps=0.1)
    windows = windows_of(dense, words(), documents([400]), 16)
    found = Comparison.of(foreseen([other, dense], windows))
    task, recipe = task_of(optin.Recipe().override(task__name="language-modelling")), optin.Recipe()
    alone = task.evaluate(other, None, windows, recipe, reference=dense)
    assert found.pruned == pytest.approx(alone)
    assert found.dense == pytest.approx(task.evaluate(dense, None, windows, recipe))
    low, high = found.interval["perplexity"]
    assert low <= found.pruned["perplexity"] - found.dense["perplexity"] <= high
    same = Comparison.of(foreseen([dense, dense], windows))
    assert same.interval["perplexity"] == (0, 0) and same.pruned["kl"] == pytest.approx(0, abs=1e-6)


def test_a_network_that_sees_ahead_is_refused():
    torch.manual_seed(0)
    config = transformers.BertConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    model = transformers.BertLMHeadModel(config).eval()
    with pytest.raises(InputError, match="sees the tokens that it is to foresee"):
        prose.check_causal(model, windows_of(model, words(), documents([40]), 16))


@pytest.mark.parametrize(
    ("counts", "length", "message"),
    [
        ([10], 16, "11 tokens, and a window takes 16"),
        ([100], 1, "too short"),
        ([100], 65, "beyond the 64 tokens"),
    ],
)
def test_what_makes_no_windows(counts, length, message):
    with pytest.raises(InputError, match=message):
        windows_of(decoder(), words(), documents(counts), length)


def test_prune_and_evaluate(run, library, tmp_path):
    dense, novel, news = library / "dense", library / "novel.txt", library / "news.jsonl"
    code, out, error = run(
        "prune", dense, "--out", tmp_path / "small", "--budget", "70%", "--data", novel, "--data", news,
        "--share", 1, "--share", 3, *FEW, "--json",
    )  # fmt: skip
    assert code == 0, error
    report = json.loads(out)
    quality = report["quality"]
    assert quality["pruned"].keys() == {"perplexity", "accuracy", "kl"} and quality["left_out"] == 24
    assert report["macs"]["pruned"] <= 0.7 * report["macs"]["dense"]
    saved = optin.Recipe.load(tmp_path / "small" / "recipe.yaml")
    assert saved.task.name == "language-modelling"  # guessed
    assert saved.task.more_data == [str(news)] and saved.task.shares == [1, 3]
    code, out, _ = run("evaluate", tmp_path / "small", "--data", novel, "--data", news, *FEW[2:], "--json")
    both = json.loads(out)
    assert code == 0 and both["drawn from it by calibration"] == 12
    assert both["examples"] == quality["examples"] + 24
    page = (tmp_path / "small" / "report.html").read_text()
    assert f"erplexity {quality['dense']['perplexity']:.1f} before" in page and "times the perplexity" in page
    assert "pipeline_tag: text-generation" in (tmp_path / "small" / "README.md").read_text()
    with torch.inference_mode():
        ids = torch.arange(3, 15)[None]
        small = load_model(str(tmp_path / "small"))
        assert small.generate(ids, max_new_tokens=4, do_sample=False).shape == (1, 16)


def test_a_recipe_names_several_sources(run, library, tmp_path):
    task = {
        "name": "language-modelling",
        "data": str(library / "novel.txt"),
        "more_data": [str(library / "news.jsonl")],
    }
    recipe = RECIPE.override(**{f"task__{name}": value for name, value in task.items()}, calibration__max_length=16)
    recipe.save(tmp_path / "recipe.yaml")
    assert optin.Recipe.load(tmp_path / "recipe.yaml") == recipe
    code, out, error = run(
        "prune", library / "dense", "--recipe", tmp_path / "recipe.yaml", "--budget", "KL 0.05", "--out",
        tmp_path / "small", "--json",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(out)["loss"]["measured"] <= 0.05


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "novel.txt", "--data", "news.jsonl", "--share", "1"), "2 sources of data and 1 shares"),
        (("--data", "novel.txt", "--share", "0"), "above 0"),
        (("--data", "novel.txt", "--data", "news.jsonl", "--task", "text-classification"), "takes one source"),
        (("--data", "hub:"), "names no data set"),
        ((), "say where the data is"),
    ],
)
def test_sources_that_cannot_be_used(run, library, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(library)
    command = ("prune", "dense", "--budget", "70%", "--out", tmp_path / "small", *FEW)
    code, _, error = run(
        *command, *(("--task", "language-modelling") if "--task" not in arguments else ()), *arguments
    )
    assert code == 2 and message in error


def test_data_of_the_hub_by_name(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*name, split):
        asked.append((*name, split))
        return datasets.Dataset.from_dict({"text": ["a b", "", "c"]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    options = Task("language-modelling", "hub:salesforce/wikitext:wikitext-2-raw-v1", more_data=["hub:own/set"])
    with pytest.warns(UserWarning, match="left out"):
        found = prose.load_documents(SPEC, options, "evaluation", labelled=False)
    assert asked == [("salesforce/wikitext", "wikitext-2-raw-v1", "validation"), ("own/set", "validation")]
    assert [source.texts for source in found.sources] == [["a b", "c"]] * 2
    assert len({source.origin for source in found.sources}) == 2


def test_batches_hold_few_logits(monkeypatch):
    model = decoder()
    windows = windows_of(model, words(), documents([900]), 16)
    monkeypatch.setattr(prose, "LOGITS", 5 * 16 * 40)
    batches, _ = prose.drawn_batches(model, windows, Calibration(examples=20), 0)
    assert {len(batch["input_ids"]) for batch in batches} == {5}


def test_texts_without_padding_in_python():
    model, tokenizer = decoder(), words()
    batches = optin.batches_of(
        model, [story(seed, 50) for seed in range(20)], tokenizer=tokenizer, max_length=16, examples=32
    )
    assert all(batch["input_ids"].shape[1] == 16 and batch["attention_mask"].all() for batch in batches)
    result = optin.prune(model, batches, "80%", recipe=RECIPE)
    assert result.plan.shares["macs"] <= 0.8


def test_a_tokenizer_without_padding_token(run, library, tmp_path):
    torch.manual_seed(0)
    classifier = transformers.LlamaForSequenceClassification(decoder().config).eval()
    classifier.save_pretrained(tmp_path / "dense")
    words().save_pretrained(tmp_path / "dense")
    (tmp_path / "data.csv").write_text(
        "text,label\n" + "".join(f"{story(seed, 5)},{seed % 2}\n" for seed in range(40))
    )
    data = ("--data", tmp_path / "data.csv", "--out", tmp_path / "small", "--budget", "70%", *FEW)
    code, _, error = run("prune", tmp_path / "dense", *data)
    assert code == 2 and "no padding token" in error


def test_one_source_twice(run, library, tmp_path):
    data = ("--data", library / "novel.txt", "--data", library / "novel.txt")
    code, _, error = run("prune", library / "dense", *data, "--budget", "80%", "--out", tmp_path / "small", *FEW)
    assert code == 2 and "given twice" in error


@pytest.mark.parametrize("options", [["--queries"], ["--preset", "searched"], ["--offload"]])
def test_ways_to_prune_on_the_command_line(run, library, tmp_path, options):
    data = ["--data", library / "novel.txt", "--task", "language-modelling", "--budget", "90%"]
    for more in (["--dry-run"], []):
        code, _, error = run("prune", library / "dense", *data, "--out", tmp_path / "small", *FEW, *options, *more)
        assert code == 0, error
    assert not list(tmp_path.glob("small.*")), "what was kept for a kill is gone"
