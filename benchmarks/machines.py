"""Scoring on many machines: what Ray gains on this one, and the schedule of a large network on many GPUs, simulated.

    python benchmarks/machines.py                  all of: overhead, speedup, then the simulation
    python benchmarks/machines.py overhead

`overhead` is the time of a call that does nothing, `speedup` one and two workers of one thread each beside the same
work in this process: both need an idle machine with two cores and `pip install 'optin[ray]'`. The simulation drives
the engine's own order of calls with a clock in place of a cluster; what it assumes is printed above its table.
Prints the tables, and stores them in docs/results/machines.md, the figures in docs/results/machines.json.
"""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from measuring import Stored
from scaling import SMALL, inputs, network
from text_tables import table

import optin
from optin.recipe import Recipe
from optin.scoring.engines import Ray, in_order

WORKERS = (1, 2)
EMPTY_CALLS, BATCH = 2000, 8
JOBS = {"exact": (2, 32), "compensated": (64, 128)}  # criterion -> examples that it is timed on, tokens of each

# The network that is simulated: a BERT of 6.4 billion parameters in bfloat16, on examples of 128 tokens.
LAYERS, WIDTH, HEADS, NEURONS, TOKENS = 32, 4096, 32, 16384, 128
UNITS = LAYERS * (HEADS + NEURONS)
WEIGHTS = LAYERS * (4 * WIDTH**2 + 2 * WIDTH * NEURONS)
GPUS = (1, 8, 16, 32, 64)
PRODUCTS, SUMS = 150e12, 15e12  # operations a second of one GPU: the network's in bfloat16, the sums' in float32
LINK, MEMORY = 12.5e9, 20e9  # bytes a second: into a machine, and added up in the first one
PER_MACHINE = 8  # GPUs


@dataclass
class Clock:
    """What the engine asks of Ray, answered in virtual time."""

    overhead: float
    now: float = 0.0
    ends: dict[int, float] = field(default_factory=dict)
    calls: int = 0

    def wait(self, running: list[int], num_returns: int) -> tuple[list[int], list[int]]:
        """The call that is done first."""
        first = min(running, key=self.ends.__getitem__)
        self.now = max(self.now, self.ends.pop(first))
        return [first], []

    def get(self, call: int) -> None:
        """Its answer, whose way here is part of what `spent` counts."""

    def actor(self, start: float, cost: Callable[..., float]) -> Any:
        """A worker that is ready from `start` on."""
        free = start

        def remote(*arguments: Any) -> int:
            nonlocal free
            self.now += self.overhead
            free = max(free, self.now) + cost(*arguments)
            self.calls += 1
            self.ends[self.calls] = free
            return self.calls

        return SimpleNamespace(do=SimpleNamespace(remote=remote))


