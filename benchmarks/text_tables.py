"""The tables of benchmarks/text.py in Markdown, and the bars that they were measured against."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

DEFAULT = "compensated + compensation"
# By budget in percent: KL to dense at most, points of accuracy lost at most.
KL_BARS = {70: 0.004, 50: 0.015, 40: 0.03}
ACCURACY_BARS = {50: 0.5, 40: 1.0}


def render(results: Mapping[str, Any]) -> str:
    """All tables for which there are results."""
    parts = [TABLES[name](results[name]) for name in TABLES if name in results]
    if results.keys() >= TABLES.keys():
        parts.append(["", "Bars set beforehand:", "", *bars(results)])
    return "\n".join(line for part in parts for line in part).strip() + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> list[str]:
    """Markdown lines."""
    names = list(head)
    lines = [names, ["---"] * len(names), *(list(row) for row in rows)]
    return [f"| {' | '.join(line)} |" for line in lines]


def mean_and_spread(values: Sequence[float], digits: int) -> str:
    """The mean, and the standard deviation if there are several."""
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def bar_table(checks: Iterable[tuple[str, str, bool]]) -> list[str]:
    """What was asked for, what was measured, and whether it was reached, in Markdown."""
    return table(
        ["bar", "measured", ""], ([bar, value, "reached" if met else "**missed**"] for bar, value, met in checks)
    )


def quality(found: Mapping[str, Any]) -> list[str]:
    """Accuracy and KL by criterion and budget."""
    figures = found["figures"]
    budgets = list(dict.fromkeys(figure["budget"] for figure in figures))
    seeds = len({figure["seed"] for figure in figures})
    rows = []
    for name in dict.fromkeys(figure["row"] for figure in figures):
        cells = [_bold(name)]
        for budget in budgets:
            accuracy, kl = (_column(figures, name, budget, key) for key in ("accuracy", "kl"))
            cells.append(f"{mean_and_spread([100 * a for a in accuracy], 1)}, {statistics.mean(kl):.4f}")
        rows.append(cells)
    return [
        f"Dense accuracy {100 * found['dense_accuracy']:.1f} % on 1,000 held-out sentences; mean of {seeds} seeds, "
        "± standard deviation. Accuracy in %, then KL of the outputs to the dense ones.",
        "",
        *table(["criterion", *(f"{budget} % MACs" for budget in budgets)], rows),
        "",
        f"Budgets: {len(figures)} plans leave between {min(unused(found)):,.0f} and {max(unused(found)):,.0f} MACs "
        f"unused; the smallest unit costs {found['smallest_unit']:,}.",
    ]


def unused(found: Mapping[str, Any]) -> list[float]:
    """MACs of each plan that its budget would still allow."""
    return [figure["budget"] / 100 * figure["dense_macs"] - figure["macs"] for figure in found["figures"]]


def agreement(found: Mapping[str, Any]) -> list[str]:
    """Sketch against exact."""
    draws = {key.removeprefix("draws "): value for key, value in found.items() if key.startswith("draws ")}
    return [
        "",
        f"Spearman correlation of `sketch` with `exact` over {found['units']} units (all heads, 500 neurons):",
        "",
        *table(
            ["draws", "heads", "neurons"],
            ([key, f"{value['heads']:.3f}", f"{value['neurons']:.3f}"] for key, value in draws.items()),
        ),
        "",
        f"`exact` took {found['exact_seconds']:.0f} s; resuming behind the consumer and stacking units is "
        f"{found['speedup_over_full_forwards']:.1f} times faster than one full forward per unit.",
    ]


def jobs(found: Mapping[str, Any]) -> list[str]:
    """What each row of the table costs, and the memory of the default job by calibration set."""
    budgets = list(found["rows"][DEFAULT]["speed"])
    rows = [
        [
            _bold(name),
            f"{row['macs']:,}",
            f"{row['score_seconds']:.1f}",
            f"{row['search_seconds']:.2f}",
            f"{row['apply_seconds']:.1f}",
            f"{row['job_in_forwards']:.1f}",
            f"{row['peak_megabytes_above_model']:.0f}",
            *(f"{row['speed'][budget]['speedup']:.2f}" for budget in budgets),
        ]
        for name, row in found["rows"].items()
    ]
    return [
        "",
        "The job at 50 %, each in a process of its own: MACs reached, seconds per stage, all of it in dense forward "
        "passes over the 256 sentences, peak memory in MB above the loaded model; then throughput over the dense "
        "network's at every budget, batch 32 x 32 tokens.",
        "",
        *table(
            ["criterion", "MACs", "score, s", "search, s", "shrink and refit, s", "in passes", "peak, MB"]
            + [f"at {budget} %" for budget in budgets],
            rows,
        ),
        "",
        "Peak memory of the default job by calibration sentences: "
        + ", ".join(
            f"{examples}: {row['peak_megabytes_above_model']:.0f} MB" for examples, row in found["examples"].items()
        )
        + ".",
    ]


def speed(found: Mapping[str, Any]) -> list[str]:
    """Throughput of the default's networks against the ideal."""
    return [
        "",
        *table(
            ["budget", "batch x tokens", "dense, ms", "pruned, ms", "speed-up", "ideal", "share of ideal"],
            (
                [
                    f"{row['budget']} %",
                    f"{row['batch']} x {row['length']}",
                    f"{row['dense_ms']:.1f}",
                    f"{row['pruned_ms']:.1f}",
                    f"{row['speedup']:.2f}",
                    f"{row['ideal']:.2f}",
                    f"{row['share_of_ideal']:.2f}",
                ]
                for row in found["rows"]
            ),
        ),
    ]


