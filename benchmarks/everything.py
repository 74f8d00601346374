"""A small piece of every benchmark, to see that all of them still work; no figure is kept.

    python benchmarks/everything.py --data FOLDER
    python benchmarks/everything.py transfer deploy

Every benchmark runs in a process of its own, with fewer rows, budgets, examples and rounds, and writes its tables
into a scratch folder. What they need beyond the package (each says it at its top) has to be there; networks that are
not in the cache are trained first. Prints a line per benchmark, and the end of the output of those that failed.
"""

from __future__ import annotations

import argparse
import importlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import dinov2
import measuring

import optin.recipe
from optin.recipe import Recipe
from optin.space.options import Training

README = Path(__file__).parent.parent / "README.md"

Rows = dict[str, tuple[Recipe, tuple[int, ...]]]


def row(name: str, preset: str, budget: int) -> Rows:
    """A table of images or scenes with one row."""
    return {name: (optin.recipe.PRESETS[preset], (budget,))}


def default_only() -> dict[str, Recipe]:
    """The default job as the only row of a table of sentences."""
    return {"compensated + compensation": Recipe()}


# By benchmark: its arguments, and what is put into modules, in the order of their imports.
PIECES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "ablations": (
        ["--seeds", "0"],
        {
            "experiments.BUDGETS": (50,),
            "ablations.recipes": lambda: {"default": Recipe()},
        },
    ),
    "cnn": (["resnet56", "cifar10"], {"cnn.rows": lambda: row("beta", "beta", 60)}),
    "deploy": (["minilm"], {}),
    "exchange": (["MiniLM", "--seeds", "0"], {"exchange.BUDGETS": (60,)}),
    "experiments": (["two rounds", "kept in bfloat16", "--seeds", "0"], {"experiments.BUDGETS": (50,)}),
    "gpu": (["BERT-base", "ResNet-50"], {}),
    "latency": (
        ["bert-6x384"],
        {"latency.KEPT": {}, "latency.BUDGETS": (60,), "latency.ROUNDS": 3, "latency.REPEATS": 1},
    ),
    "machines": ([], {"machines.JOBS": {"exact": (2, 16)}, "machines.GPUS": (1, 8)}),
    "networks": (["bert", "--large"], {}),
    "outlook": (["minilm"], {}),
    "peers": (["minilm", "--rows", "optin", "torch-pruning, magnitude", "--seeds", "0"], {}),
    "reversal": ([], {"reversal.BUDGETS": (90,), "reversal.SEEDS": (0,), "reversal.HELD_OUT": 64}),
    "scaling": (
        ["base", "examples", "profile"],
        {"scaling.BASE": "bert 6x384", "scaling.EXAMPLES": (32,)},
    ),
    "segmentation": (["segformer"], {"segmentation.rows": lambda: row("main", "segmentation", 65)}),
    "shapes": (["deit-tiny"], {}),
    "speech": (["--rows", "encoder", "--budgets", "50", "--recordings", "2"], {}),
    "startup": ([], {"startup.ROUNDS": 1}),
    "text": (
        [],
        {
            "text.BUDGETS": (70, 50, 40),  # those that it sets bars for
            "text.SEEDS": (0,),
            "text.LATENCIES": (50,),
            "text.EXAMPLES": (64,),
            "text.recipes": default_only,
        },
    ),
    "times": (["ResNet-50"], {"times.BATCHES": (1,), "times.ROUNDS": 1}),
    "transfer": (
        [],
        {
            "transfer.TRAINING": 64,
            "transfer.HELD_OUT": 64,
            "transfer.HEAD": Training(epochs=1, head_only=True),
            "transfer.ALL": Training(epochs=1),
        },
    ),
    "vision": (
        ["--seeds", "0"],
        {
            "vision.recipes": lambda: row("beta", "beta", 65) | row("tau", "tau", 65),
            "vision.BUDGETS": (65,),
            "vision.NOISES": {"beta on white noise": 0.0},
        },
    ),
}


def piece(name: str, data: str, results: str) -> None:
    """Run one benchmark with less to do."""
    arguments, changes = PIECES[name]
    measuring.RESULTS, dinov2.DATA, dinov2.HELD_OUT = Path(results), data, 128
    few = {"calibration__examples": 32, "trajectory__draws": 8}
    optin.recipe.PRESETS = {preset: recipe.override(**few) for preset, recipe in optin.recipe.PRESETS.items()}
    for place, value in changes.items():
        module, _, constant = place.partition(".")
        setattr(importlib.import_module(module), constant, value)
    sys.argv = [f"{name}.py", *arguments]
    importlib.import_module(name).main()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"some of: {', '.join(PIECES)}")
    parser.add_argument("--data", default=dinov2.DATA, help="folder of the IDX files of Fashion-MNIST")
    parser.add_argument("--piece", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.piece:
        piece(arguments.piece[0], arguments.data, arguments.piece[1])
        return
    failed = 0
    for name in arguments.names or PIECES:
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as scratch:
            results = Path(scratch) / "docs" / "results"
            results.mkdir(parents=True)
            shutil.copy(README, scratch)  # peers.py writes into it
            command = [sys.executable, __file__, "--data", arguments.data, "--piece", name, str(results)]
            paths = os.pathsep.join(filter(None, (str(Path(__file__).parent), os.environ.get("PYTHONPATH"))))
            done = subprocess.run(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env={**os.environ, "PYTHONPATH": paths},  # for workers of Ray too
            )
            works = done.returncode == 0 and (results / f"{name}.md").stat().st_size > 0
        failed += not works
        print(f"{name}: {'works' if works else 'FAILS'}, {time.perf_counter() - start:.0f} s", flush=True)
        if not works:
            print("\n".join(done.stdout.splitlines()[-12:]), flush=True)
    sys.exit(failed > 0)


if __name__ == "__main__":
    main()
