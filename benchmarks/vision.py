"""The vision tables: DINOv2 ViT-S/14 with a linear head on Fashion-MNIST, pruned alone and with merged tokens.

    python benchmarks/vision.py                        everything
    python benchmarks/vision.py quality --seeds 0      one seed of one part of: quality, noise, jobs, exact

The network is rebuilt first (benchmarks/dinov2.py, cached). Calibration draws 256 unlabelled training images a
seed; quality is measured on 2,000 test images. Rows that are done are kept, so that a run can be continued.
Prints the tables, and stores them in docs/results/vision.md, the figures in docs/results/vision.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
from functools import partial
from typing import Any

import torch
from dinov2 import DATA, HELD_OUT, SIDE, classifier
from image_tables import Rows, Setting, measure_rows, quality_table
from measuring import Stored, forward_seconds
from text_tables import bar_table, table

import optin
from optin.app.benchmark import compare_speed
from optin.describing import describe
from optin.recipe import Recipe
from optin.running.batches import Batches
from optin.running.gating import gated, masks
from optin.running.merging import all_tokens
from optin.scoring.criteria import Scoring
from optin.scoring.exact import exact_parts

BUDGETS = (85, 75, 65, 50)
ALONE = (85, 75, 65)  # budgets that merging alone is measured at
CRITERIA = ("compensated", "sketch", "magnitude", "random")
BETA, TAU = "beta: compensated + compensation", "tau: compensated + compensation"
MAKERS, HEAD = f"{BETA}, makers too", f"{BETA}, head too"
CONSTANT = "constant merging alone"
FIXED = {"beta: magnitude, masks only", CONSTANT}  # do not depend on the seed
NOISES = {"beta on white noise": 0.0, "beta on noise with the spectrum of photographs": 1.0}
BASELINES = tuple(f"beta: {criterion} + compensation" for criterion in CRITERIA[1:])
BELOW = ((BETA, BASELINES), (TAU, (BETA, CONSTANT, "constant merging + compensation")))
KL_BARS = {BETA: {75: 0.03, 65: 0.05, 50: 0.09}, TAU: {75: 0.013, 65: 0.03, 50: 0.06}}
ACCURACY_BARS = {75: 1.0, 50: 3.0}
SHARES = {BETA: 0.9, TAU: 0.8}
PASSES, EQUAL = 60, 1e-5


def recipes() -> Rows:
    """Every row of the table by name, with its budgets."""
    beta, tau = optin.PRESETS["beta"], optin.PRESETS["tau"]
    constant = beta.override(criterion="random", tokens__merge="constant")
    rows = {
        BETA: (beta, BUDGETS),
        MAKERS: (beta.override(refit__makers=True), BUDGETS),
        HEAD: (beta.override(refit__head=True), BUDGETS),
        TAU: (tau, BUDGETS),
        CONSTANT: (constant.override(refit__enabled=False), ALONE),
        "constant merging + compensation": (constant, ALONE),
    }
    rows |= {name: (beta.override(criterion=name.split()[1]), BUDGETS) for name in BASELINES}
    for criterion in CRITERIA:
        rows[f"beta: {criterion}, masks only"] = (beta.override(criterion=criterion, refit__enabled=False), BUDGETS)
    rows["tau: compensated, masks only"] = (tau.override(refit__enabled=False), BUDGETS)
    return rows


def quality(setting: Setting, found: dict[str, Any], seeds: list[int], store: Any) -> dict[str, Any]:
    """Every row at every budget."""
    return measure_rows(setting, recipes(), FIXED, found, seeds, store)


class Noise:
    """A network calibrated on noise, without any image; measured on images.

    Args:
        power: of the frequency, that amplitudes fall with: 0 for white noise, about 1 in photographs.
    """

    def __init__(self, setting: Setting, power: float) -> None:
        self.setting, self.power = setting, power
        self.model, self.quality, self.measure = setting.model, setting.quality, setting.measure

    def calibration(self, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
        """As many as the draw of images."""
        generator = torch.Generator().manual_seed(recipe.seed)
        batches = self.setting.calibration(recipe)
        return [{name: self._drawn(value, generator) for name, value in batch.items()} for batch in batches]

    def _drawn(self, images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Channels of mean 0 and deviation 1, as processors make them; shape (example, channel, height, width)."""
        height, width = images.shape[-2:]
        rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
        frequency = (rows.square() + columns.square()).sqrt()
        frequency[0, 0] = torch.inf
        spectrum = torch.fft.rfft2(torch.randn(images.shape, generator=generator)) / frequency**self.power
        values = torch.fft.irfft2(spectrum, s=(height, width))
        return (values / values.std((-2, -1), keepdim=True)).to(images)


