from __future__ import annotations

import json

import pytest
import torch

from optin.errors import InputError
from optin.space.options import Calibration, Task
from optin.tasks import Examples, at_most, check_reference, load_examples, load_model, load_tokenizer, task_spec
from optin.tasks.comparison import Answers, Comparison
from optin.tasks.metrics import divergence, measure
from optin.tasks.text import answers, bucketed, calibration_batches, class_indices, encode, evaluate, sequence_limit
from tests.networks import build, tokenizer

ROWS = [("the film is good", 1), ("a bad plot", 0), ("fine", 1), ("the plot is not good", 0)]
SPEC = task_spec("text-classification")


def write(folder, kind, rows=ROWS, columns=("text", "label")):
    """The rows as a file of each kind."""
    path = folder / f"data.{kind}"
    if kind in ("csv", "tsv"):
        separator = "," if kind == "csv" else "\t"
        path.write_text("\n".join(separator.join(map(str, row)) for row in (columns, *rows)) + "\n")
    elif kind == "jsonl":
        path.write_text("\n".join(json.dumps(dict(zip(columns, row, strict=True))) for row in rows))
    else:
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.table({c: [row[i] for row in rows] for i, c in enumerate(columns)}), path)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet"])
def test_every_kind_of_file(kind, tmp_path):
    examples = load_examples(SPEC, Task(data=str(write(tmp_path, kind))), "evaluation", labelled=True)
    assert examples == Examples([text for text, _ in ROWS], None, [label for _, label in ROWS])


def test_a_folder_with_a_file_per_part(tmp_path):
    write(tmp_path, "csv").rename(tmp_path / "train.csv")
    write(tmp_path, "tsv", ROWS[:2]).rename(tmp_path / "dev.tsv")
    task = Task(data=str(tmp_path))
    assert len(load_examples(SPEC, task, "calibration", labelled=False)) == 4
    assert len(load_examples(SPEC, task, "evaluation", labelled=True)) == 2
    with pytest.raises(InputError, match="no file for the part 'test'"):
        load_examples(SPEC, Task(data=str(tmp_path), evaluation_split="test"), "evaluation", labelled=True)


def test_glue_as_first_published(tmp_path):
    """Stray quotation marks, other column names, class names instead of numbers."""
    rows = [(0, 'He said "no', "He agreed.", "contradiction"), (1, "A man", "A person", "entailment")]
    write(tmp_path, "tsv", rows, ("index", "sentence1", "sentence2", "gold_label")).rename(
        tmp_path / "dev_matched.tsv"
    )
    spec = task_spec("mnli")
    examples = load_examples(spec, Task(data=str(tmp_path)), "evaluation", labelled=True)
    assert examples.texts[0] == 'He said "no' and examples.pairs == ["He agreed.", "A person"]
    assert class_indices(build("bert"), spec, examples) == [2, 0]


def test_cola_has_no_header(tmp_path):
    (tmp_path / "dev.tsv").write_text("gj04\t1\t\tThe film is good.\ngj04\t0\t*\tGood film the.\n")
    examples = load_examples(task_spec("cola"), Task(data=str(tmp_path)), "evaluation", labelled=True)
    assert examples.texts == ["The film is good.", "Good film the."] and examples.labels == [1, 0]


def test_numbers_follow_the_task_and_names_the_network():
    """A network trained with the classes of MNLI in another order."""
    order = {"CONTRADICTION": 0, "NEUTRAL": 1, "ENTAILMENT": 2}
    model = build("bert", num_labels=3, label2id=order, id2label={v: k for k, v in order.items()})
    examples = Examples(["a"] * 4, None, [0, 2, "entailment", "1"])
    assert class_indices(model, task_spec("mnli"), examples) == [2, 0, 2, 1]


def test_the_labels_of_calibration_are_not_even_read(tmp_path):
    path = write(tmp_path, "csv", [(text, "") for text, _ in ROWS])
    assert load_examples(SPEC, Task(data=str(path)), "calibration", labelled=False).labels is None
    with pytest.raises(InputError, match="empty cells"):
        load_examples(SPEC, Task(data=str(path)), "evaluation", labelled=True)


