"""EleutherAI's harness on pruned decoders, where it is installed."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from tests.test_cli import run
from tests.test_prose import decoder, library, story, words

__all__ = ["library", "run"]  # fixtures

TASK = """
task: likely_words
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{answer}}}}"
metric_list:
  - metric: acc
"""


@pytest.mark.filterwarnings("ignore")  # of the harness's own
def test_a_task_of_a_local_file(run, library, tmp_path):
    pytest.importorskip("lm_eval")
    rows = [
        {
            "question": story(seed, 6),
            "choices": [f" {story(seed + 50, 2)}", f" {story(seed + 90, 2)}"],
            "answer": seed % 2,
        }
        for seed in range(12)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    (tmp_path / "likely.yaml").write_text(TASK.format(file=tmp_path / "rows.jsonl"))
    code, out, error = run("evaluate", library / "dense", "--lm-eval", tmp_path / "likely.yaml", "--json")
    assert code == 0, error
    model, tokenizer = decoder(), words()
    right = 0
    for row in rows:
        sums = []
        for choice in row["choices"]:
            start, rest = (tokenizer(text)["input_ids"] for text in (row["question"], choice))
            with torch.inference_mode():
                logits = model(input_ids=torch.tensor([start + rest])).logits[0, len(start) - 1 : -1].log_softmax(-1)
            sums.append(float(logits.gather(1, torch.tensor(rest)[:, None]).sum()))
        right += int(sums[1] > sums[0]) == row["answer"]
    assert json.loads(out)["likely_words acc"] == pytest.approx(right / len(rows))


def test_without_the_harness_and_with_a_file_that_is_no_task(run, library, tmp_path, monkeypatch):
    (tmp_path / "task.yaml").write_text("name: x\n")
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, error = run("evaluate", library / "dense", "--lm-eval", tmp_path / "task.yaml")
    assert code == 7 and "optin[lm-eval]" in error