def noise(setting: Setting, found: dict[str, Any], seeds: list[int], store: Any) -> dict[str, Any]:
    """Calibration without images, by kind of noise."""
    found = dict(found)
    for name, power in NOISES.items():
        rows: Rows = {name: (optin.PRESETS["beta"], BUDGETS)}

        def keep(part: dict[str, Any], name: str = name) -> None:
            store({**found, name: part})

        found[name] = measure_rows(Noise(setting, power), rows, set(), found.get(name, {}), seeds, keep)
    return found


def jobs(setting: Setting, found: dict[str, Any], seeds: list[int], store: Any) -> dict[str, Any]:
    """Seconds per stage in dense forward passes, and throughput, for both configurations."""
    rows = found.get("rows", {})
    for name, preset in ((BETA, "beta"), (TAU, "tau")):
        if name in rows:
            continue
        recipe = optin.PRESETS[preset]
        batches = setting.calibration(recipe)

        passes = [forward_seconds(setting.model, batches) for _ in range(3)]
        start = time.perf_counter()
        scores = optin.score(setting.model, batches, recipe=recipe)
        scored = time.perf_counter()
        plan = optin.plan(setting.model, scores, "50%", recipe=recipe)
        searched = time.perf_counter()
        optin.apply(setting.model, plan, batches, recipe=recipe, scores=scores)
        end = time.perf_counter()
        dense = statistics.median(passes + [forward_seconds(setting.model, batches) for _ in range(2)])
        row: dict[str, Any] = {
            "forward_seconds": dense,
            "score_in_forwards": (scored - start) / dense,
            "search_seconds": searched - scored,
            "apply_in_forwards": (end - searched) / dense,
            "speed": {},
            "difference": 0.0,
        }
        for budget in BUDGETS:
            chosen = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
            small = optin.apply(setting.model, chosen).model
            row["difference"] = max(row["difference"], difference(setting, chosen, small))
            (speed,) = compare_speed(setting.model, small, lengths=(SIDE,))
            row["speed"][budget] = speed.to_dict()
        rows[name] = row
    return {"rows": rows}


@torch.inference_mode()
def difference(setting: Setting, plan: optin.Plan, small: Any) -> float:
    """The largest difference between the shrunk and the gated network on a batch, over the largest output.

    All tokens stay: the keys of removed heads, which a gated network still has, would match other tokens.
    """
    batch = setting.tests[0]
    with gated(setting.model, describe(setting.model), masks(setting.model, plan)):
        expected = setting.model(**batch).logits
    with all_tokens(small):
        return float((small(**batch).logits - expected).abs().max() / expected.abs().max())


def exact(setting: Setting, found: dict[str, Any], seeds: list[int], store: Any) -> dict[str, Any]:
    """Exact scores of 200 units: the time of one, against one full forward."""
    recipe = optin.PRESETS["beta"].override(calibration__examples=16, trajectory__draws=4)
    batches, space = setting.calibration(recipe), describe(setting.model)
    units = [(group.name, unit) for group in space for unit in range(group.size)]
    drawn = torch.randperm(len(units), generator=torch.Generator().manual_seed(0))[:200].tolist()
    chosen: dict[str, list[int]] = {group.name: [] for group in space}
    for index in sorted(drawn):
        chosen[units[index][0]].append(units[index][1])
    start = time.perf_counter()
    exact_parts(Scoring(setting.model, space, Batches.of(batches, torch.device("cpu")), recipe), chosen)
    seconds = time.perf_counter() - start
    full = forward_seconds(setting.model, batches)
    return {"units": len(drawn), "seconds": seconds, "factor": full * len(drawn) / seconds}


