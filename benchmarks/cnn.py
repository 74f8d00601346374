"""The tables of convolutional networks: VGG-16 and ResNet-56 on Fashion-MNIST, and a ready network for CIFAR-10.

    python benchmarks/cnn.py
    python benchmarks/cnn.py resnet56 --seeds 0

The first two are trained first (benchmarks/train_cnn.py, cached), calibrated on 256 unlabelled training images a
seed and measured on 2,000 test images. The third (benchmarks/cifar10.py) is calibrated on parts of other photographs.
Rows that are done are kept, so a run can be continued. Prints the tables, and stores them in docs/results/cnn.md, the
figures in docs/results/cnn.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from cifar10 import network, photographs, tested
from dinov2 import DATA, HELD_OUT
from image_tables import Rows, Setting, measure_rows, quality_table
from measuring import Stored
from text_tables import bar_table
from train_cnn import trained

from optin.recipe import PRESETS

READY = "cifar10"
NETWORKS = ("vgg16_bn", "resnet56", READY)
BUDGETS = (75, 60, 50, 40)
CRITERIA = ("compensated", "sketch", "magnitude", "random")
MAIN = "compensated + compensation"
LOST = 1.0  # points at 50 %


def rows() -> Rows:
    """The rows of a table by name, with their budgets; each has another with its batch norms anew."""
    found: Rows = {}
    for criterion in CRITERIA:
        recipe = PRESETS["beta"].override(criterion=criterion)
        found[f"{criterion} + compensation"] = (recipe, BUDGETS)
        found[f"{criterion}, masks only"] = (recipe.override(refit__enabled=False), BUDGETS)
    return found


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines, bars = [], []
    for name, found in results.items():
        tests = "20 images of CIFAR-10 and their mirror images" if name == READY else f"{HELD_OUT:,} test images"
        lines += [f"## {name}", "", *quality_table(found, BUDGETS, tests), ""]
        here = [f["accuracy"] for f in found["figures"] if (f["row"], f["budget"]) == (MAIN, 50)]
        if here and name != READY:
            lost = 100 * (found["dense_accuracy"] - sum(here) / len(here))
            bars.append((f"points lost by {name} at 50 % at most {LOST}", f"{lost:.2f}", lost <= LOST))
    return "\n".join([*lines, *(bar_table(bars) if bars else [])]).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(NETWORKS)}")
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    results = Stored("cnn")
    for name in arguments.networks or NETWORKS:
        if name == READY:
            setting = Setting(*network(), photographs(), tested())
        else:
            setting = Setting.of_fashion(trained(name, arguments.data), arguments.data)
        store, found = partial(results.__setitem__, name), results.get(name, {})
        results[name] = measure_rows(setting, rows(), set(), found, arguments.seeds, store, norms=True)
    results.show(render(results))


if __name__ == "__main__":
    main()
