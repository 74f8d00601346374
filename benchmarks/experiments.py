"""What was tried to lose less at the same budget, beside the default: the evidence of docs/adr/0011.

    python benchmarks/experiments.py                 all
    python benchmarks/experiments.py "two rounds" --seeds 0

MiniLM on sentences of Rotten Tomatoes, 256 to calibrate on, KL of the outputs to the dense ones and accuracy on 1,000
held-out sentences. What is done is kept, so a run can be continued. Prints the table, and stores it in
docs/results/experiments.md, the figures in docs/results/experiments.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import torch
from measuring import Stored
from narrow_heads import narrowed
from rich.console import Console
from rich.progress import track as progress
from text import SEEDS, Setting
from text_tables import KL_BARS, bar_table, mean_and_spread, table
from torch import nn

import optin
from optin.describing import describe
from optin.recipe import Recipe
from optin.refit.compensation import compensate
from optin.running.batches import Batches
from optin.running.job import Job
from optin.running.outputs import answers
from optin.scoring.criteria import Scoring
from optin.scoring.exact import exact_parts
from optin.scoring.sketch import balanced
from optin.space.plans import Plan
from optin.storage.planned import cut_to_plan
from optin.tasks.metrics import divergence

BUDGETS = (60, 50, 40)
LAMBDAS = (0.1, 0.3, 1.0, 3.0, 10.0)
HELD_OUT = 4  # one batch in so many, to choose lambda by
ALIKE = "kept in bfloat16"
THOROUGH, SHARE = "thorough: these, the head, 1,024 sentences", 0.5  # of the bars that were set for the default
WINDOW = 0.1  # of a group's units on either side of the boundary

Inputs = list[dict[str, torch.Tensor]]
Variant = Callable[[Setting, Recipe, Inputs], dict[int, nn.Module]]


def networks(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """One at every budget."""
    results = optin.sweep(setting.model, batches, [f"{budget}%" for budget in BUDGETS], recipe=recipe)
    return dict(zip(BUDGETS, (result.model for result in results), strict=True))


def option(**changes: Any) -> Variant:
    """The default job with another option."""
    return lambda setting, recipe, batches: networks(setting, recipe.override(**changes), batches)


def thorough(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """The preset of that name."""
    preset = optin.PRESETS["thorough"].override(seed=recipe.seed)
    return networks(setting, preset, setting.calibration(preset))


def in_bfloat16(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """All passes of scoring and refit multiply in bfloat16; statistics and solutions stay in full precision."""
    with torch.autocast("cpu", torch.bfloat16):
        return networks(setting, recipe, batches)


def alike(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[str, float]:
    """The share of the units that the default job keeps and scoring in bfloat16 keeps too, at every budget."""
    exact = optin.score(setting.model, batches, recipe=recipe)
    with torch.autocast("cpu", torch.bfloat16):
        rough = optin.score(setting.model, batches, recipe=recipe)
    shares = {}
    for budget in BUDGETS:
        one, other = (optin.plan(setting.model, s, f"{budget}%", recipe=recipe).keep for s in (exact, rough))
        both = sum(len(set(units) & set(other[name])) for name, units in one.items())
        shares[str(budget)] = both / sum(map(len, one.values()))
    return shares


def two_rounds(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """Scored again on a network that is refitted halfway, by equal factors; both refits follow the dense network."""
    dense, calibration = setting.model, Batches.of(batches, torch.device("cpu"))
    scores = optin.score(dense, batches, recipe=recipe)
    made = {}
    for budget in BUDGETS:
        plan = optin.plan(dense, scores, (budget / 100) ** 0.5, recipe=recipe)
        half = optin.apply(dense, plan, batches, recipe=recipe, scores=scores).model
        again = optin.score(half, batches, recipe=recipe)
        plan = optin.plan(half, again, f"{plan.dense.macs * budget // 100} MACs", recipe=recipe)
        cut_to_plan(half, plan)
        compensate(Job(dense, describe(dense), calibration, recipe), half, plan.keep, scores.weights)
        made[budget] = half
    return made


def narrow_heads(dimensions: int) -> Variant:
    """Heads of fewer dimensions, then the default job on what is left; the refit follows the dense network."""

    def variant(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
        dense, calibration = setting.model, Batches.of(batches, torch.device("cpu"))
        weights = optin.score(dense, batches, recipe=recipe).weights
        narrow = narrowed(dense, batches, dimensions)
        scores = optin.score(narrow, batches, recipe=recipe)
        macs = optin.inspect(dense, scores.length)["macs"]
        made = {}
        for budget in BUDGETS:
            plan = optin.plan(narrow, scores, f"{macs * budget // 100} MACs", recipe=recipe)
            made[budget] = optin.apply(narrow, plan).model
            compensate(Job(dense, describe(dense), calibration, recipe), made[budget], plan.keep, weights)
        return made

    return variant


def lambda_by_held_out(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """The lambda of the least KL on a part of the calibration set, at each budget; then all of the set with it."""
    test = batches[::HELD_OUT]
    rest = [batch for place, batch in enumerate(batches) if place % HELD_OUT]
    dense = outputs(setting.model, test)
    found: dict[int, dict[float, float]] = {budget: {} for budget in BUDGETS}
    for value in LAMBDAS:
        for budget, small in networks(setting, recipe.override(trajectory__balance=value), rest).items():
            found[budget][value] = float(divergence(dense, outputs(small, test)))
    best = {budget: min(values, key=values.__getitem__) for budget, values in found.items()}
    made = {v: networks(setting, recipe.override(trajectory__balance=v), batches) for v in set(best.values())}
    return {budget: made[value][budget] for budget, value in best.items()}


@torch.inference_mode()
def outputs(model: nn.Module, batches: Inputs) -> torch.Tensor:
    """Logits for some inputs."""
    return torch.cat([answers(model(**batch)) for batch in batches])


def exact_at_the_boundary(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """Units near the boundary of each plan change places by their exact trajectory, on 8 sentences."""
    space = describe(setting.model)
    scores = optin.score(setting.model, batches, recipe=recipe)
    few = Batches.of([{name: value[:8] for name, value in batches[0].items()}], torch.device("cpu"))
    made = {}
    for budget in BUDGETS:
        plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        near = {group.name: _near(scores, plan, group.name) for group in space}
        scoring = Scoring(setting.model, space, few, recipe.override(trajectory__draws=2))
        exact = balanced(exact_parts(scoring, near), 1.0)
        keep = {}
        for name, kept in plan.keep.items():
            inside = set(near[name]) & set(kept)
            ranked = sorted(zip(exact[name].tolist(), near[name], strict=True), reverse=True)
            chosen = {unit for _, unit in ranked[: len(inside)]}
            keep[name] = tuple(sorted(set(kept) - inside | chosen))
        plan = dataclasses.replace(plan, keep=keep)
        made[budget] = optin.apply(setting.model, plan, batches, recipe=recipe, scores=scores).model
    return made


def _near(scores: optin.Scores, plan: Plan, name: str) -> list[int]:
    """Units that go last and that would go next."""
    order, removed = scores.curves[name].order.tolist(), plan.sizes[name] - len(plan.keep[name])
    reach = max(1, round(WINDOW * len(order)))
    near: list[int] = order[max(removed - reach, 0) : removed + reach]
    return near


def random_tokens(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """Calibrated on tokens drawn evenly from the vocabulary, between the special ones, as many as in sentences."""
    generator = torch.Generator().manual_seed(recipe.seed)
    special, known = torch.tensor(setting.tokenizer.all_special_ids), torch.arange(len(setting.tokenizer))
    ordinary = known[~torch.isin(known, special)]
    drawn = []
    for batch in batches:
        ids = batch["input_ids"]
        other = ordinary[torch.randint(len(ordinary), ids.shape, generator=generator)]
        drawn.append({**batch, "input_ids": torch.where(torch.isin(ids, special), ids, other)})
    return networks(setting, recipe, drawn)


def shuffled(setting: Setting, recipe: Recipe, batches: Inputs) -> dict[int, nn.Module]:
    """Calibrated on the tokens of all sentences in random order: the right frequencies, no grammar."""
    generator = torch.Generator().manual_seed(recipe.seed)
    special = torch.tensor(setting.tokenizer.all_special_ids)
    ordinary = torch.cat([b["input_ids"][~torch.isin(b["input_ids"], special)] for b in batches])
    pool = iter(
        ordinary[torch.randperm(len(ordinary), generator=generator)].split(
            [int((~torch.isin(b["input_ids"], special)).sum()) for b in batches]
        )
    )
    drawn = []
    for batch in batches:
        ids = batch["input_ids"].clone()
        ids[~torch.isin(ids, special)] = next(pool)
        drawn.append({**batch, "input_ids": ids})
    return networks(setting, recipe, drawn)


VARIANTS: dict[str, Variant] = {
    "default": networks,
    "two rounds": two_rounds,
    "refit of what makes units": option(refit__makers=True),
    "refit of the head": option(refit__head=True),
    "28 of 32 dimensions in heads": narrow_heads(28),
    "24 of 32 dimensions in heads": narrow_heads(24),
    "lambda by held-out KL": lambda_by_held_out,
    "coupling 0.5": option(trajectory__coupling=0.5),
    "exact at the boundary": exact_at_the_boundary,
    "ridge by cross-validation": option(refit__folds=2),
    "refit of what makes units, ridge by cross-validation": option(refit__folds=2, refit__makers=True),
    THOROUGH: thorough,
    "passes in bfloat16": in_bfloat16,
    "shuffled tokens": shuffled,
    "random tokens": random_tokens,
}


def measure(setting: Setting, name: str, seed: int) -> dict[str, Any]:
    """KL and accuracy at every budget, or what `alike` says."""
    recipe = Recipe(seed=seed)
    batches = setting.calibration(recipe)
    if name == ALIKE:
        return alike(setting, recipe, batches)
    figures = {budget: setting.measure(small) for budget, small in VARIANTS[name](setting, recipe, batches).items()}
    return {str(budget): {key: f[key] for key in ("kl", "accuracy")} for budget, f in figures.items()}


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = [
        [name, str(len(by_seed)), *(cell(by_seed, str(budget)) for budget in BUDGETS)]
        for name in VARIANTS
        if (by_seed := results.get(name))
    ]
    head = ["", "seeds", *(f"{budget} % MACs" for budget in BUDGETS)]
    return "\n".join(
        [
            "KL of the outputs to the dense ones ± standard deviation over the seeds, and accuracy in %.",
            "",
            *table(head, rows),
            "",
            *(alike_line(results) if ALIKE in results else []),
            *(bar_table(bars(results[THOROUGH])) if THOROUGH in results else []),
            "",
        ]
    )


def bars(by_seed: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """What was asked of the most thorough job."""
    for budget, most in KL_BARS.items():
        if budget in BUDGETS:
            kl = statistics.mean(found[str(budget)]["kl"] for found in by_seed.values())
            yield f"{THOROUGH}: KL at {budget} % at most {SHARE * most}", f"{kl:.4f}", kl <= SHARE * most


def alike_line(results: dict[str, Any]) -> list[str]:
    """What `alike` found, mean over the seeds."""
    shares = {budget: statistics.mean(found[str(budget)] for found in results[ALIKE].values()) for budget in BUDGETS}
    said = ", ".join(f"{100 * share:.1f} % at {budget} % of the MACs" for budget, share in shares.items())
    return [f"Units of the default's plan that are kept too when scoring multiplies in bfloat16: {said}.", ""]


def cell(by_seed: dict[str, Any], budget: str) -> str:
    """Means and spread."""
    kl, accuracy = ([found[budget][key] for found in by_seed.values()] for key in ("kl", "accuracy"))
    return f"{mean_and_spread(kl, 4)}, {100 * statistics.mean(accuracy):.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("variants", nargs="*", help=f"some of: {', '.join([*VARIANTS, ALIKE])}")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS)
    arguments = parser.parse_args()
    setting, results = Setting(), Stored("experiments")
    jobs = [
        (name, seed)
        for seed in arguments.seeds
        for name in arguments.variants or [*VARIANTS, ALIKE]
        if str(seed) not in results.get(name, {})
    ]
    for name, seed in progress(jobs, description="experiments", console=Console(stderr=True)):
        results[name] = {**results.get(name, {}), str(seed): measure(setting, name, seed)}
    results.show(render(results))


if __name__ == "__main__":
    main()