@pytest.mark.parametrize(
    ("name", "content", "task", "message"),
    [
        ("none.csv", None, {}, "no such file or folder"),
        ("data.csv", "", {}, "is empty"),
        ("data.csv", "text,label\n", {}, "no data"),
        ("data.csv", 'text,label\n"a, b",1\nwell, well,0\n', {}, "line 3 .* 3 fields .* quotation marks"),
        ("data.rtf", "x", {}, "expected one of .csv"),
        ("data.csv", "text,label\n,1\n", {}, "no row of .* has a text"),
        ("data.csv", "text,label\na,1\n", {"text": "txt"}, "Did you mean 'text'"),
        ("data.csv", "text,label\na,1\n", {"label": "lable"}, "Did you mean 'label'"),
        ("data.csv", "text,label\n1,1\n2,0\n", {}, "must hold texts; row 1 is 1"),
        ("data.jsonl", "{", {}, "cannot read"),
        ("data.parquet", "not parquet", {}, "cannot read"),
    ],
)
def test_bad_data_files(name, content, task, message, tmp_path):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=message) as caught:
        load_examples(SPEC, Task(data=str(tmp_path / name), **task), "evaluation", labelled=True)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("data.csv", "text;label\nwell, well;1\nfilm;0\n"), ("data.txt", "well, well\nfilm\n")],
)
def test_semicolons_and_a_text_a_line(name, content, tmp_path):
    (tmp_path / name).write_text(content)
    found = load_examples(SPEC, Task(data=str(tmp_path / name)), "calibration", labelled=False)
    assert found.texts == ["well, well", "film"]


def test_rows_without_a_text_are_left_out_and_said(tmp_path):
    (tmp_path / "data.csv").write_text("text,label\nfilm,1\n,0\nplot,0\n,1\n")
    with pytest.warns(UserWarning, match=r"2 of 4 rows of .* have no text and are left out \(row 2 is the first\)"):
        found = load_examples(SPEC, Task(data=str(tmp_path / "data.csv")), "evaluation", labelled=True)
    assert (found.texts, found.labels) == (["film", "plot"], [1, 0])


def test_tasks_without_data():
    with pytest.raises(InputError, match="--data FILE"):
        load_examples(SPEC, Task(), "calibration", labelled=False)
    with pytest.raises(InputError, match="Did you mean 'sst2'"):
        task_spec("sst")


def test_a_hub_that_cannot_be_reached_gives_one_line():
    with pytest.raises(InputError, match="nyu-mll/glue"):
        load_examples(task_spec("sst2"), Task(name="sst2"), "calibration", labelled=False)
    with pytest.raises(InputError, match="no such folder here; from the hub") as caught:
        load_model("somebody/no-such-model")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError):
        load_tokenizer("somebody/no-such-model")


def test_calibration_is_a_seeded_draw_in_batches_of_similar_length(bert):
    examples = Examples([" ".join(["good"] * length) for length in range(1, 31)])
    options = Calibration(examples=20, batch_size=6)
    batches = calibration_batches(bert, examples, tokenizer(), options, seed=1)
    again = calibration_batches(bert, examples, tokenizer(), options, seed=1)
    assert [len(batch["input_ids"]) for batch in batches] == [6, 6, 6, 2]
    assert all(torch.equal(a["input_ids"], b["input_ids"]) for a, b in zip(batches, again, strict=True))
    lengths = [int(length) for batch in batches for length in batch["attention_mask"].sum(1)]
    assert lengths == sorted(lengths)
    with pytest.warns(UserWarning, match="has 30 examples, and calibration asks for 256: all are used"):
        few = calibration_batches(bert, examples, tokenizer(), Calibration(), seed=0)
    assert sum(len(batch["input_ids"]) for batch in few) == 30
    with pytest.raises(InputError, match="at least 2 examples"):
        calibration_batches(bert, examples.select([0]), tokenizer(), Calibration(), seed=0)


