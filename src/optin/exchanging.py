"""The exchange: an allocation is improved by the measured loss of the refitted network (docs/method.md, Exchange).

In every round each consumer is refitted at three counts, the one that is kept and one step to either side
(`refit.levels`), and each group is measured on held-out inputs at either side while all others stay. The exchanges
that this promises are measured all together, half of them and a quarter; the best of these is refitted and measured
in the next round. Where a round gains less than a hundredth, steps become half as large.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from torch import Tensor, nn

from .choosing.allocation import check_exchange, kept_units
from .choosing.exchanges import PARTS, exchanges, steps
from .choosing.search import choices_of, fill, limit_of
from .errors import CheckpointError, InputError, OptinError
from .inspection import calibration_of
from .planning import Room, room_for
from .recipe import ROUNDS, Recipe, budgeted, recipe_of
from .refit.compensation import sensitivities
from .refit.levels import Levels, movable
from .running.batches import Batches
from .running.job import Job
from .running.modules import fingerprint
from .running.outputs import Reader, reading
from .running.replay import recorded_blocks, resumed_at, template, with_last_state
from .running.store import Store
from .running.tensors import hidden_of
from .running.twins import stage
from .scoring.loss import HeldOut
from .space.loss import Loss
from .space.plans import Plan
from .space.scores import Scores
from .support.files import json_text, read_json, write_text
from .support.progress import Track, automatic, silent
from .support.versions import versions

GAIN = 0.01  # of the loss; less than that, and the step becomes finer
SHARES = (1, 2, 4)  # all exchanges that promise a gain, half of them, a quarter


@stage
def exchange(
    model: nn.Module,
    plan: Plan,
    batches: Iterable[Mapping[str, object]],
    *,
    scores: Scores,
    recipe: Recipe | str | Mapping[str, object] | None = None,
    output: str | Reader | None = None,
    track: Track = automatic,
    resume: str | Path | None = None,
) -> Plan:
    """A plan of the same budget whose refitted network loses less on inputs that are held out.

        plan = optin.exchange(model, plan, batches, scores=scores)

    Costs about as many forwards of a quarter of the inputs, in every round, as there are groups, twice.

    Args:
        plan: of `plan`, with these scores.
        recipe: the plan's own, if not given; its `exchange` is the most rounds there are, 8 if it is 0.
        output, track: as in `score`.
        resume: a file in which rounds are kept, so that a killed run can continue.

    Raises:
        CheckpointError: the file is of another run.
        InputError: fewer than eight inputs, a network whose blocks run more than once, or a plan that costs more than
            the budget or is not of these scores and options.
    """
    recipe = recipe_of(plan.provenance.get("recipe") if recipe is None else recipe, output=output)
    known = plan.provenance.get("budget") if recipe.budget is None else None
    recipe = recipe.override(exchange=recipe.exchange or ROUNDS, budget=known)
    room = room_for(model, scores, budgeted(recipe), silent)
    calibration = calibration_of(model, batches)
    check_exchange(room.space, recipe, calibration.examples)
    with reading(output):
        return Exchange(model, room, plan, calibration, output, None if resume is None else Path(resume)).run(track)


@dataclass
class _State:
    """How far an exchange is.

    Attributes:
        identity: of the network, its inputs, the options and where it started.
        kept: units of every group, which the next round refits.
        best: those of the smallest loss so far, as refitted and measured.
        place: of the step in `PARTS`.
        rounds: that were done.
        losses: of `best`, from the start on.
    """

    identity: str
    kept: dict[str, int]
    best: dict[str, int]
    place: int = 0
    rounds: int = 0
    losses: list[float] = field(default_factory=list)

    def settle(self, loss: float) -> bool:
        """Take what was refitted if it is the best; whether to go on from it with the same step."""
        if self.losses and self.kept == self.best:
            return True
        last = self.losses[-1] if self.losses else math.inf
        if loss < last:
            self.best = self.kept
            self.losses.append(loss)
        self.kept = self.best
        if loss < (1 - GAIN) * last:
            return True
        self.place += 1
        return False


class Exchange:
    """Units move between the groups of a plan.

    Args:
        room: the budget, and what choices cost.
        plan: where it starts.
        batches: calibration inputs, of which every fourth is held out.
        path: a file in which rounds are kept, so that a run that was killed goes on.
    """

    def __init__(
        self,
        model: nn.Module,
        room: Room,
        plan: Plan,
        batches: Batches,
        output: str | Reader | None,
        path: Path | None,
    ) -> None:
        self.room, self.path = room, path
        calibration, held_out = batches.parts()
        self.job = Job(model, room.space, calibration, room.recipe, silent)
        self.held_out = HeldOut(model, held_out, room.recipe, Loss(1.0, "loss"), output)
        self.choices = choices_of(room.space, room.scores.curves, room.multiples)
        self.limit = limit_of(room.budget, room.cost, self.choices)
        self.groups = movable(self.job)
        if self._strange(plan.kept):
            raise InputError(
                f"the plan and these scores and options do not fit: {self._strange(plan.kept)!r} keeps a number that "
                "they do not offer. Make the plan with them."
            )
        if room.cost(plan.kept) > self.limit:
            raise InputError(f"the plan costs more than {room.budget}. Plan for that budget first.")
        curves = [(name, curve.order.tolist(), curve.cost.tolist()) for name, curve in room.scores.curves.items()]
        options = room.recipe.override(offload=False).to_dict()
        known = (fingerprint(model), batches.digest, options, versions(), dict(plan.keep), curves)
        limits = (self.limit, dict(room.multiples))
        start = _State(hashlib.sha256(repr((known, limits)).encode()).hexdigest(), plan.kept, plan.kept)
        self.state = _earlier(path, start)
        if any(self._strange(kept) or room.cost(kept) > self.limit for kept in (self.state.kept, self.state.best)):
            raise CheckpointError(f"{path} is damaged. Remove it to exchange from the start.")

    def _strange(self, kept: Mapping[str, int]) -> str:
        """The first group that keeps a number which is no choice, or that there is not; empty if there is none."""
        apart = kept.keys() ^ self.choices.keys()
        wrong = {name for name in kept.keys() - apart if kept[name] not in self.choices[name].counts}
        return min(apart | wrong, default="")

    def run(self, track: Track) -> Plan:
        """Exchange until nothing is gained, or there were as many rounds as the recipe allows."""
        left = max(0, self.room.recipe.exchange - self.state.rounds)
        measured = 2 * len(self.groups) + len(SHARES) + 1
        with Store() as store:
            self.weights = sensitivities(self.job, store)
            for _ in track(self._rounds(), "exchange", left * measured):
                pass
        found, losses = self.room.plan(self.state.best), self.state.losses
        said = {"rounds": self.state.rounds, "before": losses[0], "loss": losses[-1]}
        return dataclasses.replace(found, provenance={**found.provenance, "exchange": said})

    def _rounds(self) -> Iterator[None]:
        state = self.state
        while self.groups and state.rounds < self.room.recipe.exchange and state.place < len(PARTS):
            yield from self._round()
            state.rounds += 1
            self._keep()
        if state.kept != state.best or not state.losses:  # what the last round chose is refitted and measured too
            levels = Levels(self.job, state.kept, {}, self._units, self.weights)
            state.settle(self.held_out.lost(levels.network))
            self._keep()
            yield

    def _keep(self) -> None:
        if self.path is not None:
            write_text(self.path, json_text(dataclasses.asdict(self.state)))

    def _round(self) -> Iterator[None]:
        """Refit what is kept and measure it; then its neighbours, and what they promise."""
        state, cost = self.state, self.room.cost
        offered = steps({name: self.choices[name] for name in self.groups}, state.kept, PARTS[state.place])
        levels = Levels(self.job, state.kept, offered, self._units, self.weights)
        self.reached = _Reached(self.job, levels.network)
        now = self.held_out.by_batch(levels.network, self.reached.recording)
        yield
        if not state.settle(self._mean(now)):
            return
        asked, confirmed = self._halves()
        rises: dict[str, dict[int, float]] = {name: {} for name in self.groups}
        for name, counts in offered.items():
            for count in counts:
                rises[name][count] = self._rise(levels, {name: count}, now, asked)
                yield
        found, best = exchanges(rises, state.kept, cost, self.limit), 0.0
        for share in SHARES:
            if number := len(found) // share:
                rise = self._rise(levels, found[number - 1], now, confirmed)
                yield
                if rise < best:
                    best, state.kept = rise, fill(found[number - 1], self.choices, cost, self.limit)
        if -best < GAIN * self._mean(now, confirmed):
            state.place += 1

    def _halves(self) -> tuple[Sequence[int], Sequence[int]]:
        """The batches that exchanges are chosen on in this round, and those that must confirm them."""
        every = range(len(self.held_out.batches))
        one, other = every[::2], every[1::2] or every
        return (one, other) if self.state.rounds % 2 else (other, one)

    def _units(self, group: str, count: int) -> Sequence[int]:
        return kept_units(self.room.scores, {group: count}, self.room.recipe)[group]

    def _rise(self, levels: Levels, counts: Mapping[str, int], before: Tensor, batches: Sequence[int]) -> float:
        """How much more is lost on some batches where some groups are at other levels; they are put back."""
        changed = [name for name, count in counts.items() if count != levels.kept[name]]
        for name in changed:
            levels.put(name, counts[name])
        first = min(self.job.space[name].layer for name in changed)
        losses = self.held_out.by_batch(levels.network, partial(self.reached.behind, first), batches)
        for name in changed:
            levels.put(name, levels.kept[name])
        return self._mean(losses - before, batches)

    def _mean(self, losses: Tensor, batches: Sequence[int] | None = None) -> float:
        """Over the rows of some batches, or of all."""
        chosen = list(range(len(losses)) if batches is None else batches)
        shares = self.held_out.shares[chosen]
        return float(losses[chosen] @ shares / shares.sum())


class _Reached:
    """What the blocks of a network return on the held-out inputs: another that differs later goes on from there."""

    def __init__(self, job: Job, network: nn.Module) -> None:
        self.network, self.space, self.store = network, job.space, Store()
        self.templates: dict[int, list[object]] = {}

    @contextlib.contextmanager
    def recording(self, index: int) -> Iterator[None]:
        """Record one forward."""
        outputs: list[object] = []
        with recorded_blocks(self.network, self.space.blocks, outputs):
            yield
        self.templates[index] = list(map(template, outputs))
        for place, output in enumerate(outputs):
            self.store[index, place] = hidden_of(output)

    @contextlib.contextmanager
    def behind(self, layer: int, index: int) -> Iterator[None]:
        """Have a forward begin with a block; where blocks form no chain it runs whole."""
        if not self.space.chained or not layer:
            yield
            return
        before = with_last_state(self.templates[index][:layer], self.store[index, layer - 1])
        with resumed_at(self.network, self.space.blocks, before):
            yield


def _earlier(path: Path | None, start: _State) -> _State:
    """How far an earlier run of the same came; the start, if there was none.

    Raises:
        CheckpointError: the file is damaged, or of another run.
    """
    if path is None or not path.exists():
        return start
    try:
        found = _State(**read_json(path))
    except (OptinError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged ({error}). Remove it to exchange from the start.") from error
    if found.identity != start.identity:
        raise CheckpointError(f"{path} holds the rounds of another run. Remove it or choose another file.")
    return found
