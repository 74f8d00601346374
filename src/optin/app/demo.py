"""The demo: a real encoder, real sentences, the whole job, nothing from a hub.

MiniLM with a head for sentiment is pruned to half of its MACs with 256 unlabelled sentences, saved, reloaded, and
compared with the dense network on 1,000 held-out ones.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

from safetensors.torch import load_file
from torch import nn

from ..pipeline import apply, score
from ..planning import plan
from ..recipe import Recipe
from ..space.options import Calibration
from ..storage.loading import load
from ..storage.saving import NETWORK, REPORT, update_figures
from ..storage.silenced import silenced
from ..support.clock import Clock
from ..support.folders import check_new
from ..support.progress import Track, silent
from ..support.untyped import Figures, Foreign
from ..tasks import Comparison, Examples, load_tokenizer, task_spec
from ..tasks.text import answers, calibration_batches
from .benchmark import reported_speed
from .demo_data import minilm_folder, rotten_tomatoes
from .quality import outlook_of

BUDGET = "50%"
T = TypeVar("T")
HEAD = Path(__file__).with_name("demo_head.safetensors")
TUNED = ("bert.encoder.layer.4.", "bert.encoder.layer.5.", "bert.pooler.", "classifier.")  # begin the names in it
LABELS = ("neg", "pos")
LENGTH = 128
STEPS = (
    "what units matter to",
    "removal curves",
    "refit of what stays",
    "quality of both",
    "speed, one by one",
    "speed, batches of 32",
)
TOKENS = 32  # of the texts that are timed
CALIBRATION = Calibration(max_length=LENGTH)


class Steps:
    """A `Track` that says how far the demo is.

    Args:
        names: of all bars, in order.
    """

    def __init__(self, track: Track, names: Sequence[str]) -> None:
        self.track, self.names, self.place = track, names, 0

    def __call__(self, items: Iterable[T], description: str, total: int) -> Iterator[T]:
        """Go on to the next step."""
        self.place += 1
        name = self.names[self.place - 1] if self.place <= len(self.names) else description
        yield from self.track(items, f"step {self.place} of {len(self.names)}: {name}", total)


def run_demo(out: Path, track: Track = silent) -> Figures:
    """Run everything; returns the figures and the paths of what was written."""
    track = Steps(track, STEPS)
    check_new(out / "pruned", NETWORK, overwrite=True)
    train, held_out = rotten_tomatoes()
    folder = minilm_folder()
    tokenizer, dense = load_tokenizer(str(folder)), with_head(folder)
    recipe = Recipe(model="sentence-transformers/all-MiniLM-L6-v2", budget=BUDGET, calibration=CALIBRATION)
    batches = calibration_batches(dense, Examples(train.texts), tokenizer, recipe.calibration, recipe.seed)
    clock = Clock()
    scores = score(dense, batches, recipe=recipe, track=track)
    clock.lap("score")
    chosen = plan(dense, scores, recipe=recipe)
    clock.lap("search")
    result = apply(dense, chosen, batches, recipe=recipe, scores=scores, track=track)
    result.report["seconds"] = clock.laps | result.report["seconds"]
    spec, examples = task_spec("text-classification"), Examples(held_out.texts, None, list(held_out.labels))
    result.save(out / "pruned", tokenizer, overwrite=True)
    pruned = load(out / "pruned")
    result.report["quality"] = {
        "examples": len(examples),
        **Comparison.of(answers([pruned, dense], tokenizer, spec, examples, track=track)).to_dict(),
    }
    result.report.update(outlook_of(dense, result, scores))
    result.report.update(reported_speed(dense, pruned, chosen, TOKENS, track=track))
    update_figures(result, out / "pruned")  # with what only the reloaded network could show
    page = out / "pruned" / REPORT
    return {
        "pruning": {**result.report, "saved": str(out / "pruned")},
        "speed": result.report["speed"],
        "open": str(page),
    }


def with_head(folder: Path) -> nn.Module:
    """MiniLM with the head and the last layers that benchmarks/demo_head.py tuned for sentiment."""
    from transformers import AutoModelForSequenceClassification

    names = dict(enumerate(LABELS))
    with silenced():
        model: Foreign = AutoModelForSequenceClassification.from_pretrained(
            folder, id2label=names, label2id={name: label for label, name in names.items()}
        )
    model.load_state_dict({name: value.float() for name, value in load_file(HEAD).items()}, strict=False)
    network: nn.Module = model.eval()
    return network
