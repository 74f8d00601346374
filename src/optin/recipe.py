"""A recipe: every option of a run, as one frozen value, to and from YAML."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .errors import InputError, unknown
from .space.budget import EXAMPLES, Budget
from .space.loss import Loss, aim_of
from .space.options import MANY, Calibration, Refit, Task, Tokens, Training, Trajectory
from .support.checked import build, check_types, merge, require, within
from .support.files import given, placed, write_text
from .support.untyped import Figures

ROUNDS = 8  # of exchanges, where they are asked for without a number


@dataclass(frozen=True, slots=True)
class Recipe:
    """Every option of a run.

        recipe = optin.PRESETS["beta"].override(calibration__examples=512, seed=1)
        recipe.save("recipe.yaml")

    Attributes:
        model: local folder or hub id.
        budget: see `optin.space.budget.Budget`; or a loss, see `optin.space.loss.Loss`.
        criterion: key of `CRITERIA` in `scoring/criteria.py`.
        search: key of `optin.choosing.search.SEARCHES`.
        parts: let whole attentions and feed-forward layers go where that is the better choice, not units alone.
        exchange: rounds at most in which units move between groups, within the budget, by the loss of the refitted
            network on held-out inputs.
        queries: where heads share keys and values, let equally many of every group go in place of whole groups, so
            that the key-value cache stays as it is.
        rearrange: choose the units of each group anew for the counts found, by how their removals add up; needs
            scores of the fisher criterion.
        round_to: kept counts of neurons and channels are multiples of this; None takes what processors like
            under a budget of latency and on a GPU, and 1 otherwise.
        length: tokens per example at which MACs are counted; None takes the calibration set's mean.
        latency_batch: examples of that length in the forward that a budget of latency is for.
        offload: for models that are large for this machine: score block by block, with what waits on disk.
        seed: of every random draw.
        exclude: modules and groups that stay whole, by their names, with commas between.
        only: those that alone may lose units, likewise.
    """

    model: str | None = None
    budget: str | None = None
    criterion: str = "compensated"
    search: str = "lagrange"
    parts: bool = False
    exchange: int = 0
    queries: bool = False
    rearrange: bool = False
    round_to: int | None = None
    length: int | None = None
    latency_batch: int = 1
    offload: bool = False
    seed: int = 0
    exclude: str = ""
    only: str = ""
    trajectory: Trajectory = field(default_factory=Trajectory)
    refit: Refit = field(default_factory=Refit)
    tokens: Tokens = field(default_factory=Tokens)
    calibration: Calibration = field(default_factory=Calibration)
    task: Task = field(default_factory=Task)
    training: Training = field(default_factory=Training)

    def __post_init__(self) -> None:
        check_types(self, "")
        if self.round_to is not None:
            within("round_to", self.round_to, 1, MANY)
        within("exchange", self.exchange, 0, MANY)
        within("latency_batch", self.latency_batch, 1, MANY)
        require("seed", self.seed, 0 <= self.seed < 2**63, "between 0 and 2^63")
        if self.length is not None:
            within("length", self.length, 1, MANY)
        if self.budget is not None:
            aim_of(self.budget)

    @property
    def limits(self) -> dict[str, list[str]]:
        """The names in `exclude` and in `only`."""
        return {"exclude": names_in(self.exclude), "only": names_in(self.only)}

    def override(self, **changes: object) -> Recipe:
        """A copy with some options changed; a nested option is written `section__option`.

        None leaves an option as it is, so that the flags of a command line can be passed on unread.

        Raises:
            InputError: an unknown option or a value out of range.
        """
        data = self.to_dict()
        for key, value in changes.items():
            if value is not None:
                *sections, last = key.split("__")
                place = data
                for section in sections:
                    place = place.get(section, {})
                if last not in place:
                    raise InputError(unknown("option", key.replace("__", "."), data))
                place[last] = value
        return Recipe.from_dict(data)

    def to_dict(self) -> Figures:
        """All options as plain nested data."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Recipe:
        """Read nested data; what is not named keeps its default.

        Raises:
            InputError: an unknown option, a value of the wrong type or out of range.
        """
        recipe: Recipe = build(cls, data, "")
        return recipe

    def save(self, path: str | Path) -> None:
        """Write the recipe as YAML, atomically."""
        import yaml  # the help must answer before it is there

        write_text(Path(path), yaml.safe_dump(self.to_dict(), sort_keys=False))

    @classmethod
    def load(cls, path: str | Path) -> Recipe:
        """Read a YAML recipe; `preset: NAME` at its top starts from that preset.

        Raises:
            InputError: no such file, not YAML, or an option that is wrong or there twice.
        """
        from .support.yaml_text import read_options  # as for `save`

        if not isinstance(path, (str, Path)):
            raise InputError(f"a recipe file must be a path, not {type(path).__name__}.")
        file = given(path)
        if str(path) in PRESETS and not file.exists():
            raise InputError(f"no such file: {path}. A preset has that name: --preset {path} (optin.PRESETS).")
        recipe = _from_options(read_options(file))
        task = recipe.task
        data = None if task.data is None else placed(task.data)
        return recipe.override(task__data=data, task__more_data=[placed(place) for place in task.more_data])


