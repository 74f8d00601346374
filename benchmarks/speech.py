"""Whisper tiny.en pruned: the words that it gets wrong on recordings that calibration did not hear.

    python benchmarks/whisper_weights.py FOLDER --prompts sounds/en_US_f_Allison --texts core-sounds-en.txt.gz
    python benchmarks/speech.py FOLDER                                      everything
    python benchmarks/speech.py FOLDER --rows encoder --budgets 50 --recordings 6
    python benchmarks/speech.py FOLDER --render                             the tables of what is stored

FOLDER is whisper-tiny.en in the cache if it is not given. Every half of the prompts is transcribed by networks that
were calibrated on recordings of the other half, without its transcripts; words are counted over both. MACs are those
of 30 s of sound and 20 tokens. Every row and half runs in a process of its own, and every point is stored with the
errors of each recording as soon as it is measured, so a run can be continued. Prints the tables, and stores them in
docs/results/speech.md, the figures in docs/results/speech.json.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from measuring import Stored, forward_seconds, peak
from text_tables import table
from training import folder_of

import optin
from optin.space.options import Calibration, Task
from optin.space.scores import Scores
from optin.storage.silenced import silenced
from optin.tasks import load_model, task_spec, writing
from optin.tasks.audio import Recordings, load_recordings
from optin.tasks.loading import load_preprocessor
from optin.tasks.written import Written

NAME = "whisper-tiny.en"  # of the folder in the cache
TASK = "speech-recognition"
BUDGETS = (80, 70, 60, 50)
TOKENS = 20  # that MACs are counted with, beside 30 s of sound
CALIBRATION = Calibration(examples=96, batch_size=16)
ROWS = {"encoder": "model.encoder", "encoder and decoder": ""}  # what alone may lose units
DENSE = "dense"
HALVES = {"one": "two", "two": "one"}  # what is transcribed: what is calibrated on
SPEED, PIECES, ROUNDS = 50, 3, 3  # the budget that is timed; recordings of 30 s, in turn with the dense network


@cache
def half(folder: Path, name: str, most: int | None) -> Recordings:
    """One half of the prompts, or some of it, evenly drawn, with their transcripts."""
    options = Task(TASK, str(folder / "prompts" / name))
    found = load_recordings(task_spec(TASK), options, "evaluation", labelled=True)
    count = min(most or len(found), len(found))
    return found.select([len(found) * index // count for index in range(count)])


class Setting:
    """The network, the recordings that it is calibrated on, and those that it is measured on."""

    def __init__(self, folder: Path, name: str, most: int | None) -> None:
        self.spec, source = task_spec(TASK), str(folder / "dense")
        self.model = load_model(source, self.spec.kind)
        self.processor: Any = load_preprocessor(source, self.spec, self.model)
        self.held_out = half(folder, name, most)
        # A draw takes as long whatever the number of recordings: a try takes as many of them.
        self.recipe = optin.Recipe() if most is None else optin.Recipe().override(trajectory__draws=most)
        self.heard = dataclasses.replace(half(folder, HALVES[name], most), texts=None)

    def batches(self) -> list[dict[str, Any]]:
        """Calibration inputs: the decoder reads what the dense network says itself."""
        few = dataclasses.replace(CALIBRATION, examples=min(CALIBRATION.examples, len(self.heard)))
        return writing.drawn_batches(self.model, self.heard, self.processor, few, seed=0)[0]

    def point(self, model: torch.nn.Module) -> dict[str, Any]:
        """Errors and words of every recording, and how well what is wanted is foreseen."""
        start = time.perf_counter()
        found = writing.answers([model], self.processor, self.spec, self.held_out, batch_size=16)
        errors, words = found.parts["wer"]
        return {
            "errors": listed(errors[0]),
            "words": listed(words),
            "perplexity": found.figures()["perplexity"],
            "seconds": time.perf_counter() - start,
        }

    def real_time(self, small: torch.nn.Module) -> dict[str, Any]:
        """Seconds of computing per second of sound, of prompts one behind the other, by both networks in turn."""
        extractor = self.processor.feature_extractor
        rate, length = extractor.sampling_rate, extractor.sampling_rate * extractor.chunk_length
        sounds: list[Any] = []
        while sum(map(len, sounds)) < PIECES * length:
            sounds.append(self.held_out.read(len(sounds) % len(self.held_out), rate))
        joined = np.concatenate(sounds)
        pieces = [joined[length * piece : length * (piece + 1)] for piece in range(PIECES)]
        times: dict[str, list[float]] = {DENSE: [], "pruned": []}
        for each in range(ROUNDS + 1):
            for name, network in ((DENSE, self.model), ("pruned", small)):
                seconds = sum(self._seconds(network, piece, rate) for piece in pieces)
                if each:  # the first round warms up
                    times[name].append(seconds * rate / (PIECES * length))
        return {name: statistics.median(found) for name, found in times.items()}

    def _seconds(self, model: Any, sound: Any, rate: int) -> float:
        """From a sound to its text."""
        start = time.perf_counter()
        with torch.inference_mode(), silenced():
            inputs = writing.prepared(self.processor.feature_extractor, [sound], rate)
            limit = writing.answer_limit(model)
            ids = model.generate(**inputs, max_new_tokens=limit, do_sample=False, num_beams=1)
            self.processor.batch_decode(ids, skip_special_tokens=True)
        return time.perf_counter() - start


def listed(values: torch.Tensor) -> str:
    """Whole numbers as a text, which takes one line."""
    return " ".join(str(int(value)) for value in values)


def counts(text: str) -> torch.Tensor:
    """The numbers again."""
    return torch.tensor([float(part) for part in text.split()], dtype=torch.float64)


def of_tokens(scores: Scores) -> Scores:
    """Scores by which plans count MACs with `TOKENS` tokens, whatever the calibration inputs had."""
    data: Any = scores.provenance["data"]
    seen = {**data["inputs"], "decoder_input_ids": {**data["inputs"]["decoder_input_ids"], "shape": [TOKENS]}}
    return dataclasses.replace(scores, provenance={**scores.provenance, "data": {**data, "inputs": seen}})


def networks(setting: Setting, row: str, budgets: list[int]) -> Iterator[tuple[int, Any, dict[str, Any]]]:
    """The networks of one row at every budget; with the first, what the job until it takes."""
    start = time.perf_counter()
    batches = setting.batches()
    drawn, first = time.perf_counter() - start, batches[:1]
    before = peak()
    size = sum(len(batch["input_features"]) for batch in batches)
    forward = forward_seconds(setting.model, first) * size / len(first[0]["input_features"])
    start = time.perf_counter()
    scores = of_tokens(optin.score(setting.model, batches, recipe=setting.recipe, only=ROWS[row]))
    cost = {"drawn": drawn, "forward": forward, "score": time.perf_counter() - start}
    for budget in budgets:
        plan = optin.plan(setting.model, scores, f"{budget}%")
        result = optin.apply(setting.model, plan, batches, scores=scores)
        macs = {"macs": [plan.dense.macs, plan.pruned.macs]}
        if budget == budgets[0]:
            cost |= {"job": time.perf_counter() - start, "peak": (peak() - before) / 2**20}
        yield budget, result.model, macs | (cost if budget == budgets[0] else {})


def job(folder: Path, row: str, name: str, budgets: list[int], most: int | None) -> None:
    """One row on one half; prints a line of JSON for every point."""
    setting = Setting(folder, name, most)
    if row == DENSE:
        print(json.dumps({"name": key(row, name), **setting.point(setting.model)}), flush=True)
        return
    for budget, small, cost in networks(setting, row, budgets):
        found = {"name": key(row, name, budget), **setting.point(small), **cost}
        if budget == SPEED:
            found["real_time"] = setting.real_time(small)
        print(json.dumps(found), flush=True)


def key(row: str, name: str, budget: int | None = None) -> str:
    """Under which name a point is stored."""
    return f"{row}, half {name}" + ("" if budget is None else f", {budget} %")


def measure(results: Stored, folder: Path, row: str, name: str, budgets: list[int], most: int | None) -> None:
    """`job` in a fresh process, of what is not stored yet of as many recordings."""
    size = len(half(folder, name, most))

    def done(point: str) -> bool:
        return len(results.get(point, {}).get("errors", "").split()) == size

    left = [budget for budget in budgets if not done(key(row, name, budget))]
    if done(key(row, name)) if row == DENSE else not left:
        return
    command = [sys.executable, __file__, str(folder), "--job", row, name, "--budgets", *map(str, left or budgets)]
    command += [] if most is None else ["--recordings", str(most)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith('{"name"'):
                point = json.loads(line)
                results[point.pop("name")] = point
                print(f"{time.strftime('%H:%M:%S')} {line[:60]}", file=sys.stderr, flush=True)
    if process.returncode:
        sys.exit(f"{row} on half {name} ended with {process.returncode}")


def render(results: Mapping[str, Any]) -> str:
    """The tables in Markdown."""
    dense = [results[key(DENSE, name)] for name in HALVES if key(DENSE, name) in results]
    if len(dense) < len(HALVES):
        return "# Networks that hear\n\nNothing is measured yet.\n"
    rows, costs = [], []
    for row in ROWS:
        rows.append([f"**{row}**" if row == "encoder" else row, *(cell(results, row, budget) for budget in BUDGETS)])
        costs.append([row, *cost_cells(results, row)])
    words = sum(counts(point["words"]).sum() for point in dense)
    return "\n".join(
        [
            "# Networks that hear",
            "",
            f"`python benchmarks/speech.py FOLDER`: Whisper tiny.en on {sum(map(size_of, dense))} spoken prompts of "
            f"{words:,.0f} words, dense word error rate {100 * rate(dense):.2f} %. Every half was transcribed by "
            f"networks calibrated on {CALIBRATION.examples} recordings of the other, without transcripts; figures "
            "are of both together. Word error rate in %, then how many points more that is than the dense "
            "network's, with its 95 % interval from a paired bootstrap over recordings.",
            "",
            *table(["may lose units", *(f"{budget} % MACs" for budget in BUDGETS)], rows),
            "",
            f"The job until the first network (mean of both halves), and at {SPEED} % of the MACs the real-time "
            f"factor (seconds of computing per second of sound) on {PIECES} pieces of 30 s of speech one by one, "
            "dense and pruned in turn in one process.",
            "",
            *table(["may lose units", "score, s", "job, s", "job, passes", "peak, MB", "real-time factor"], costs),
            "",
        ]
    )


def size_of(point: Mapping[str, Any]) -> int:
    """Its recordings."""
    return len(point["errors"].split())


def rate(points: list[Any]) -> float:
    """Word error rate over several sets of recordings."""
    errors, words = (sum(counts(point[kind]).sum() for point in points) for kind in ("errors", "words"))
    return float(errors / words)


def cell(results: Mapping[str, Any], row: str, budget: int) -> str:
    """Word error rate, difference and interval, over both halves."""
    pairs = [(results.get(key(row, name, budget)), results[key(DENSE, name)]) for name in HALVES]
    if any(small is None or size_of(small) != size_of(dense) for small, dense in pairs):
        return ""
    small, dense = ([pair[place] for pair in pairs] for place in (0, 1))
    errors = torch.stack([torch.cat([counts(point["errors"]) for point in points]) for points in (small, dense)])
    words = torch.cat([counts(point["words"]) for point in dense])
    none = torch.zeros(0)
    ends = Written({"wer": (errors, words)}, none, none, none, none).sure(0, 1).get("wer")
    interval = "" if ends is None else f" [{100 * ends[0]:+.2f}, {100 * ends[1]:+.2f}]"
    return f"{100 * rate(small):.2f}, {100 * (rate(small) - rate(dense)):+.2f}{interval}"


def cost_cells(results: Mapping[str, Any], row: str) -> list[str]:
    """Seconds, passes, memory and real-time factors, as means over the halves."""
    points = [results.get(key(row, name, budget), {}) for name in HALVES for budget in BUDGETS]
    jobs = [point for point in points if "job" in point]
    timed = [point["real_time"] for point in points if "real_time" in point]
    found = [""] * 5
    if jobs:
        means = {name: statistics.mean(point[name] for point in jobs) for name in ("score", "job", "peak")}
        passes = statistics.mean(point["job"] / point["forward"] for point in jobs)
        found[:4] = [f"{means['score']:.0f}", f"{means['job']:.0f}", f"{passes:.1f}", f"{means['peak']:.0f}"]
    if timed:
        dense, pruned = (statistics.mean(times[name] for times in timed) for name in (DENSE, "pruned"))
        found[4] = f"{dense:.3f} to {pruned:.3f}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "folder", type=Path, nargs="?", default=folder_of(NAME), help="of benchmarks/whisper_weights.py"
    )
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--budgets", nargs="+", type=int, choices=BUDGETS, default=list(BUDGETS))
    parser.add_argument("--recordings", type=int, help="of every half; all by default")
    parser.add_argument("--render", action="store_true", help="only make the tables of what is stored")
    parser.add_argument("--job", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.job:
        job(given.folder, *given.job, given.budgets, given.recordings)
        return
    results = Stored("speech")
    for row in () if given.render else (DENSE, *given.rows):
        for name in HALVES:
            measure(results, given.folder, row, name, given.budgets, given.recordings)
    results.show(render(results))


if __name__ == "__main__":
    main()