def test_lengths():
    model = build("bert")
    assert sequence_limit(model, tokenizer(), None) == 40
    assert sequence_limit(model, tokenizer(), 7) == 7
    with pytest.raises(InputError, match="beyond the 40 tokens"):
        sequence_limit(model, tokenizer(), 41)
    assert sequence_limit(build("roberta"), tokenizer(), None) == 38
    assert sequence_limit(build("deberta-v2"), tokenizer(), None) == 40
    assert encode(tokenizer(), Examples(["good " * 99]), [0], 7)["input_ids"].shape == (1, 7)
    assert bucketed(Examples(["aaa", "a", "aa"], ["", "bbbb", ""]), [0, 1, 2], 2) == [[2, 0], [1]]


def test_classification_by_hand():
    model = build("bert", num_labels=2)
    examples = Examples([text for text, _ in ROWS], None, [label for _, label in ROWS])
    encoded = tokenizer()(examples.texts, padding=True, return_tensors="pt")
    with torch.inference_mode():
        hits = (model(**encoded).logits.argmax(-1) == torch.tensor(examples.labels)).float().mean()
    figures = evaluate(model, tokenizer(), SPEC, examples, reference=model, batch_size=3)
    assert figures["accuracy"] == pytest.approx(float(hits))
    assert figures["kl"] == pytest.approx(0, abs=1e-6)


