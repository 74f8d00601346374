"""The scores of a run beside its result: a run that is killed goes on with them."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from ..choosing.allocation import check_search
from ..describing import describe
from ..errors import InputError, OptinError
from ..inspection import calibration_of
from ..pipeline import plan, score
from ..recipe import Recipe
from ..running.modules import fingerprint
from ..scoring.criteria import CRITERIA, criterion
from ..scoring.resume import forget
from ..space.loss import Loss, aim_of
from ..space.scores import Curve, Scores
from ..storage.scores import SCORES, load_scores, save_scores
from ..support.files import cache_folder
from ..support.folders import check_new
from ..support.progress import Track
from ..support.untyped import Foreign
from ..support.versions import versions
from .placement import Job

Say = Callable[[str], None]


def unsaid(line: str) -> None:
    """A `Say` that does nothing."""


class Kept:
    """The scores of a run, in a folder beside its result until that is saved.

    Attributes:
        scores: once they were found.
    """

    def __init__(self, place: Path, job: Job, budgets: Sequence[str | None]) -> None:
        self.budgets = budgets
        self.folder, self.partial = (place.with_name(f"{place.name}.{part}") for part in (SCORES, "partial"))
        self.job = job
        self.scores: Scores | None = None
        check_new(self.folder, SCORES, overwrite=True)

    def found(self, track: Track, say: Say) -> Scores:
        """Those of an earlier run of the same command, or new ones.

        Raises:
            OptinError: as `score`; a budget that cannot be reached is refused before.
        """
        self.scores = self._earlier()
        if self.scores is not None:
            say(f"goes on with the scores in {self.folder}")
            return self.scores
        if self.partial.exists():
            say(f"goes on with the partial scores in {self.partial}")
        recipe = self.job.recipe
        _check_choices(recipe)
        for budget in self.budgets:
            _check_budget(self.job, recipe.override(budget=budget, search="lagrange", rearrange=False))
        self.scores = score(self.job.model, self.job.batches, recipe=recipe, track=track, resume=self.partial)
        save_scores(self.scores, self.folder, overwrite=True)
        forget(self.partial)
        return self.scores

    def _earlier(self) -> Scores | None:
        """What lies there, if it is of this network, these inputs and these options."""
        if not self.folder.is_dir():
            return None
        try:
            found = load_scores(self.folder)
        except OptinError:
            return None
        known, calibration = found.provenance, calibration_of(self.job.model, self.job.batches)
        data = known.get("data")
        fits = (
            known.get("network") == fingerprint(self.job.model)
            and isinstance(data, dict)
            and data.get("sha256") == calibration.digest
            and scoring_options(known.get("recipe")) == scoring_options(self.job.recipe.to_dict())
            and known.get("versions") == versions()
        )
        return found if fits else None

    def remove(self) -> None:
        """Once they lie in the result."""
        shutil.rmtree(self.folder, ignore_errors=True)
        forget(self.partial)


def scoring_options(recipe: object) -> Foreign:
    """The options that scores depend on."""
    later = ("budget", "search", "round_to", "latency_batch", "model", "training")
    return {name: value for name, value in recipe.items() if name not in later} if isinstance(recipe, dict) else None


def _check_choices(recipe: Recipe) -> None:
    """Refuse what the search after the scoring would not take.

    Raises:
        InputError: an unknown search, or one that needs other scores.
    """
    check_search(recipe)
    if recipe.rearrange and not criterion(recipe.criterion).gradients:
        known = ", ".join(name for name, one in CRITERIA.items() if one.gradients)
        raise InputError(f"'rearrange' needs scores of the criterion {known}, not of {recipe.criterion}.")


def _check_budget(job: Job, recipe: Recipe) -> None:
    """Refuse a budget that cannot be reached before anything is scored, where that can be said without timing.

    Raises:
        BudgetError: says the smallest that can.
    """
    aim = aim_of(recipe.budget or "")
    if isinstance(aim, Loss):
        return
    if aim.quantity == "latency":
        cache_folder()  # which times are kept in
        return
    if recipe.tokens.merge != "none":
        return
    calibration = calibration_of(job.model, job.batches)
    space = describe(job.model, calibration.sample()).restricted(**recipe.limits)
    length, width = recipe.length or calibration.positions, None if recipe.length else calibration.width
    curves = {group.name: Curve.from_importance(torch.ones(group.size)) for group in space}
    provenance = {"recipe": recipe.to_dict(), "data": {"inputs": calibration.looks}}
    plan(job.model, Scores(space.architecture, curves, length, provenance, width=width), recipe=recipe)
