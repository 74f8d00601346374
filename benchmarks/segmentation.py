"""The tables of segmentation: a tiny SegFormer and a tiny Mask2Former on scenes, and the true Mask2Former's cost.

    python benchmarks/segmentation.py                        everything
    python benchmarks/segmentation.py segformer --seeds 0
    python benchmarks/segmentation.py shape                  Mask2Former with Swin-Tiny at 512 x 1024, random weights

The tiny networks are trained first (benchmarks/train_segmentation.py, cached), calibrated on 256 training scenes a
seed, without masks, and measured on 400 test scenes. Rows that are done are kept, so a run can be continued. Prints
the tables, and stores them in docs/results/segmentation.md, the figures in docs/results/segmentation.json, and for
each network pictures of some scenes beside them.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch
from dinov2 import DATA
from image_tables import Rows, measure_rows, quality_table
from measuring import RESULTS, Stored, forward_seconds, peak
from scenes import scenes
from text_tables import bar_table, table
from torch import Tensor, nn
from train_segmentation import CYCLES, HELD_OUT, TRAINING, foreground, load_trained, trained

import optin
from optin.app.pictures import draw_scene
from optin.describing import describe
from optin.recipe import PRESETS, Recipe
from optin.running.cost import mac_cost
from optin.running.gating import gated, masks
from optin.running.outputs import answers
from optin.tasks import load_processor, segmentation
from optin.tasks.vision import calibration_batches

BUDGETS = (80, 65, 50)
CRITERIA = ("compensated", "sketch", "magnitude", "random")
MAIN = "compensated + compensation"
LOST = 2.0  # points of mIoU at 65 %
LEAST = 0.5  # foreground mIoU of the dense networks
SHAPE = "shape"
SIZE = (512, 1024)  # of the true Mask2Former's images
EXAMPLES = 4
EQUAL = 1e-5
PARTS = {
    "backbone": "model.pixel_level_module.encoder",
    "pixel decoder": "model.pixel_level_module.decoder",
    "transformer decoder": "model.transformer_module",
}


class Remembered(nn.Module):
    """A network that computes nothing twice."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.known = model, dict[bytes, Any]()

    def forward(self, pixel_values: Tensor) -> Any:
        key = pixel_values.numpy().tobytes()
        if key not in self.known:
            self.known[key] = self.model(pixel_values=pixel_values)
        return self.known[key]


class SceneSetting:
    """A dense network, training scenes without masks, and test scenes."""

    def __init__(self, folder: Path, data: str) -> None:
        self.model, self.processor = load_trained(folder), load_processor(str(folder))
        self.train, self.test = scenes(data, "calibration", TRAINING), scenes(data, "evaluation", HELD_OUT)
        figures = segmentation.evaluate(self.model, self.processor, self.test)
        self.dense = Remembered(self.model)
        self.quality = {"dense_miou": figures["miou"], "dense_foreground": foreground(figures)}

    def calibration(self, recipe: Recipe) -> list[dict[str, torch.Tensor]]:
        """The draw of one seed, from the training scenes."""
        return calibration_batches(self.model, self.train, self.processor, recipe.calibration, recipe.seed)

    def measure(self, model: Any) -> dict[str, float]:
        """Mean IoU, pixel accuracy and KL to the dense outputs."""
        figures = segmentation.evaluate(model, self.processor, self.test, reference=self.dense)
        return {name: figures[name] for name in ("miou", "pixel-accuracy", "kl")}


def rows() -> Rows:
    """Every row of a table by name, with its budgets."""
    found: Rows = {}
    for criterion in CRITERIA:
        recipe = PRESETS["segmentation"].override(criterion=criterion)
        found[f"{criterion} + compensation"] = (recipe, BUDGETS)
        found[f"{criterion}, masks only"] = (recipe.override(refit__enabled=False), BUDGETS)
    found[f"{MAIN}, temperature 4"] = (PRESETS["beta"], BUDGETS)
    return found


def picture(setting: SceneSetting, name: str) -> None:
    """Three test scenes, segmented by the dense network and by the one pruned to 65 % of its MACs."""
    recipe = PRESETS["segmentation"]
    small = optin.prune(setting.model, setting.calibration(recipe), budget="65%", recipe=recipe).model
    for index in range(3):
        image = setting.test.read(index)
        assert setting.test.mask is not None
        found = {
            "truth": torch.as_tensor(setting.test.mask(index)),
            "dense": segmentation.segment(setting.model, setting.processor, image),
            "pruned": segmentation.segment(small, setting.processor, image),
        }
        draw_scene(image, found, setting.test.classes, RESULTS / f"{name}-{index}.png")


