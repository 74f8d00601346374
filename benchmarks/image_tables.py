"""Rows of a table of image networks: every recipe, budget and seed, measured on the same test images or scenes."""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any, Protocol, Self

import torch
from dinov2 import SPEC, held_out
from rich.console import Console
from rich.progress import track as progress
from text_tables import table

import optin
from optin.describing import describe
from optin.describing.inputs import image_input
from optin.recipe import Recipe
from optin.refit.compensation import compensate, sensitivities
from optin.running.batches import Batches
from optin.running.job import Job
from optin.running.outputs import answers
from optin.running.store import Store
from optin.space.options import Task
from optin.tasks import Images, load_images, load_model, load_processor
from optin.tasks.metrics import divergence, measure
from optin.tasks.vision import calibration_batches, encode

Rows = dict[str, tuple[Recipe, tuple[int, ...]]]  # by name, with the budgets in percent
REESTIMATED = "batch norm anew"  # ends the names of rows whose batch norms take their statistics again


class Measured(Protocol):
    """A dense network and how those made from it are calibrated and measured.

    Attributes:
        quality: of the dense network, by the names under which it is stored.
    """

    model: Any
    quality: dict[str, float]

    def calibration(self, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
        """The draw of one seed."""

    def measure(self, model: Any) -> dict[str, float]:
        """Figures of a network, among them the KL of its outputs to the dense ones."""


class Setting:
    """A classifier, images without labels to calibrate on, its answers to the test images, and their labels."""

    def __init__(self, model: Any, processor: Any, train: Images, test: Images) -> None:
        self.model, self.processor, self.train = model, processor, train
        name, starts = image_input(model) or "", range(0, len(test), 64)
        self.labels = torch.tensor(test.labels)
        self.tests = [encode(processor, test, range(s, min(s + 64, len(test))), name)[0] for s in starts]
        self.dense = self.answers(model)
        self.quality = {"dense_accuracy": float((self.dense.argmax(-1) == self.labels).float().mean())}

    @classmethod
    def of_fashion(cls, folder: Path, data: str) -> Self:
        """A network in a folder, on Fashion-MNIST."""
        train = load_images(SPEC, Task("fashion-mnist", data), "calibration", labelled=True)
        return cls(load_model(str(folder), dtype=torch.float32), load_processor(str(folder)), train, held_out(data))

    def calibration(self, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
        """The draw of one seed, from the training images."""
        return calibration_batches(self.model, self.train, self.processor, recipe.calibration, recipe.seed)

    @torch.inference_mode()
    def answers(self, model: Any) -> torch.Tensor:
        """Logits for all test images."""
        return torch.cat([answers(model(**batch)) for batch in self.tests])

    def measure(self, model: Any) -> dict[str, float]:
        """Accuracy and KL to the dense outputs."""
        logits = self.answers(model)
        return measure(("accuracy",), logits, self.labels, 10) | {"kl": float(divergence(self.dense, logits))}


def measure_rows(
    setting: Measured,
    rows: Rows,
    fixed: set[str],
    found: dict[str, Any],
    seeds: list[int],
    store: Any,
    *,
    norms: bool = False,
) -> dict[str, Any]:
    """Every row at every budget; what is in `found` already is not measured again.

    Args:
        fixed: rows that do not depend on the seed.
        store: is given the figures after each of them.
        norms: every row has another, of the same networks with the statistics of their batch norms taken anew.
    """
    figures: list[dict[str, Any]] = found.get("figures", [])
    order = [row for name in rows for row in (name, renewed(name))]
    known = {(figure["row"], figure["seed"], figure["budget"]) for figure in figures}
    jobs = [
        (name, recipe.override(seed=seed), missing)
        for seed in seeds
        for name, (recipe, budgets) in rows.items()
        if seed == seeds[0] or name not in fixed
        if (missing := [b for b in budgets if (renewed(name) if norms else name, seed, b) not in known])
    ]
    scores: dict[Any, optin.Scores] = {}
    weights = Weights(setting)
    for name, recipe, missing in progress(jobs, description="quality", console=Console(stderr=True)):
        batches = setting.calibration(recipe)
        key = (recipe.criterion, recipe.trajectory, recipe.tokens.merge, recipe.seed)
        if key not in scores:
            scores[key] = optin.score(setting.model, batches, recipe=recipe)
        for budget in missing:
            plan = optin.plan(setting.model, scores[key], f"{budget}%", recipe=recipe)
            small = optin.apply(setting.model, plan).model
            start = time.perf_counter()
            if recipe.refit.enabled:
                weights.compensate(small, batches, recipe, plan)
            figure = {
                "row": name,
                "seed": recipe.seed,
                "budget": budget,
                "macs": plan.pruned.macs,
                "dense_macs": plan.dense.macs,
                "tokens": list(plan.tokens),
                "compensate_seconds": time.perf_counter() - start,
            }
            if (name, recipe.seed, budget) not in known:
                figures.append({**figure, **setting.measure(small)})
            if norms:
                reestimate(small, [next(iter(batch.values())) for batch in batches])
                figures.append({**figure, "row": renewed(name), **setting.measure(small)})
            figures.sort(key=lambda figure: order.index(figure["row"]))
            store({**setting.quality, "figures": figures})
    return {**setting.quality, "figures": figures}


def renewed(row: str) -> str:
    """The name of the row of the same networks with their batch norms' statistics taken anew."""
    return f"{row}, {REESTIMATED}"


class Weights:
    """The refit of many networks made from one: token sensitivities are drawn once a seed."""

    def __init__(self, setting: Measured) -> None:
        self.model, self.space = setting.model, describe(setting.model)
        self.stores: dict[Any, tuple[Store, Any]] = {}

    def compensate(
        self, small: Any, batches: list[dict[str, torch.Tensor]], recipe: Recipe, plan: optin.Plan
    ) -> None:
        """What `optin.apply` does after shrinking; the same in every digit."""
        job = Job(self.model, self.space, Batches.of(batches, torch.device("cpu")), recipe)
        key = (recipe.trajectory, recipe.seed)
        if key not in self.stores:
            store = Store()
            self.stores[key] = (store, sensitivities(job, store))
        compensate(job, small, plan.keep, self.stores[key][1])


@torch.no_grad()
def reestimate(model: torch.nn.Module, batches: list[torch.Tensor]) -> None:
    """Take the statistics of all batch norms anew from some inputs, in place."""
    norms = [module for module in model.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    momentum = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
        norm.train()
    for batch in batches:
        model(batch)
    for norm, old in zip(norms, momentum, strict=True):
        norm.momentum = old
        norm.eval()


def quality_table(found: dict[str, Any], budgets: tuple[int, ...], tests: str, metric: str = "accuracy") -> list[str]:
    """A metric and the KL of every row at every budget, in Markdown.

    Args:
        tests: how many images of which kind they were measured on.
    """
    figures, rows = found["figures"], []
    for name in dict.fromkeys(figure["row"] for figure in figures):
        cells = [name]
        for budget in budgets:
            here = [f for f in figures if (f["row"], f["budget"]) == (name, budget)]
            values, kl = ([f[key] for f in here] for key in (metric, "kl"))
            cells.append(f"{100 * statistics.mean(values):.1f}, {statistics.mean(kl):.4f}" if here else "")
        rows.append([*cells, str(len({f["seed"] for f in figures if f["row"] == name}))])
    return [
        f"Dense {metric} {100 * found[f'dense_{metric}']:.1f} % on {tests}. In the table it comes in %, then the KL "
        "of the outputs to the dense ones; means over the seeds.",
        "",
        *table(["", *(f"{budget} % MACs" for budget in budgets), "seeds"], rows),
    ]