PARTS = {"quality": quality, "noise": noise, "jobs": jobs, "exact": exact}


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines: list[str] = []
    if found := results.get("quality"):
        drawn = [figure for part in results.get("noise", {}).values() for figure in part["figures"]]
        figures = {**found, "figures": found["figures"] + drawn}
        lines += quality_table(figures, BUDGETS, f"{HELD_OUT:,} test images")
    if found := results.get("jobs"):
        rows = [
            [
                name,
                f"{row['score_in_forwards']:.1f}",
                f"{row['search_seconds']:.1f}",
                f"{row['apply_in_forwards']:.1f}",
                *(f"{speed['speedup']:.2f} ({speed['share_of_ideal']:.2f})" for speed in row["speed"].values()),
                f"{row['difference']:.0e}",
            ]
            for name, row in sorted(found["rows"].items(), key=lambda item: list(SHARES).index(item[0]))
        ]
        lines += [
            "",
            "Scoring and refit at 50 % in dense forward passes over the 256 calibration images; then the speed-up at "
            f"batch 32, {SIDE} pixels, with its share of the ideal in brackets, and how far the shrunk network is "
            "from the gated one, over the largest output.",
            "",
            *table(
                ["", "score", "search, s", "refit", *(f"at {budget} %" for budget in BUDGETS), "shrunk to gated"],
                rows,
            ),
        ]
    if found := results.get("exact"):
        lines += [
            "",
            f"`exact` for {found['units']} units took {found['seconds']:.1f} s, {found['factor']:.1f} times less "
            "than one full forward per unit.",
        ]
    if checks := [*quality_bars(results.get("quality")), *job_bars(results.get("jobs"))]:
        lines += ["", "Bars set beforehand:", "", *bar_table(checks)]
    return "\n".join(lines).strip() + "\n"


Bars = list[tuple[str, str, bool]]  # what was asked for, what was measured, and whether it was reached


def job_bars(found: dict[str, Any] | None) -> Bars:
    """The bars on time and on equality."""
    checks: Bars = []
    for row, share in SHARES.items() if found else ():
        measured = found["rows"][row]
        least = min(speed["share_of_ideal"] for speed in measured["speed"].values())
        passes, apart = measured["score_in_forwards"], measured["difference"]
        checks += [
            (f"throughput of {short(row)} at least {share} of the ideal", f"{least:.2f}", least >= share),
            (f"scoring for {short(row)} in at most {PASSES} dense passes", f"{passes:.1f}", passes <= PASSES),
            (f"shrunk equals gated for {short(row)} to {EQUAL:.0e}", f"{apart:.0e}", apart <= EQUAL),
        ]
    return checks


def quality_bars(found: dict[str, Any] | None) -> Bars:
    """The bars on KL and accuracy."""
    checks: Bars = []
    if not found:
        return checks
    kl = {
        (row, budget): statistics.mean(f["kl"] for f in found["figures"] if (f["row"], f["budget"]) == (row, budget))
        for row, budget in {(f["row"], f["budget"]): None for f in found["figures"]}
    }
    for row, levels in KL_BARS.items():
        for budget, most in levels.items():
            if (row, budget) in kl:
                value = kl[row, budget]
                checks.append((f"KL of {short(row)} at {budget} % at most {most}", f"{value:.4f}", value <= most))
    for row, others in BELOW:
        for budget in BUDGETS:
            measured = [(kl[other, budget], other) for other in others if (other, budget) in kl]
            if (row, budget) in kl and measured:
                value, (least, other) = kl[row, budget], min(measured)
                bar = f"KL of {short(row)} at {budget} % below {least:.4f} ({other}, the best of the others)"
                checks.append((bar, f"{value:.4f}", value < least))
    for budget, points in ACCURACY_BARS.items():
        accuracy = [f["accuracy"] for f in found["figures"] if (f["row"], f["budget"]) == (BETA, budget)]
        if accuracy:
            lost = 100 * (found["dense_accuracy"] - statistics.mean(accuracy))
            checks.append((f"points lost by beta at {budget} % at most {points}", f"{lost:.2f}", lost <= points))
    return checks


def short(row: str) -> str:
    """beta or tau."""
    return row.partition(":")[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"parts to measure: {', '.join(PARTS)}; all if none is named")
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    if unknown := set(arguments.parts) - set(PARTS):
        parser.error(f"unknown part {sorted(unknown)[0]!r}")
    results, setting = Stored("vision"), Setting.of_fashion(classifier(arguments.data), arguments.data)
    for name in arguments.parts or PARTS:
        results[name] = PARTS[name](
            setting, results.get(name, {}), arguments.seeds, partial(results.__setitem__, name)
        )
    results.show(render(results))


if __name__ == "__main__":
    main()
