"""The text tables: MiniLM on Rotten Tomatoes sentences, pruned by every criterion.

    python benchmarks/text.py                 everything
    python benchmarks/text.py quality jobs    some parts of: quality, agreement, jobs, speed, gone

The dense network is fine-tuned first (benchmarks/finetune_text.py, cached). Calibration draws 256 unlabelled
training sentences a seed; `exact`, which evaluates every unit, and the paper's preset score on 8 of them. Quality
is measured on 1,000 held-out sentences. Prints the tables, and stores them in docs/results/text.md, the figures
in docs/results/text.json.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from typing import Any

import torch
from finetune_text import finetune
from measuring import Stored, forward_seconds, peak
from rich.console import Console
from rich.progress import track as progress
from scipy.stats import spearmanr
from text_tables import DEFAULT, render

import optin
from optin.app.benchmark import compare_speed, side_by_side
from optin.app.demo_data import rotten_tomatoes
from optin.describing import describe
from optin.describing.inputs import example_inputs
from optin.recipe import Recipe
from optin.running.batch import split
from optin.running.batches import Batches
from optin.running.gating import gated
from optin.running.job import Job
from optin.running.modules import inference_mode_of
from optin.running.replay import recorded_blocks
from optin.running.tensors import hidden_of
from optin.scoring.criteria import Scoring
from optin.scoring.exact import exact_parts
from optin.scoring.probe import draw_probes, read_final
from optin.scoring.sketch import UnitTotals, balanced
from optin.scoring.trajectory import Positions, manifold_loss, output_loss
from optin.space.options import Calibration
from optin.space.units import UnitSpace
from optin.tasks import Examples, load_model, load_tokenizer, task_spec
from optin.tasks.text import calibration_batches, evaluate

BUDGETS = (70, 60, 50, 40, 30)
LATENCIES = (70, 50, 35)
SEEDS = (0, 1, 2)
CRITERIA = ("compensated", "sketch", "exact", "fisher", "magnitude", "random")
# For criteria that evaluate every unit: eight sentences, in two micro-batches.
FEW: dict[str, Any] = {"calibration__examples": 8, "trajectory__draws": 2}
EXAMPLES = (64, 256, 1024, 4096)  # calibration sentences of the default job, for its memory
LENGTH = 128  # tokens at most


class Setting:
    """The dense network and its data."""

    def __init__(self) -> None:
        folder = str(finetune())
        self.model, self.tokenizer = load_model(folder), load_tokenizer(folder)
        self.train, held_out = rotten_tomatoes()
        self.held_out = Examples(held_out.texts, None, list(held_out.labels))
        self.spec = task_spec("text-classification")

    def calibration(self, recipe: Recipe, labels: bool = False) -> list[dict[str, torch.Tensor]]:
        """The draw of one seed, from the training sentences."""
        examples = Examples(self.train.texts)
        given = self.train.labels if labels else None
        options = recipe.override(calibration__max_length=LENGTH).calibration
        return calibration_batches(self.model, examples, self.tokenizer, options, recipe.seed, given)

    def measure(self, model: torch.nn.Module) -> dict[str, float]:
        """Accuracy and KL to the dense outputs."""
        return evaluate(model, self.tokenizer, self.spec, self.held_out, reference=self.model)


def recipes() -> dict[str, Recipe]:
    """Every row of the table by name."""
    rows = {}
    for criterion in CRITERIA:
        recipe = Recipe(criterion=criterion)
        if criterion == "exact":
            recipe = recipe.override(**FEW)
        rows[f"{criterion}, masks only"] = recipe.override(refit__enabled=False)
        rows[f"{criterion} + compensation"] = recipe
    rows["paper preset"] = optin.PRESETS["paper"].override(**FEW)
    return rows


def quality(setting: Setting) -> dict[str, Any]:
    """Every criterion, with and without compensation, at every budget, three seeds."""
    figures: list[dict[str, Any]] = []
    scores: dict[tuple[str, int], tuple[optin.Scores, float]] = {}
    jobs = [(name, recipe, seed) for name, recipe in recipes().items() for seed in SEEDS]
    for name, recipe, seed in progress(jobs, description="quality", console=Console(stderr=True)):
        recipe = recipe.override(seed=seed)
        key = (recipe.criterion, seed)
        if key not in scores:
            start = time.perf_counter()
            batches = setting.calibration(recipe, labels=recipe.criterion == "fisher")
            scores[key] = (optin.score(setting.model, batches, recipe=recipe), time.perf_counter() - start)
        # The refit is the same for all rows: `exact` spares examples in scoring only.
        refit = Recipe(seed=seed).override(refit__enabled=recipe.refit.enabled)
        batches = setting.calibration(refit)
        for budget in BUDGETS:
            plan = optin.plan(setting.model, scores[key][0], f"{budget}%", recipe=recipe)
            result = optin.apply(setting.model, plan, batches, recipe=refit)
            figures.append(
                {
                    "row": name,
                    "seed": seed,
                    "budget": budget,
                    "macs": plan.pruned.macs,
                    "dense_macs": plan.dense.macs,
                    "score_seconds": scores[key][1],
                    "compensate_seconds": result.report["seconds"].get("compensate", 0.0),
                    **setting.measure(result.model),
                }
            )
    unit = min(group["macs_per_unit"] for group in optin.inspect(setting.model, plan.length)["groups"])
    dense = setting.measure(setting.model)["accuracy"]
    return {"dense_accuracy": dense, "smallest_unit": unit, "figures": figures}


def agreement(setting: Setting) -> dict[str, Any]:
    """Sketch against exact over all heads and 500 random neurons, and what resuming and stacking save."""
    recipe = Recipe().override(calibration__examples=64, trajectory__draws=16)
    batches = Batches.of(setting.calibration(recipe), torch.device("cpu"))
    space, options = describe(setting.model), recipe.trajectory
    neurons = [(group.name, unit) for group in space if group.kind == "neuron" for unit in range(group.size)]
    drawn = torch.randperm(len(neurons), generator=torch.Generator().manual_seed(0))[:500].tolist()
    chosen = {group.name: list(range(group.size)) if group.kind == "head" else [] for group in space}
    for index in sorted(drawn):
        chosen[neurons[index][0]].append(neurons[index][1])
    start = time.perf_counter()
    exact = exact_parts(Scoring(setting.model, space, batches, recipe), chosen)
    exact_seconds = time.perf_counter() - start
    found: dict[str, Any] = {"units": sum(map(len, chosen.values())), "exact_seconds": exact_seconds}
    totals = UnitTotals(space)
    drawn = draw_probes(Job(setting.model, space, batches, recipe.override(trajectory__draws=256)))
    for draw, (_, probe) in enumerate(drawn, 1):
        totals.add(probe)
        if draw in (64, 128, 256):
            sketch = {part: {n: v[chosen[n]] for n, v in groups.items()} for part, groups in totals.mean.items()}
            found[f"draws {draw}"] = {
                kind: spearmanr(*(_kind(space, balanced(parts, 1.0), kind) for parts in (sketch, exact))).statistic
                for kind in ("heads", "neurons")
            }
    # One full masked forward per unit, for four units a group, against the same micro-batch resumed and stacked.
    sample = {name: units[:: max(1, len(units) // 4)][:4] for name, units in chosen.items()}
    micro = next(split(next(iter(batches)), batches.micro_size(options.draws)))
    single = Scoring(setting.model, space, Batches.of([micro], torch.device("cpu")), recipe)
    ratios = []
    for _ in range(5):
        start = time.perf_counter()
        _one_forward_per_unit(setting.model, space, micro, sample, recipe)
        full = (time.perf_counter() - start) / sum(map(len, sample.values()))
        start = time.perf_counter()
        exact_parts(single, chosen)
        ratios.append(full * found["units"] / (time.perf_counter() - start))
    return {**found, "speedup_over_full_forwards": statistics.median(ratios)}


@torch.inference_mode()
def _one_forward_per_unit(model: Any, space: Any, batch: Any, units: Any, recipe: Recipe) -> None:
    """The definition of `exact`, without any of its economies."""
    options = recipe.trajectory
    positions = Positions(batch, options.rows, torch.Generator().manual_seed(0))
    dense: list[Any] = []
    with inference_mode_of(model):
        with recorded_blocks(model, space.blocks, dense):
            reference = read_final(model, model(**batch), positions, options)
        maps = [positions.manifold(hidden_of(block)) for block in dense]
        for name, chosen in units.items():
            for unit in chosen:
                multiplier, blocks = torch.ones(space[name].size), []
                multiplier[unit] = 0
                with gated(model, space, {name: multiplier}), recorded_blocks(model, space.blocks, blocks):
                    output = read_final(model, model(**batch), positions, options)
                for block, phi in zip(blocks, maps, strict=True):
                    manifold_loss(positions.manifold(hidden_of(block)), phi)
                output_loss(output, reference, options.temperature)


def jobs(setting: Setting) -> dict[str, Any]:
    """Every row of the table as one job at 50 %, and the default job on other calibration sets: see `job`."""
    rows = {
        name: measured_job(name) for name in progress(recipes(), description="jobs", console=Console(stderr=True))
    }
    sizes = {str(examples): measured_job(DEFAULT, examples) for examples in EXAMPLES}
    return {"rows": rows, "examples": sizes}


def measured_job(name: str, examples: int = Calibration().examples) -> dict[str, Any]:
    """`job` in a fresh process, so that its peak memory is its own."""
    command = [sys.executable, __file__, "--job", name, "--examples", str(examples)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    figures: dict[str, Any] = json.loads(output.splitlines()[-1])
    return figures


def job(name: str, examples: int) -> None:
    """One job at 50 %: seconds, dense forward passes, peak memory; then throughput at every budget. Prints JSON."""
    setting, recipe = Setting(), recipes()[name]
    refit = Recipe().override(refit__enabled=recipe.refit.enabled, calibration__examples=examples)
    if recipe.calibration.examples == Calibration().examples:
        recipe = recipe.override(calibration__examples=examples)
    batches = setting.calibration(recipe, labels=recipe.criterion == "fisher")
    others = setting.calibration(refit)

    passes = [forward_seconds(setting.model, others) for _ in range(3)]
    before, start = peak(), time.perf_counter()
    scores = optin.score(setting.model, batches, recipe=recipe)
    scored = time.perf_counter()
    plan = optin.plan(setting.model, scores, "50%", recipe=recipe)
    searched = time.perf_counter()
    optin.apply(setting.model, plan, others, recipe=refit, scores=scores)
    end, highest = time.perf_counter(), peak()
    dense = statistics.median(passes + [forward_seconds(setting.model, others) for _ in range(3)])
    figures = {
        "macs": plan.pruned.macs,
        "score_seconds": scored - start,
        "search_seconds": searched - scored,
        "apply_seconds": end - searched,
        "job_seconds": end - start,
        "job_in_forwards": (end - start) / dense,
        "peak_megabytes_above_model": (highest - before) / 2**20,
        "speed": {},
    }
    for budget in BUDGETS:
        small = optin.apply(setting.model, optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)).model
        (speed,) = compare_speed(setting.model, small, lengths=(32,))
        figures["speed"][budget] = speed.to_dict()
    print(json.dumps(figures))


def speed(setting: Setting) -> dict[str, Any]:
    """Throughput at batch 32 against the ideal, at every budget."""
    recipe = Recipe()
    batches = setting.calibration(recipe)
    scores = optin.score(setting.model, batches, recipe=recipe)
    rows = []
    for budget in BUDGETS:
        plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        small = optin.apply(setting.model, plan).model
        rows += [{"budget": budget, **item.to_dict()} for item in compare_speed(setting.model, small, rounds=25)]
    return {"rows": rows}


def gone(setting: Setting) -> dict[str, Any]:
    """Budgets of latency at batch 1, with units alone and where whole parts may go too."""
    recipe, rows = Recipe(), []
    batches = setting.calibration(recipe)
    scores = optin.score(setting.model, batches, recipe=recipe)
    inputs = example_inputs(setting.model, scores.length, 1)
    for budget in LATENCIES:
        for parts in (False, True):
            plan = optin.plan(setting.model, scores, f"{budget}% latency", recipe=recipe.override(parts=parts))
            small = optin.apply(setting.model, plan, batches, recipe=recipe, scores=scores).model
            times = side_by_side([setting.model, small], inputs)
            rows.append(
                {
                    "budget": budget,
                    "parts": parts,
                    "gone": sum(not units for units in plan.keep.values()),
                    "share": statistics.median(after / before for before, after in times),
                    **setting.measure(small),
                }
            )
    return {"rows": rows}


def _kind(space: UnitSpace, values: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return torch.cat([value for name, value in values.items() if f"{space[name].kind}s" == kind])


PARTS = {"quality": quality, "agreement": agreement, "jobs": jobs, "speed": speed, "gone": gone}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to measure: {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--job", help=argparse.SUPPRESS)
    parser.add_argument("--examples", type=int, default=Calibration().examples, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job(arguments.job, arguments.examples)
        return
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}")
    results, setting = Stored("text"), Setting()
    for name in arguments.parts or PARTS:
        results[name] = PARTS[name](setting)
    results.show(render(results))


if __name__ == "__main__":
    main()