def shape() -> dict[str, Any]:
    """The job on the true Mask2Former with Swin-Tiny, with random weights, at the budget of the recipe."""
    import transformers

    swin = transformers.SwinConfig(out_features=["stage1", "stage2", "stage3", "stage4"], window_size=7)
    torch.manual_seed(0)
    model = transformers.Mask2FormerForUniversalSegmentation(
        transformers.Mask2FormerConfig(backbone_config=swin, num_labels=19)
    ).eval()
    batches = [{"pixel_values": torch.randn(1, 3, *SIZE)} for _ in range(EXAMPLES)]
    budget = Recipe.load(RESULTS.parent.parent / "recipes" / "mask2former-swin-tiny-cityscapes.yaml").budget
    recipe = PRESETS["segmentation"].override(trajectory__draws=EXAMPLES)
    forward_seconds(model, batches[:1])
    before, forward, start = peak(), forward_seconds(model, batches), time.perf_counter()
    result = optin.prune(model, batches, budget=budget, recipe=recipe)
    seconds, highest = time.perf_counter() - start, peak() - before
    space = describe(model)
    cut = optin.apply(model, result.plan).model
    with gated(model, space, masks(model, result.plan)), torch.inference_mode():
        expected = answers(model(**batches[0]))
    with torch.inference_mode():
        difference = float((answers(cut(**batches[0])) - expected).abs().max() / expected.abs().max())
    after = forward_seconds(result.model, batches)
    macs = {}
    for kind, network in (("dense", model), ("pruned", result.model)):
        described = describe(network)
        cost = mac_cost(network, described, batches[0])
        parts = cost.breakdown(described.sizes)
        macs[kind] = {
            part: sum(amount for module, amount in parts.items() if module.startswith(prefix))
            for part, prefix in PARTS.items()
        } | {"in all": cost.dense}
    return {
        "budget": budget,
        "macs": macs,
        "parameters": result.report["parameters"],
        "forward": forward / EXAMPLES,
        "pruned_forward": after / EXAMPLES,
        "job": seconds,
        "passes": seconds / forward,
        "peak": highest / 2**20,
        "threads": torch.get_num_threads(),
        "difference": difference,
    }


def shape_table(found: dict[str, Any]) -> list[str]:
    """The MACs by part, and what the job took."""
    dense, pruned = found["macs"]["dense"], found["macs"]["pruned"]
    lines = [
        [
            part,
            f"{dense[part] / 10**9:.2f}",
            f"{pruned[part] / 10**9:.2f}",
            f"{100 * pruned[part] / dense[part]:.0f} %",
        ]
        for part in dense
    ]
    return [
        f"## Mask2Former with Swin-Tiny at {SIZE[0]} x {SIZE[1]}, random weights, at {found['budget']}",
        "",
        *table(["GMACs", "dense", "pruned", ""], lines),
        "",
        f"The job on {EXAMPLES} images, threads: {found['threads']}, took {found['job']:.0f} s, "
        f"{found['passes']:.1f} dense passes over them, and "
        f"{found['peak']:,.0f} MB above the model; one image takes {found['forward']:.2f} s before and "
        f"{found['pruned_forward']:.2f} s after.",
        "",
    ]


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines, bars = [], []
    for name in (name for name in CYCLES if name in results):
        found = results[name]
        lines += [f"## {name}", "", *quality_table(found, BUDGETS, f"{HELD_OUT} test scenes", "miou"), ""]
        lines += [f"![scenes]({name}-{index}.png)" for index in range(3)] + [""]
        dense = found["dense_foreground"]
        bars.append((f"foreground mIoU of the dense {name} at least {LEAST}", f"{dense:.3f}", dense >= LEAST))
        here = [f["miou"] for f in found["figures"] if (f["row"], f["budget"]) == (MAIN, 65)]
        if here:
            lost = 100 * (found["dense_miou"] - sum(here) / len(here))
            bars.append((f"points lost by {name} at 65 % at most {LOST}", f"{lost:.2f}", lost <= LOST))
    if found := results.get(SHAPE):
        lines += shape_table(found)
        apart = found["difference"]
        bars.append((f"shrunk equals gated at the true shape to {EQUAL:.0e}", f"{apart:.0e}", apart <= EQUAL))
    return "\n".join([*lines, *bar_table(bars)]).strip() + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join((*CYCLES, SHAPE))}")
    parser.add_argument("--data", default=DATA, help="folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    arguments = parser.parse_args()
    results, fixed = Stored("segmentation"), {"magnitude, masks only"}
    for name in arguments.parts or (*CYCLES, SHAPE):
        if name == SHAPE:
            results[name] = shape()
            continue
        setting = SceneSetting(trained(name, arguments.data), arguments.data)
        results[name] = measure_rows(
            setting, rows(), fixed, results.get(name, {}), arguments.seeds, partial(results.__setitem__, name)
        )
        picture(setting, name)
    results.show(render(results))


if __name__ == "__main__":
    main()
