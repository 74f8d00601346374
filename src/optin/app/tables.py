"""Results as tables for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from ..storage.headline import sentence
from ..storage.report import notes, overlap
from ..support.untyped import Figures


def entries(result: dict[str, object]) -> Table:
    """One line per figure."""
    table = Table(show_header=False)
    table.add_column()
    table.add_column(overflow="fold")  # a path that is cut off cannot be copied
    for name, value in result.items():
        _row(table, name, f"{value:.4f}" if isinstance(value, float) else str(value))
    return table


def listing(result: Figures) -> Table:
    """`optin tasks`, `optin presets`: a line each."""
    table = Table("", *next(iter(result.values())))
    for name, line in result.items():
        table.add_row(name, *line.values())
    return table


def inspection(result: Figures) -> RenderableType:
    """`optin inspect`."""
    groups = _table("group", "units", "MACs each", "parameters each")
    for group in result["groups"]:
        _row(
            groups,
            group["name"],
            f"{group['units']:,}",
            f"{group['macs_per_unit']:,}",
            f"{group['parameters_per_unit']:,}",
        )
    modules = _table("module", "MACs", "share")
    for name, macs in result["breakdown"].items():
        _row(modules, name, f"{macs:,}", f"{macs / result['macs']:.1%}")
    stays = _table("what is read by", "stays whole because of")
    for name, reason in _in_short(result["whole"]):
        _row(stays, name, reason)
    least = result["smallest"]
    head = entries(
        {
            "architecture": result["architecture"],
            f"MACs at length {result['length']}": f"{result['macs']:,}",
            "parameters": f"{result['parameters']:,}",
            "smallest budget": f"{least['macs'] / result['macs']:.1%} of the MACs, "
            f"{least['parameters'] / result['parameters']:.1%} of the parameters",
        }
    )
    return Group(head, groups, *([stays] if result["whole"] else []), modules)


def _in_short(whole: dict[str, str]) -> list[tuple[str, str]]:
    """One row for all maps that stay for one reason: the first of them, and how many others there are."""
    reasons: dict[str, list[str]] = {}
    for name, reason in whole.items():
        reasons.setdefault(reason, []).append(name)
    return [
        (names[0] + (f" (and {len(names) - 1} others)" if len(names) > 1 else ""), reason)
        for reason, names in reasons.items()
    ]


def plan(result: Figures) -> RenderableType:
    """`optin plan`: costs, then units kept per group."""
    groups = _table("group", "kept", "of")
    for name, group in result["groups"].items():
        _row(groups, name, str(group["kept"]), str(group["of"]))
    return Group(_costs(result), groups)


def pruning(result: Figures) -> RenderableType:
    """`optin prune`: costs, quality, seconds; of a dry run what was counted."""
    if "dry run" in result:
        return entries(result)
    parts: list[RenderableType] = [_costs(result), *map(Text, notes(result))]
    if quality := result.get("quality"):
        table = _table("metric", "dense", "pruned")
        for name, value in quality["pruned"].items():
            dense = quality["dense"].get(name)
            _row(table, name, "" if dense is None else f"{dense:.4f}", f"{value:.4f}")
        parts += [table, *map(Text, overlap(quality)), Text(sentence(result, "the dense network"))]
    seconds = {f"{name}, seconds": value for name, value in result["seconds"].items()}
    return Group(*parts, entries({**seconds, "saved": result["saved"]}))


def sweep(result: Figures) -> RenderableType:
    """`optin sweep`: a line per budget, the dense network first; of a dry run what was counted."""
    if "dry run" in result:
        return entries(result)
    names = [name for name in result["points"][0] if name not in ("budget", "macs", "parameters")]
    table = _table("budget", "MACs", "parameters", *names)
    dense = {"budget": "dense", "macs": 1.0, "parameters": 1.0, **result["dense"]}
    for point in (dense, *result["points"]):
        figures = [f"{point[name]:.4f}" if name in point else "" for name in names]
        _row(table, point["budget"], f"{point['macs']:.2%}", f"{point['parameters']:.2%}", *figures)
    return Group(table, *map(Text, overlap(result)), entries({name: result[name] for name in ("saved", "picture")}))


def speeds(result: list[dict[str, object]]) -> Table:
    """`optin bench`."""
    table = _table("batch x tokens", "dense, ms", "pruned, ms", "speed-up", "ideal", "share of ideal")
    for speed in result:
        _row(
            table,
            f"{speed['batch']} x {speed['length']}",
            f"{speed['dense_ms']:.1f}",
            f"{speed['pruned_ms']:.1f}",
            f"{speed['speedup']:.2f}",
            f"{speed['ideal']:.2f}",
            f"{speed['share_of_ideal']:.2f}",
        )
    return table


def exports(result: Figures) -> RenderableType:
    """`optin export`: a line per network and runtime."""
    other = ("network", "runtime", "file", "bytes", "fixed", "difference", "ms")
    names = [name for name in result["rows"][0] if name not in other]
    table = _table("network", "runtime", "MB", "difference", "ms", *names)
    table.columns[1].justify = "left"
    for row in result["rows"]:
        _row(
            table,
            row["network"],
            row["runtime"],
            f"{row['bytes'] / 1e6:.1f}" if "bytes" in row else "",
            f"{row['difference']:.1e}" if "difference" in row else "",
            f"{row['ms']:.1f}",
            *(f"{row[name]:.4f}" for name in names),
        )
    written = {row["runtime"]: row["file"] for row in result["rows"] if row["network"] != "dense" and "file" in row}
    fixed = {name for row in result["rows"] for name in row.get("fixed", ())}
    notes = {"keep their size": ", ".join(sorted(fixed))} if fixed else {}
    return Group(table, entries({"inputs": result["inputs"], **notes, **written}))


def demo(result: Figures) -> RenderableType:
    """`optin demo`: everything, and where it lies."""
    return Group(pruning(result["pruning"]), speeds(result["speed"]), Text(f"Open {result['open']}"))


def _costs(result: Figures) -> Table:
    table = _table("", "dense", "pruned", "ratio")
    for name in ("macs", "parameters"):
        dense, pruned = result[name]["dense"], result[name]["pruned"]
        _row(table, "MACs" if name == "macs" else name, f"{dense:,}", f"{pruned:,}", f"{pruned / dense:.2%}")
    if latency := result.get("latency"):
        dense = latency["dense_ms"]
        for kind in (kind for kind in ("predicted", "measured") if f"{kind}_ms" in latency):
            pruned = latency[f"{kind}_ms"]
            name = f"{kind} ms, batch of {latency['batch']}"
            _row(table, name, f"{dense:.2f}", f"{pruned:.2f}", f"{pruned / dense:.2%}")
    return table


def _table(first: str, *rest: str) -> Table:
    table = Table()
    table.add_column(Text(first))
    for name in rest:
        table.add_column(Text(name), justify="right")
    return table


def _row(table: Table, *cells: str) -> None:
    """Brackets in names and paths are no markup."""
    table.add_row(*map(Text, cells))
