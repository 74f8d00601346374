"""The scores of a run beside its result: a run that is killed goes on with them."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ..errors import OptinError
from ..inspection import calibration_of
from ..pipeline import score
from ..running.modules import fingerprint
from ..scoring.resume import forget
from ..space.scores import Scores
from ..storage.scores import SCORES, load_scores, save_scores
from ..support.folders import check_new
from ..support.progress import Track
from ..support.untyped import Foreign
from ..support.versions import versions
from .placement import Job
from .rehearsal import check_choices

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
        options = job.recipe.override(offload=False).to_dict(), list(budgets)
        of = hashlib.sha256(repr(options).encode()).hexdigest()[:8]  # another budget has rounds of its own
        self.rounds = place.with_name(f"{place.name}.{of}.rounds")
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
        check_choices(self.job, self.budgets)
        job = self.job
        self.scores = score(job.model, job.batches, recipe=job.recipe, track=track, resume=self.partial)
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
        self.rounds.unlink(missing_ok=True)


def scoring_options(recipe: object) -> Foreign:
    """The options that scores depend on."""
    later = ("budget", "search", "parts", "exchange", "round_to", "latency_batch", "offload", "model", "training")
    return {name: value for name, value in recipe.items() if name not in later} if isinstance(recipe, dict) else None
