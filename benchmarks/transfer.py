"""Transfer: prune on some classes of Fashion-MNIST, then fine-tune the small network on the others.

    python benchmarks/transfer.py

The shape of the paper's experiment (prune on ImageNet, fine-tune on CIFAR-10) with images that can be had anywhere.
DINOv2 ViT-S/14 (benchmarks/dinov2.py) gets a head for five classes and is pruned to 50 % of its MACs on 256 of their
images, without labels. Then it and the small ones are fine-tuned on the five other classes: the new head alone, all
weights, and all weights with the fine-tuned dense network as teacher. Prints the table, and stores it in
docs/results/transfer.md, the figures in docs/results/transfer.json.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

from dinov2 import DATA, SPEC, classifier
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import table

import optin
from optin.app.finetune import finetune
from optin.space.options import Task, Training
from optin.tasks import Images, load_images, load_model, load_processor
from optin.tasks.vision import calibration_batches

SOURCE, TARGET = range(5), range(5, 10)  # classes
TRAINING, HELD_OUT = 1500, 1000  # images
HEAD = Training(epochs=3, learning_rate=3e-3, head_only=True)
ALL = Training(epochs=2, learning_rate=5e-5)
BUDGET = "50%"


def part(images: Images, classes: range, count: int) -> Images:
    """The first images of some classes, which are counted from 0."""
    assert images.labels is not None
    chosen = [index for index, label in enumerate(images.labels) if label in classes][:count]
    found = images.select(chosen)
    assert found.labels is not None
    return Images(found.read, len(found), [label - classes.start for label in found.labels])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    data = parser.parse_args().data
    train, test = (load_images(SPEC, Task(data=data), name, labelled=True) for name in ("calibration", "evaluation"))
    dense = str(classifier(data))
    processor = load_processor(dense)
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        source = part(train, SOURCE, TRAINING), part(test, SOURCE, HELD_OUT)
        target = part(train, TARGET, TRAINING), part(test, TARGET, HELD_OUT)
        finetune(load_model(dense), processor, *source, work / "dense", HEAD)
        for preset in ("beta", "tau"):
            recipe = optin.PRESETS[preset]
            model = load_model(str(work / "dense"))
            batches = calibration_batches(model, source[0], processor, recipe.calibration, recipe.seed)
            optin.prune(model, batches, BUDGET, recipe=recipe).save(work / preset, processor)
        jobs = [
            (name, training, teacher)
            for name in ("dense", "beta", "tau")
            for training, teacher in ((HEAD, None), (ALL, None), (ALL, "dense-all"))
            if not (name == "dense" and teacher)
        ]
        for name, training, teacher in progress(jobs, description="transfer", console=Console(stderr=True)):
            kind = "head" if training.head_only else "all"
            figures = finetune(
                load_model(str(work / name)),
                processor,
                *target,
                work / (f"{name}-{kind}" if teacher is None else f"{name}-taught"),
                training,
                teacher=None if teacher is None else load_model(str(work / teacher)),
            )
            rows.append({"network": name, "trained": kind, "teacher": teacher is not None, **figures})
    for row in rows:
        row.pop("saved")
    results = Stored("transfer")
    results["rows"] = rows
    results.show(render(rows))


def render(rows: list[dict[str, Any]]) -> str:
    """The table in Markdown."""
    head = ["network", "head alone", "all weights", "with the dense network as teacher"]
    lines = []
    for name in dict.fromkeys(row["network"] for row in rows):
        cells = [name]
        for kind, teacher in (("head", False), ("all", False), ("all", True)):
            here = [r for r in rows if (r["network"], r["trained"], r["teacher"]) == (name, kind, teacher)]
            cells.append(f"{100 * here[0]['accuracy']:.1f} %, {here[0]['seconds']:.0f} s" if here else "")
        lines.append(cells)
    text = (
        f"Accuracy on {HELD_OUT} images of the five classes that pruning to {BUDGET} of the MACs never saw, after "
        f"training on {TRAINING} of them, and seconds of training."
    )
    return "\n".join([text, "", *table(head, lines)]) + "\n"


if __name__ == "__main__":
    main()