def test_two_networks_in_one_pass_have_the_figures_of_each():
    dense, pruned = build("bert", num_labels=2), build("bert", num_labels=2)
    rows = ROWS * (1 + 30 // len(ROWS))
    examples = Examples([text for text, _ in rows], None, [label for _, label in rows])
    found = Comparison.of(answers([pruned, dense], tokenizer(), SPEC, examples, batch_size=3))
    assert found.dense == evaluate(dense, tokenizer(), SPEC, examples, batch_size=3)
    assert found.pruned == evaluate(pruned, tokenizer(), SPEC, examples, reference=dense, batch_size=3)
    assert found.interval.keys() == {"accuracy"}


def test_few_examples_have_no_interval():
    right = torch.rand(29) < 0.9
    assert Comparison.of(of_accuracies([right, right])).interval == {}
    assert Comparison.of(of_accuracies([right.repeat(2), right.repeat(2)])).interval["accuracy"] == (-3 / 58, 3 / 58)


@pytest.mark.parametrize("classes", [1, 3])
def test_a_reference_of_other_outputs(classes):
    with pytest.raises(InputError, match="cannot be compared"):
        divergence(torch.randn(4, classes), torch.randn(4, 2))
    model, dense = build("bert", num_labels=2), build("bert", num_labels=max(classes, 3))
    examples = Examples([text for text, _ in ROWS], None, [label for _, label in ROWS])
    with pytest.raises(InputError, match="outputs"):
        check_reference(model, dense, SPEC, examples, tokenizer(), "mean")


def of_accuracies(rights, spec=SPEC):
    """The answers of networks that are right where said."""
    targets = torch.randint(2, (len(rights[0]),))
    values = [torch.nn.functional.one_hot(torch.where(right, targets, 1 - targets), 2).float() for right in rights]
    return Answers(spec, values, targets)


@pytest.mark.parametrize("task", ["text-classification", "cola"])  # a mean over examples, and what is none
def test_the_interval_of_a_difference_is_a_paired_one(task):
    right = torch.rand(400) < 0.9
    worse = right & (torch.rand(400) > 0.05)
    found = of_accuracies([worse, right], task_spec(task))
    low, high = found.interval(0, 1)
    metric = task_spec(task).metrics[0]
    difference = found.figures(0)[metric] - found.figures(1)[metric]
    assert low < difference < high <= 0
    rows = len(found.targets)
    none = (-3 / rows, 3 / rows) if metric == "accuracy" else (0, 0)  # by the rule of three
    assert found.interval(0, 0) == none and found.interval(0, 1) == (low, high)
    if task == "text-classification":
        share = (right & ~worse).float().mean()
        assert high - low == pytest.approx(2 * 1.96 * float((share * (1 - share) / 400).sqrt()), rel=0.2)


@pytest.mark.parametrize("limit", [1, 3, 4, 9, None])
def test_a_limit_draws_evenly(limit):
    examples = Examples([text for text, _ in ROWS], None, [label for _, label in ROWS], "a file")
    found = at_most(examples, limit)
    assert len(set(found.texts)) == min(limit or 4, 4) and found.origin == "a file"
    assert list(at_most(Examples(list(range(10))), 3).texts) == [0, 3, 6]


def test_a_class_that_is_masked_adds_nothing_to_the_divergence():
    half, quarter = torch.tensor([[0.0, 0.0]]), torch.tensor([[0.0, 0.0]]) + torch.tensor([1.0, 0.5])
    masked = torch.full((1, 1), -torch.inf)
    expected = divergence(half, quarter)
    assert torch.equal(divergence(torch.cat([half, masked], 1), torch.cat([quarter, masked], 1)), expected)
    assert divergence(quarter, torch.tensor([[0.0, -torch.inf]])) == torch.inf


def test_divergence_by_hand():
    half, quarter = torch.zeros(1, 2), torch.tensor([[3.0, 1.0]]).log()
    assert float(divergence(half, quarter)) == pytest.approx(0.143841, abs=1e-5)


def test_token_classification_scores_the_first_piece_of_every_word():
    model = build("bert", "TokenClassification")
    examples = Examples([["the", "film"], ["good"]], None, [[0, 2], [1]])
    figures = evaluate(model, tokenizer(), task_spec("token-classification"), examples)
    with torch.inference_mode():
        first = model(input_ids=torch.tensor([[2, 11, 9, 3]])).logits[0, 1:3].argmax(-1)
        second = model(input_ids=torch.tensor([[2, 5, 3]])).logits[0, 1:2].argmax(-1)
    hits = (torch.cat([first, second]) == torch.tensor([0, 2, 1])).float().mean()
    assert figures["accuracy"] == pytest.approx(float(hits))
    with pytest.raises(InputError, match="2 words and 1 tags"):
        evaluate(model, tokenizer(), task_spec("token-classification"), Examples([["a", "b"]], None, [[0]]))


def test_regression_and_embeddings():
    model = build("bert", num_labels=1)
    examples = Examples([text for text, _ in ROWS], None, ["0.5", 1, 2.5, -1])
    figures = evaluate(model, tokenizer(), task_spec("text-regression"), examples)
    assert set(figures) == {"spearman", "pearson"} and -1 <= figures["pearson"] <= 1
    with pytest.raises(InputError, match="must be numbers"):
        evaluate(model, tokenizer(), task_spec("text-regression"), Examples(["a"], None, ["high"]))
    bare = build("bert", "Model")
    plain, spec = Examples(examples.texts), task_spec("sentence-embedding")
    assert evaluate(bare, tokenizer(), spec, plain, reference=bare) == {
        "cosine": pytest.approx(1.0),
        "overlap@10": pytest.approx(1.0),
    }
    with pytest.raises(InputError, match="pass it as the reference"):
        evaluate(bare, tokenizer(), spec, plain)


def test_labels_that_do_not_fit_are_named():
    model = build("bert", num_labels=2, label2id={"neg": 0, "pos": 1}, id2label={0: "neg", 1: "pos"})
    assert class_indices(model, SPEC, Examples(["a"] * 4, None, ["POS", "0", 1, "neg"])) == [1, 0, 1, 0]
    with pytest.raises(InputError, match="none of the model's"):
        class_indices(model, SPEC, Examples(["a"], None, ["maybe"]))
    with pytest.raises(InputError, match="outside the model's 2 classes"):
        class_indices(model, SPEC, Examples(["a"], None, [2]))
    with pytest.raises(InputError, match="needs a label column"):
        class_indices(model, SPEC, Examples(["a"]))


def test_metrics_by_hand():
    predictions, targets = torch.tensor([1, 1, 0, 1]), torch.tensor([1, 0, 0, 1])
    figures = measure(("accuracy", "f1", "matthews"), predictions, targets, 2)
    assert figures == {
        "accuracy": pytest.approx(3 / 4),
        "f1": pytest.approx(2 * 2 / (2 * 2 + 1)),
        "matthews": pytest.approx((2 * 1 - 0) / (3 * 2 * 2 * 1) ** 0.5),
    }
    values = torch.tensor([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]])
    swapped = values[[0, 2, 1]]
    assert measure(("overlap@10",), values, values, 0)["overlap@10"] == 1
    assert measure(("cosine",), values, swapped, 0)["cosine"] < 1
