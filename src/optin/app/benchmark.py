"""Throughput, latency and size of two networks, measured side by side in one run."""

from __future__ import annotations

import contextlib
import platform
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from torch import nn

from ..accounting import costs
from ..choosing.latency import forward_ms
from ..describing import describe
from ..describing.inputs import example_inputs, image_input, inputs_like, takes
from ..errors import InputError
from ..running.batch import Batch
from ..running.modules import call, inference_mode_of
from ..space.plans import Plan
from ..storage.planned import input_shape
from ..support.progress import Track, silent
from ..support.untyped import Figures
from .generating import generation

BATCHES = (1, 32)  # that reports tell the times of


@dataclass(frozen=True, slots=True)
class Speed:
    """Dense and pruned network on the same inputs.

    Attributes:
        batch, length: shape of the inputs.
        dense_ms, pruned_ms: median time of one forward, in milliseconds.
        speedup: median over rounds of dense time over pruned time; each round times both in turn.
        ideal: dense MACs over pruned MACs at this length.
    """

    batch: int
    length: int
    dense_ms: float
    pruned_ms: float
    speedup: float
    ideal: float

    @property
    def share_of_ideal(self) -> float:
        """Speed-up over what the MACs promise."""
        return self.speedup / self.ideal

    def to_dict(self) -> Figures:
        """All figures."""
        return {**asdict(self), "share_of_ideal": self.share_of_ideal}


def compare_speed(
    dense: nn.Module,
    pruned: nn.Module,
    *,
    batch: int = 32,
    lengths: Sequence[int] | None = None,
    width: int | None = None,
    rounds: int = 15,
    track: Track = silent,
) -> list[Speed]:
    """Time both networks in turn on random inputs without padding.

    Args:
        lengths: tokens of a text (32 and 128 by default) or pixels of an image side (what the plan was made for, else
            the model's own).
        width: in pixels, of images that are not square.
    """
    results = []
    space = describe(dense)
    if lengths is None and image_input(dense):
        length, planned = input_shape(pruned)
        lengths, width = (length,), width or planned
    for length in lengths or (32, 128):
        inputs = example_inputs(dense, length, batch, width)
        if strange := [name for name in inputs if not takes(pruned, name)]:
            raise InputError(f"the second network takes no {strange[0]!r}: it was not made from the first one.")
        ideal = costs(dense, space, length, width)[0].dense / costs(pruned, describe(pruned), length, width)[0].dense
        results.append(_speed(side_by_side((dense, pruned), inputs, rounds, track), batch, length, ideal))
    return results


def _speed(times: Sequence[tuple[float, ...]], batch: int, length: int, ideal: float) -> Speed:
    """Medians over the rounds."""
    return Speed(
        batch,
        length,
        statistics.median(one for one, _ in times),
        statistics.median(other for _, other in times),
        statistics.median(one / other for one, other in times),
        ideal,
    )


def reported_speed(
    dense: nn.Module,
    pruned: nn.Module,
    plan: Plan,
    length: int | None = None,
    *,
    rounds: int = 15,
    track: Track = silent,
) -> Figures:
    """What reports tell of time: both networks at every batch of `BATCHES`, and where they were timed.

    Of networks that generate, the tokens per second too.

    Args:
        plan: that the pruned network was cut by, which says what inputs look like.
        length: of the inputs; that of the plan if not given.
    """
    size, width = length or plan.length, None if length else plan.width
    ideal = plan.dense.macs / plan.pruned.macs
    if length is not None:
        work, _ = costs(dense, describe(dense), size, width, plan)
        ideal = work.dense / work.merged(plan.tokens)(plan.kept)
    speeds = []
    for batch in BATCHES:
        inputs = inputs_like(dense, plan, size, width, batch)
        speeds.append(_speed(side_by_side((dense, pruned), inputs, rounds, track), batch, size, ideal).to_dict())
    rates = generation(dense, pruned, lambda batch: inputs_like(dense, plan, size, width, batch), track=track)
    return {"machine": machine(dense), "speed": speeds} | ({"generation": rates} if rates else {})


def machine(model: nn.Module) -> dict[str, str]:
    """Where and when times were measured, for a report."""
    weight = next(model.parameters())
    if weight.device.type == "cuda":
        place = torch.cuda.get_device_name(weight.device)
    else:
        threads = torch.get_num_threads()
        place = f"{_processor()}, {threads} thread{'s' * (threads > 1)}"
    return {"device": place, "dtype": str(weight.dtype).removeprefix("torch."), "date": f"{date.today()}"}


def _processor() -> str:
    """Its name, as far as the system tells."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def side_by_side(
    networks: Sequence[nn.Module], inputs: Batch, rounds: int = 15, track: Track = silent
) -> list[tuple[float, ...]]:
    """Milliseconds of one forward of each network, in rounds that take all of them in turn."""
    with contextlib.ExitStack() as stack:
        for network in networks:
            stack.enter_context(inference_mode_of(network))
        stack.enter_context(torch.inference_mode())
        for network in networks:
            call(network, inputs)
        return [
            tuple(forward_ms(network, inputs) for network in networks) for _ in track(range(rounds), "speed", rounds)
        ]
