"""The table of the README: MiniLM on Rotten Tomatoes sentences, pruned by every criterion.

    python benchmarks/text.py                 everything
    python benchmarks/text.py quality cost    some parts of: quality, agreement, cost, speed

The dense network is fine-tuned first (benchmarks/finetune_text.py, cached). Calibration draws 256 unlabelled
training sentences a seed; `exact`, which evaluates every unit, and the paper's preset score on 8 of them. Quality
is measured on 1,000 held-out sentences. Prints the tables, and stores them in docs/results/text.md, the figures
in docs/results/text.json, and both in the README.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from finetune_text import finetune
from rich.console import Console
from rich.progress import track as progress
from scipy.stats import spearmanr

import optin
from optin.arch import describe
from optin.assets import rotten_tomatoes
from optin.batches import Batches, split
from optin.benchmark import compare_speed
from optin.criteria import Scoring
from optin.criteria.exact import exact_parts
from optin.criteria.sketch import UnitTotals, balanced
from optin.gating import gated
from optin.modules import hidden_of, inference_mode_of
from optin.probe import draw_probes, read_final
from optin.recipe import Recipe
from optin.replay import recorded_blocks
from optin.tasks import Examples, calibration_batches, evaluate, load_model, load_tokenizer, task_spec
from optin.trajectory import draw_rows, gram, manifold, manifold_loss, output_loss

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "docs" / "results"
BUDGETS = (70, 60, 50, 40, 30)
SEEDS = (0, 1, 2)
CRITERIA = ("compensated", "sketch", "exact", "fisher", "magnitude", "random")
# For criteria that evaluate every unit: eight sentences, in two micro-batches.
FEW: dict[str, Any] = {"calibration__examples": 8, "trajectory__draws": 2}
LENGTH = 128  # tokens at most
BEGIN, END = "<!-- benchmarks/text.py -->", "<!-- end -->"  # between them the README holds the tables


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
        return calibration_batches(examples, self.tokenizer, recipe.calibration, LENGTH, recipe.seed, given)

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
    for draw, probe in enumerate(
        draw_probes(setting.model, space, batches, recipe.override(trajectory__draws=256).trajectory, 0), 1
    ):
        totals.add(probe)
        if draw in (64, 128, 256):
            sketch = {part: {n: v[chosen[n]] for n, v in groups.items()} for part, groups in totals.mean.items()}
            found[f"draws {draw}"] = {
                kind: spearmanr(*(_kind(balanced(parts, 1.0), kind) for parts in (sketch, exact))).statistic
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
    mask, options = batch["attention_mask"].bool(), recipe.trajectory
    rows = draw_rows(mask, options.rows, torch.Generator().manual_seed(0))
    dense: list[Any] = []
    with inference_mode_of(model):
        with recorded_blocks(model, space.blocks, dense):
            reference = read_final(model, model(**batch), batch, rows, options)
        grams = [gram(manifold(hidden_of(block), rows)) for block in dense]
        for name, chosen in units.items():
            for unit in chosen:
                multiplier, blocks = torch.ones(space[name].size), []
                multiplier[unit] = 0
                with gated(model, space, {name: multiplier}), recorded_blocks(model, space.blocks, blocks):
                    output = read_final(model, model(**batch), batch, rows, options)
                for block, phi in zip(blocks, grams, strict=True):
                    manifold_loss(manifold(hidden_of(block), rows), phi)
                output_loss(output, reference, options.temperature)


def cost(setting: Setting) -> dict[str, Any]:
    """The default job in dense forward passes over its calibration set, and its peak memory, in a fresh process."""
    runs = []
    for _ in range(3):
        output = subprocess.run(
            [sys.executable, __file__, "--job"], check=True, capture_output=True, text=True
        ).stdout
        runs.append(json.loads(output.splitlines()[-1]))
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def job() -> None:
    """One default job at 50 %, measured; prints one line of JSON."""
    setting = Setting()
    batches = setting.calibration(Recipe())

    def forward() -> float:
        start = time.perf_counter()
        with torch.inference_mode():
            for batch in batches:
                setting.model(**batch)
        return time.perf_counter() - start

    passes = [forward() for _ in range(3)]
    before = _peak()
    start = time.perf_counter()
    result = optin.prune(setting.model, batches, "50%")
    seconds = time.perf_counter() - start
    passes += [forward() for _ in range(3)]
    dense = statistics.median(passes)
    figures = {f"{name}_seconds": value for name, value in result.report["seconds"].items()}
    figures |= {"job_seconds": seconds, "forward_seconds": dense, "job_in_forwards": seconds / dense}
    print(json.dumps(figures | {"peak_megabytes_above_model": (_peak() - before) / 2**20}))


def _peak() -> int:
    """Largest resident size so far, in bytes."""
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


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


def _kind(values: dict[str, torch.Tensor], kind: str) -> torch.Tensor:
    return torch.cat([value for name, value in values.items() if name.endswith(kind)])


PARTS = {"quality": quality, "agreement": agreement, "cost": cost, "speed": speed}


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines: list[str] = []
    if found := results.get("quality"):
        lines += [
            f"Dense accuracy {100 * found['dense_accuracy']:.1f} % on 1,000 held-out sentences; mean of "
            f"{len(SEEDS)} seeds, ± standard deviation. Accuracy in %, then KL of the outputs to the dense ones.",
            "",
            f"| criterion | {' | '.join(f'{budget} % MACs' for budget in BUDGETS)} | score, s | refit, s |",
            "|---|" + "---|" * (len(BUDGETS) + 2),
        ]
        for name in dict.fromkeys(figure["row"] for figure in found["figures"]):
            rows = [figure for figure in found["figures"] if figure["row"] == name]
            cells = []
            for budget in BUDGETS:
                here = [figure for figure in rows if figure["budget"] == budget]
                accuracy, kl = ([figure[key] for figure in here] for key in ("accuracy", "kl"))
                cells.append(
                    f"{100 * statistics.mean(accuracy):.1f} ± {100 * statistics.stdev(accuracy):.1f}, "
                    f"{statistics.mean(kl):.4f}"
                )
            seconds = [
                statistics.mean(figure[key] for figure in rows) for key in ("score_seconds", "compensate_seconds")
            ]
            label = f"**{name}**" if name == "compensated + compensation" else name
            lines.append(f"| {label} | {' | '.join(cells)} | {seconds[0]:.1f} | {seconds[1]:.1f} |")
        slack = [figure["budget"] / 100 * figure["dense_macs"] - figure["macs"] for figure in found["figures"]]
        lines += [
            "",
            f"Budgets: {len(slack)} plans leave between {min(slack):,.0f} and {max(slack):,.0f} MACs unused; "
            f"the smallest unit costs {found['smallest_unit']:,}.",
        ]
    if found := results.get("agreement"):
        lines += [
            "",
            f"Spearman correlation of `sketch` with `exact` over {found['units']} units (all heads, 500 neurons):",
            "",
            "| draws | heads | neurons |",
            "|---|---|---|",
            *(
                f"| {key.removeprefix('draws ')} | {value['heads']:.3f} | {value['neurons']:.3f} |"
                for key, value in found.items()
                if key.startswith("draws ")
            ),
            "",
            f"`exact` took {found['exact_seconds']:.0f} s; resuming behind the consumer and stacking units is "
            f"{found['speedup_over_full_forwards']:.1f} times faster than one full forward per unit.",
        ]
    if found := results.get("cost"):
        lines += [
            "",
            f"The default job at 50 %: {found['job_seconds']:.1f} s (score {found['score_seconds']:.1f}, search "
            f"{found['search_seconds']:.2f}, shrink {found['shrink_seconds']:.2f}, compensate "
            f"{found['compensate_seconds']:.1f}), as long as {found['job_in_forwards']:.1f} dense forward passes "
            "over its calibration set; peak memory "
            f"{found['peak_megabytes_above_model']:.0f} MB above the loaded model.",
        ]
    if found := results.get("speed"):
        lines += [
            "",
            "| budget | batch x tokens | dense, ms | pruned, ms | speed-up | ideal | share of ideal |",
            "|---|---|---|---|---|---|---|",
            *(
                f"| {row['budget']} % | {row['batch']} x {row['length']} | {row['dense_ms']:.1f} | "
                f"{row['pruned_ms']:.1f} | {row['speedup']:.2f} | {row['ideal']:.2f} | {row['share_of_ideal']:.2f} |"
                for row in found["rows"]
            ),
        ]
    return "\n".join(lines).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to measure: {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--job", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.job:
        job()
        return
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}")
    stored = RESULTS / "text.json"
    results = json.loads(stored.read_text()) if stored.exists() else {}
    setting = Setting()
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in arguments.parts or PARTS:
        results[name] = PARTS[name](setting)
        stored.write_text(json.dumps(results, indent=1) + "\n")
    tables = render(results)
    print(tables)
    (RESULTS / "text.md").write_text(tables)
    readme = (ROOT / "README.md").read_text()
    head, _, rest = readme.partition(BEGIN)
    (ROOT / "README.md").write_text(f"{head}{BEGIN}\n{tables}{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