def gone(found: Mapping[str, Any]) -> list[str]:
    """Whole parts that go, against units alone."""
    return [
        "",
        "Budgets of latency at batch 1, with units alone and where whole parts (attentions, feed-forward layers) go:",
        "",
        *table(
            ["budget", "parts", "gone", "measured share", "accuracy, %", "KL"],
            (
                [
                    f"{row['budget']} % latency",
                    "yes" if row["parts"] else "no",
                    str(row["gone"]),
                    f"{100 * row['share']:.1f} %",
                    f"{100 * row['accuracy']:.1f}",
                    f"{row['kl']:.4f}",
                ]
                for row in found["rows"]
            ),
        ),
    ]


def bars(results: Mapping[str, Any]) -> list[str]:
    """Every bar, what was measured, and whether it was reached."""
    found, matches, cost = results["quality"], results["agreement"], results["jobs"]["rows"][DEFAULT]
    dense = found["dense_accuracy"]
    checks: list[tuple[str, str, bool]] = []
    for budget, most in KL_BARS.items():
        kl = statistics.mean(_column(found["figures"], DEFAULT, budget, "kl"))
        checks.append((f"KL at {budget} % at most {most}", f"{kl:.4f}", kl <= most))
    for budget, most in ACCURACY_BARS.items():
        lost = 100 * (dense - statistics.mean(_column(found["figures"], DEFAULT, budget, "accuracy")))
        checks.append((f"points lost at {budget} % at most {most}", f"{lost:.2f}", lost <= most + 1e-9))
    left, unit = max(unused(found)), found["smallest_unit"]
    checks.append(("MACs unused below the smallest unit", f"{left:,.0f} of {unit:,}", 0 <= left < unit))
    for kind, least in (("heads", 0.95), ("neurons", 0.97)):
        value = matches["draws 64"][kind]
        checks.append((f"Spearman of {kind} at 64 draws at least {least}", f"{value:.3f}", value >= least))
    factor = matches["speedup_over_full_forwards"]
    checks.append(("`exact` at least 3 times faster than full forwards", f"{factor:.1f}", factor >= 3))
    passes, peak = cost["job_in_forwards"], cost["peak_megabytes_above_model"]
    checks.append(("default job in at most 40 dense passes", f"{passes:.1f}", passes <= 40))
    checks.append(("peak memory at most 1,024 MB above the model", f"{peak:.0f} MB", peak <= 1024))
    share = min(row["share_of_ideal"] for row in results["speed"]["rows"])
    checks.append(("throughput at least 0.9 of the ideal", f"{share:.3f}", share >= 0.9))
    return bar_table(checks)


def _column(figures: list[dict[str, Any]], row: str, budget: int, key: str) -> list[float]:
    return [figure[key] for figure in figures if figure["row"] == row and figure["budget"] == budget]


def _bold(name: str) -> str:
    return f"**{name}**" if name == DEFAULT else name


TABLES = {"quality": quality, "agreement": agreement, "jobs": jobs, "speed": speed, "gone": gone}