BETA = Recipe(trajectory=Trajectory(balance=0.1, coupling=0.5), refit=Refit(floor=1.0, folds=2))
PRESETS: Mapping[str, Recipe] = types.MappingProxyType(
    {
        "default": Recipe(),
        # More time for the last bit of quality: more inputs, every ridge and every map fitted.
        "thorough": Recipe(refit=Refit(folds=2, makers=True, head=True), calibration=Calibration(examples=1024)),
        # The allocation by what comes out: whole parts too, and units that move as the refitted network says.
        "searched": Recipe(parts=True, exchange=ROUNDS),
        # Vision transformers: heads and neurons alone, or tokens too (where coupling made no difference); maps of
        # classes, which are read at their highest score.
        "beta": BETA,
        "segmentation": dataclasses.replace(BETA, trajectory=dataclasses.replace(BETA.trajectory, temperature=1.0)),
        "tau": dataclasses.replace(BETA, trajectory=Trajectory(balance=0.1), tokens=Tokens(merge="search")),
        # The paper's recipe: one masked forward per unit on one batch of 32, global ranking, masks only.
        "paper": Recipe(
            criterion="exact",
            search="paper",
            refit=Refit(enabled=False),
            calibration=Calibration(examples=32),
        ),
        # Kwon et al., NeurIPS 2022: labels, mask search, mask rearrangement, mask tuning with all tokens alike.
        "kwon": Recipe(
            criterion="fisher",
            search="paper",
            rearrange=True,
            refit=Refit(kind="scales", ridge=1e-6, floor=1e3),
            calibration=Calibration(examples=2048),
        ),
    }
)

FOR: Mapping[str, str] = {  # what each preset is for, in a line
    "default": "texts, tables and whatever else: units chosen and refitted by 256 inputs without labels",
    "thorough": "the last bit of quality: 1,024 inputs, every map and every ridge fitted",
    "searched": "more time for the allocation: parts too, and units exchanged by the measured loss",
    "beta": "images: vision transformers and convolutional networks, heads, neurons and channels",
    "segmentation": "scenes: as beta, for maps of classes",
    "tau": "vision transformers whose tokens merge on the way too",
    "paper": "the paper's recipe: one masked forward for every unit, no refit",
    "kwon": "Kwon et al., NeurIPS 2022: needs labels",
}


def preset(name: str) -> Recipe:
    """A named recipe.

    Raises:
        InputError: no such preset.
    """
    if name not in PRESETS:
        raise InputError(unknown("preset", name, PRESETS))
    return PRESETS[name]


def recipe_of(
    value: object,
    *,
    budget: str | float | Budget | Loss | None = None,
    output: object = None,
    exclude: str | Iterable[str] = (),
    only: str | Iterable[str] = (),
) -> Recipe:
    """A recipe as a caller gives it: itself, the name of a preset, options as in a file, or None for the default.

    Args:
        budget, output, exclude, only: take the place of those in it; an `output` that is a function is no part of it.

    Raises:
        InputError: it is none of these, for example a file.
    """
    names = {"exclude": exclude, "only": only}
    return _recipe_of(value).override(
        budget=None if budget is None else str(aim_of(budget)),
        trajectory__output=output if isinstance(output, str) else None,
        **{key: _listed(key, given) for key, given in names.items() if given},
    )


def _listed(option: str, names: object) -> str:
    """Names with commas between, as a caller gives them: one, or several."""
    if isinstance(names, str):
        return names
    found = list(names) if isinstance(names, Iterable) else [None]
    if not all(isinstance(name, str) for name in found):
        raise InputError(f"{option!r} must be names of modules or groups, not {names!r:.60}.")
    return ",".join(map(str, found))


def budgeted(recipe: Recipe) -> Recipe:
    """The recipe, if it has a budget.

    Raises:
        InputError: it has none.
    """
    if recipe.budget is None:
        raise InputError(f"no budget is given: pass budget=, for example {EXAMPLES}.")
    return recipe


def limited(recipe: Recipe, provenance: Mapping[str, object]) -> Recipe:
    """The recipe with the limits of the scores that it is used on.

    Raises:
        InputError: it has others.
    """
    scored = limits_of(provenance)
    if any(recipe.limits.values()) and any(set(names) != set(scored[key]) for key, names in recipe.limits.items()):
        raise InputError(
            f"the scores were made with {scored}, and {recipe.limits} is asked for: these are options of the scoring."
        )
    return recipe.override(**{name: ",".join(names) for name, names in scored.items()})


def _recipe_of(value: object) -> Recipe:
    if value is None:
        return Recipe()
    if isinstance(value, Recipe):
        return value
    if isinstance(value, Mapping):
        return _from_options(value)
    if isinstance(value, str) and value in PRESETS:
        return preset(value)
    raise InputError(
        f"a recipe must be an optin.Recipe, the name of a preset ({', '.join(PRESETS)}) or a dictionary of options, "
        f"not {value!r:.60}. Read a file with optin.Recipe.load."
    )


def _from_options(data: Mapping[str, object]) -> Recipe:
    """Options by name; `preset` starts from that one."""
    options = dict(data)
    start = preset(str(options.pop("preset"))) if "preset" in options else Recipe()
    return Recipe.from_dict(merge(start.to_dict(), options))


def names_in(text: str) -> list[str]:
    """Names with commas between."""
    return [name.strip() for name in text.split(",") if name.strip()]


def limits_of(provenance: Mapping[str, object]) -> dict[str, list[str]]:
    """The `limits` of the recipe that scores or a plan were made by."""
    made = provenance.get("recipe")
    named = {name: made.get(name, "") if isinstance(made, Mapping) else "" for name in ("exclude", "only")}
    return {name: names_in(text) if isinstance(text, str) else [] for name, text in named.items()}
