"""How fast networks generate: tokens per second that are read (prefill) and that are said (decode), side by side."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

import torch
from torch import nn

from ..choosing.latency import now
from ..errors import FAILURES
from ..running.batch import Batch
from ..running.caches import generates
from ..running.modules import device_of, inference_mode_of
from ..space.budget import PER_MS
from ..storage.silenced import silenced
from ..support.progress import Track, silent
from ..support.untyped import Figures, Foreign

BATCHES = (1, 8)  # that reports tell of
TOKENS = 16  # that are said behind the first


def generation(
    dense: nn.Module, pruned: nn.Module, inputs: Callable[[int], Batch], *, rounds: int = 3, track: Track = silent
) -> list[Figures]:
    """Both networks in turn, with their caches, greedily: medians over rounds, at every batch of `BATCHES`.

    Prefill is the prompt up to its first answer, in tokens of the prompt (of sound: frames) a second; decode is what
    follows it. Nothing for networks that do not generate from inputs of their own choice.

    Args:
        inputs: so many examples of the prompt.
    """
    networks = (dense, pruned)
    if not all(map(generates, networks)):
        return []
    prompts = {batch: _prompt(inputs(batch)) for batch in BATCHES}
    try:
        for network in networks:
            _seconds(network, prompts[BATCHES[0]], 1 + TOKENS)
    except FAILURES:  # a prompt and its answer that are too long, or inputs that are not those of `generate`
        return []
    found = []
    for batch, prompt in prompts.items():
        times = _times(networks, prompt, rounds, track)
        length = next(iter(prompt.values())).shape[-1]
        rates = [
            {"prefill": batch * length / statistics.median(first), "decode": batch * TOKENS / statistics.median(rest)}
            for first, rest in times
        ]
        found.append({"batch": batch, "length": length, "dense": rates[0], "pruned": rates[1]})
    return found


def _prompt(inputs: Batch) -> Batch:
    """Inputs without the answer that a decoder would read."""
    return {name: value for name, value in inputs.items() if name != "labels" and not name.startswith("decoder_")}


def _times(
    networks: Sequence[nn.Module], inputs: Batch, rounds: int, track: Track
) -> list[tuple[list[float], list[float]]]:
    """Of every network, round by round: seconds to the first token, and of `TOKENS` more."""
    times: list[tuple[list[float], list[float]]] = [([], []) for _ in networks]
    for each in track(range(rounds + 1), "generate", rounds + 1):
        for network, (first, rest) in zip(networks, times, strict=True):
            one, more = (_seconds(network, inputs, count) for count in (1, 1 + TOKENS))
            if each > 0:  # the first round warms up
                first.append(one)
                rest.append(max(more - one, 1e-9))
    return times


@torch.inference_mode()
def _seconds(model: Foreign, inputs: Batch, tokens: int) -> float:
    """Of one answer of so many tokens."""
    device = device_of(model)
    with inference_mode_of(model), silenced():
        start = now(device)
        model.generate(**inputs, min_new_tokens=tokens, max_new_tokens=tokens, do_sample=False, num_beams=1)
        return (now(device) - start) / (1000 * PER_MS)