@dataclass(frozen=True)
class Job:
    """One scoring of the large network.

    Attributes:
        calls: arguments of each.
        seconds: of one call on one GPU, from its arguments.
        answer: bytes that a call gives back.
        times: how often all calls are repeated.
    """

    calls: list[tuple[int, ...]]
    seconds: Callable[..., float]
    answer: float
    times: int = 1

    def spent(self, gpus: int, overhead: float) -> float:
        """Seconds until the last answer is added up: the network sent to every machine, then the calls."""
        clock = Clock(overhead)
        arrival = 2 * WEIGHTS / LINK
        actors = [clock.actor(arrival * (number // PER_MACHINE + 1), self.seconds) for number in range(gpus)]
        for _ in in_order(clock, actors, self.calls):
            clock.now += self.answer / LINK + self.answer / MEMORY
        return arrival + self.times * (clock.now - arrival)


def forward(tokens: float, blocks: float = LAYERS) -> float:
    """Seconds of so many tokens through so many blocks."""
    return 2 * tokens * WEIGHTS * blocks / LAYERS / PRODUCTS


def exact(examples: int) -> Job:
    """32 units at once of an example, from their block on."""
    stack = Recipe().trajectory.stack
    calls = [(layer,) for layer in range(LAYERS) for count in (HEADS, NEURONS) for _ in range(0, count, stack)]
    return Job(calls, lambda layer: forward(stack * TOKENS, LAYERS - layer), 16 * stack, examples)


def draws(examples: int, batch: int, moments: bool) -> Job:
    """A calibration batch: one forward, two backward passes, with moments their products too."""
    tokens = batch * TOKENS
    seconds, answer = 3 * forward(tokens), 16.0 * UNITS + 8 * LAYERS * tokens
    if moments:
        read, made = WIDTH**2 + NEURONS**2, 4 * WIDTH**2  # entries of C and G of one block's two consumers
        seconds += 2 * tokens * LAYERS * (read + made) / SUMS
        answer += 8 * LAYERS * (read + made)
    return Job([(number,) for number in range(examples // batch)], lambda number: seconds, answer)


SIMULATED = {
    "exact, 32 examples": exact(32),
    "sketch, 256 examples in batches of 32": draws(256, 32, False),
    "sketch, 4,096 examples in batches of 32": draws(4096, 32, False),
    "compensated, 4,096 examples in batches of 32": draws(4096, 32, True),
    "compensated, 4,096 examples in batches of 256": draws(4096, 256, True),
}


@contextlib.contextmanager
def rays(workers: int) -> Iterator[None]:
    """A cluster of this machine alone."""
    import ray

    ray.init(num_cpus=workers, include_dashboard=False, log_to_driver=False, logging_level="error")
    try:
        yield
    finally:
        ray.shutdown()


def nothing(number: int) -> int:
    return number


def overhead(results: Stored) -> None:
    """Seconds of a call that does nothing, on two workers."""
    with rays(2):
        answers = Ray()(nothing, [(number,) for number in range(EMPTY_CALLS)])
        next(answers)
        start = time.perf_counter()
        for _ in answers:
            pass
        results["overhead"] = (time.perf_counter() - start) / (EMPTY_CALLS - 1)


def speedup(results: Stored) -> None:
    """Seconds of scoring in this process and on one and two workers, all of one thread."""
    torch.set_num_threads(1)
    for criterion, (examples, tokens) in JOBS.items():
        model, recipe = network(SMALL), Recipe(criterion=criterion)
        batches = [
            {name: value[start : start + BATCH, :tokens] for name, value in batch.items()}
            for batch in inputs(SMALL, examples, torch.float32)
            for start in range(0, len(batch["input_ids"]), BATCH)
        ]
        start = time.perf_counter()
        optin.score(model, batches, recipe=recipe)
        found = {"local": time.perf_counter() - start}
        for workers in WORKERS:
            with rays(workers):
                start = time.perf_counter()
                optin.score(model, batches, recipe=recipe, engine="ray")
                found[str(workers)] = time.perf_counter() - start
        results[criterion] = found


PARTS = {"overhead": overhead, "speedup": speedup}


def render(results: dict[str, Any]) -> str:
    """The tables in Markdown."""
    lines: list[str] = []
    if all(criterion in results for criterion in JOBS):
        lines += [
            f"A BERT of 6 x 384, one thread a worker, batches of {BATCH}, on a machine with two cores: seconds, all "
            "that Ray needs to start its workers included.",
            "",
            *table(
                ["", "this process", *(f"workers: {workers}" for workers in WORKERS), "gain of the second"],
                (
                    [
                        f"`{criterion}`, {examples} x {tokens} tokens",
                        *(f"{results[criterion][key]:.0f}" for key in ("local", *map(str, WORKERS))),
                        f"{results[criterion]['1'] / results[criterion]['2']:.2f}",
                    ]
                    for criterion, (examples, tokens) in JOBS.items()
                ),
            ),
            "",
        ]
    if "overhead" in results:
        lines += [
            f"A call that does nothing takes {1000 * results['overhead']:.2f} ms of the first machine.",
            "",
            *simulation(results["overhead"]),
        ]
    return "\n".join(lines).strip() + "\n"


def simulation(spent: float) -> list[str]:
    """The large network on more and more GPUs."""
    rows = []
    for name, job in SIMULATED.items():
        alone, *others = (job.spent(gpus, spent) for gpus in GPUS)
        rows.append(
            [
                name,
                f"{job.times * len(job.calls):,}",
                f"{job.answer / 2**20:,.1f}",
                duration(alone),
                *(f"{duration(seconds)} ({alone / seconds:.1f})" for seconds in others),
            ]
        )
    head = ["", "calls", "answer, MB", *(f"GPUs: {gpus}" for gpus in GPUS)]
    return [
        f"Simulated, not measured: a BERT of {WEIGHTS / 1e9:.1f} billion weights ({LAYERS} blocks, width {WIDTH:,}, "
        f"{NEURONS:,} neurons) in bfloat16, {TOKENS} tokens an example, the engine's own order of calls, "
        f"{1000 * spent:.2f} ms a call in the first machine. Assumed of a GPU: {PRODUCTS / 1e12:.0f} TFLOPS of the "
        f"network's products, {SUMS / 1e12:.0f} of the sums'; {PER_MACHINE} in a machine, {LINK / 1e9:.1f} GB/s into "
        f"it and {MEMORY / 1e9:.0f} GB/s to add up answers. Time until all is added up, and how many times that of "
        "one GPU is saved.",
        "",
        *table(head, rows),
        "",
        "`exact` has work for any number of GPUs. `sketch` is over before the network has reached every machine. The "
        "sums of `compensated` are second moments of what every consumer reads, which fill a GPU beside the network "
        "and at this width take longer on their way to the first machine than in the making: larger batches, not "
        "more GPUs, make it faster.",
    ]


def duration(seconds: float) -> str:
    """In seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"some of: {', '.join(PARTS)}")
    results = Stored("machines")
    for name in parser.parse_args().parts or PARTS:
        PARTS[name](results)
    results.show(render(results))


if __name__ == "__main__":
    main()
