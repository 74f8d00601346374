"""Exchanges: units that move from some groups to others, within one budget, by what each move was measured to lose.

Every group can take a step, to more units, or give one. What a step gains or loses is known of each while all others
stay, so exchanges are those that gain most by what they cost, paid for by those that lose least by what they free.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..running.cost import CostModel
from .search import Choices

PARTS = (4, 8, 16, 32)  # a step is such a part of a group, the coarsest first


def steps(choices: Mapping[str, Choices], kept: Mapping[str, int], part: int) -> dict[str, list[int]]:
    """The counts of each group one step below and above what it keeps, where there are any."""
    found: dict[str, list[int]] = {}
    for name, choice in choices.items():
        counts, here = choice.counts.tolist(), kept[name]
        step = max(1, counts[-1] // part)
        below = [count for count in counts if count <= here - step] or [count for count in counts[:1] if count < here]
        above = [count for count in counts if count >= here + step] or [
            count for count in counts[-1:] if count > here
        ]
        found[name] = [*below[-1:], *above[:1]]
    return found


def exchanges(
    rises: Mapping[str, Mapping[int, float]], kept: Mapping[str, int], cost: CostModel, limit: int
) -> list[dict[str, int]]:
    """The counts after the best exchange, after the two best, and so on, as long as one promises a gain.

    Args:
        rises: of the loss, of every group at its other counts; below zero it falls.
    """
    free = cost(kept)
    rates: list[tuple[float, str, int]] = []  # what a step gains, or loses, by what it costs, or frees
    for name, at in rises.items():
        for count, rise in at.items():
            price = abs(cost({**kept, name: count}) - free)
            rates.append((rise / max(price, 1), name, count))
    takers = sorted(rate for rate in rates if rate[2] > kept[rate[1]] and rate[0] < 0)
    givers = sorted(rate for rate in rates if rate[2] < kept[rate[1]])
    counts, moved = dict(kept), set[str]()
    found: list[dict[str, int]] = []
    for rate, name, count in givers:
        if rate < 0:  # better off with fewer
            trial = {**counts, name: count}
            if cost(trial) <= limit:  # times of parts need not fall with their widths
                counts = trial
                moved.add(name)
                found.append(dict(counts))
    for _, taker, more in takers:
        if taker in moved:
            continue
        trial, promised = {**counts, taker: more}, -rises[taker][more]
        for _, giver, fewer in givers:
            if cost(trial) <= limit:
                break
            if giver not in moved and giver != taker:
                trial[giver] = fewer
                promised -= rises[giver][fewer]
        if cost(trial) <= limit and promised > 0:
            moved |= {name for name, count in trial.items() if count != counts[name]}
            counts = trial
            found.append(dict(counts))
    return found
