"""Where a pruned network runs: dense and pruned, in torch, ONNX Runtime and OpenVINO, each in 8 bits as well.

    python benchmarks/deploy.py                  minilm, dinov2
    python benchmarks/deploy.py minilm

Both networks at half of the MACs (DINOv2 by merging tokens as well) are exported, and all runtimes are timed in turn
in one run, on as many threads as torch uses. 8 bits: linear maps by torchao and by ONNX Runtime's dynamic
quantisation. Needs the extra `export` and `pip install torchao`. Prints the tables, and stores them in
docs/results/deploy.md, the figures in docs/results/deploy.json.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from pathlib import Path
from typing import Any

from measuring import Stored
from peer_networks import NETWORKS, network
from text_tables import table
from torch import nn

import optin
from optin.app.benchmark import side_by_side
from optin.describing.inputs import example_inputs
from optin.running.modules import weight_bytes
from optin.storage.exporting import export_all

BUDGET = "50%"
PRESETS = {"minilm": "default", "dinov2": "tau"}
SHAPES = {"minilm": (8, 64), "dinov2": (8, 112)}  # examples, and tokens or pixels of a side
FORMATS = ("onnx", "onnx-int8", "openvino")
KEPT = ("bytes", "difference")
HEAD = ["", "runtime", "MB", "ms", "times as fast", "accuracy, %", "KL to dense"]


def int8(model: nn.Module) -> nn.Module:
    """Weights and activations of linear maps in 8 bits, by torchao."""
    from torchao.quantization import Int8DynamicActivationInt8WeightConfig, quantize_

    quantised = copy.deepcopy(model)
    quantize_(quantised, Int8DynamicActivationInt8WeightConfig())
    return quantised


def measured(name: str) -> list[dict[str, Any]]:
    """A row per network and runtime."""
    setting, recipe = network(name), optin.PRESETS[PRESETS[name]]
    batches = setting.calibration(recipe)
    small = optin.prune(setting.model, batches, BUDGET, recipe=recipe).model
    examples, length = SHAPES[name]
    inputs = example_inputs(setting.model, length, examples)
    rows: list[dict[str, Any]] = []
    networks = []
    with tempfile.TemporaryDirectory() as scratch:
        for kind, model in (("dense", setting.model), ("pruned", small)):
            rows += [
                {"network": kind, "runtime": "torch", "bytes": weight_bytes(model)},
                {"network": kind, "runtime": "torch, int8"},
            ]
            networks += [model, int8(model)]
            targets = {to: Path(scratch) / kind / to for to in FORMATS}
            for figures in export_all(model, batches[0], targets, track=optin.rich_track):
                rows.append({"network": kind, "runtime": figures["format"], **{key: figures[key] for key in KEPT}})
                networks.append(optin.open_exported(targets[figures["format"]]))
        times = side_by_side(networks, inputs)
        for row, runnable, milliseconds in zip(rows, networks, zip(*times, strict=True), strict=True):
            row |= {"ms": statistics.median(milliseconds), **setting.measure(runnable)}
    return rows


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines = []
    for name, rows in results.items():
        examples, length = SHAPES[name]
        merged = " in the median example, since tokens merge" if PRESETS[name] == "tau" else ""
        unit = "tokens" if name == "minilm" else "pixels of a side"
        worst = max(row["difference"] for row in rows if row["runtime"] in ("onnx", "openvino"))
        lines += [
            f"## {name}",
            "",
            f"{BUDGET} of the MACs. A forward of {examples} examples of {length} {unit}; quality on "
            f"{NETWORKS[name]}. ONNX Runtime and OpenVINO in float32 differ from torch by {worst:.0e} at "
            f"most{merged}.",
            "",
            *table(HEAD, (line(row, rows[0]["ms"]) for row in rows)),
            "",
        ]
    return "\n".join(lines).strip() + "\n"


def line(row: dict[str, Any], dense: float) -> list[str]:
    """One row of the table."""
    size = f"{row['bytes'] / 1e6:.0f}" if "bytes" in row else ""
    speed, accuracy = f"{dense / row['ms']:.2f}", f"{100 * row['accuracy']:.1f}"
    kl = f"{abs(row['kl']):.4f}"
    return [row["network"], row["runtime"], size, f"{row['ms']:.0f}", speed, accuracy, kl]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help=f"some of: {', '.join(PRESETS)}")
    arguments = parser.parse_args()
    results = Stored("deploy")
    for name in arguments.networks or PRESETS:
        results[name] = measured(name)
    results.show(render(results))


if __name__ == "__main__":
    main()
