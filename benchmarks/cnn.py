"""The table of convolutional networks: VGG-16 and ResNet-56 on Fashion-MNIST.

    python benchmarks/cnn.py
    python benchmarks/cnn.py resnet56 --seeds 0

The networks are trained first (benchmarks/train_cnn.py, cached). Calibration draws 256 unlabelled training images a
seed; quality is measured on 2,000 test images. Rows that are done are kept, so a run can be continued. Prints the
tables, and stores them in docs/results/cnn.md, the figures in docs/results/cnn.json.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from dinov2 import DATA
from image_tables import REESTIMATED, Rows, Setting, measure_rows, quality_table
from measuring import Stored
from text_tables import table
from train_cnn import trained

from optin.recipe import PRESETS

NETWORKS = {"vgg16_bn": 3, "resnet56": 4}  # with the epochs that they are trained for
BUDGETS = (75, 60, 50, 40)
CRITERIA = ("compensated", "sketch", "magnitude", "random")
MAIN = "compensated + compensation"
LOST = 1.0  # points at 50 %


def rows() -> Rows:
    """Every row of a table by name, with its budgets."""
    found: Rows = {}
    for criterion in CRITERIA:
        recipe = PRESETS["beta"].override(criterion=criterion)
        masks = recipe.override(refit__enabled=False)
        found[f"{criterion} + compensation"] = (recipe, BUDGETS)
        found[f"{criterion} + compensation, {REESTIMATED}"] = (recipe, BUDGETS)
        found[f"{criterion}, masks only"] = (masks, BUDGETS)
        found[f"{criterion}, {REESTIMATED}"] = (masks, BUDGETS)
    return found


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines, bars = [], []
    for name, found in results.items():
        lines += [f"## {name}", "", *quality_table(found, BUDGETS), ""]
        here = [f["accuracy"] for f in found["figures"] if (f["row"], f["budget"]) == (MAIN, 50)]
        if here:
            lost = 100 * (found["dense_accuracy"] - sum(here) / len(here))
            met = "reached" if lost <= LOST else "**missed**"
            bars.append([f"points lost by {name} at 50 % at most {LOST}", f"{lost:.2f}", met])
    return "\n".join([*lines, *table(["bar", "measured", ""], bars)]).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(NETWORKS)}")
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    results = Stored("cnn")
    fixed = {name for name in rows() if name.startswith("magnitude,") and not name.endswith(REESTIMATED)}
    for name in arguments.networks or NETWORKS:
        setting = Setting(trained(name, arguments.data, NETWORKS[name]), arguments.data)
        results[name] = measure_rows(
            setting, rows(), fixed, results.get(name, {}), arguments.seeds, partial(results.__setitem__, name)
        )
    results.show(render(results))


if __name__ == "__main__":
    main()
