"""What README and the public interface promise."""

from __future__ import annotations

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

import optin
from optin.app.cli import app
from tests.networks import WORDS, build, tokenizer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_example_runs(tmp_path, monkeypatch):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    build("bert").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    texts = [" ".join(WORDS[i % 7 : i % 7 + 3]) for i in range(256)]
    names = {"path": "model", "texts": texts}
    exec(code, names)
    assert names["result"].plan.pruned.macs <= 0.5 * names["result"].plan.dense.macs
    assert (tmp_path / "small" / "model.safetensors").exists()


def test_the_figures_are_those_that_the_benchmark_printed():
    begin, end = "<!-- benchmarks/peers.py -->\n", "<!-- end -->"
    tables = (ROOT / "docs" / "results" / "peers.md").read_text()
    table = tables.partition("## minilm\n")[2].partition("## dinov2")[0].strip()
    assert README.partition(begin)[2].partition(end)[0].strip() == table.replace("](peers-", "](docs/results/peers-")
    assert len(README.splitlines()) <= 120


def test_what_is_said_of_the_refit_is_what_was_measured():
    """At half of the MACs about ten times closer; the default closest at every budget."""
    figures = json.loads((ROOT / "docs" / "results" / "text.json").read_text())["quality"]["figures"]

    def kl(row: str, budget: int) -> float:
        return statistics.mean(f["kl"] for f in figures if (f["row"], f["budget"]) == (row, budget))

    gains = [
        kl(f"{name}, masks only", 50) / kl(f"{name} + compensation", 50)
        for name in ("compensated", "sketch", "exact", "fisher")
    ]
    assert min(gains) > 7.5 and max(gains) < 15
    rows = {figure["row"] for figure in figures}
    closest = {min(rows, key=lambda row: kl(row, budget)) for budget in {figure["budget"] for figure in figures}}
    assert closest == {"compensated + compensation"}


def test_budgets_were_hit_as_is_said():
    """Never exceeded, and within one neuron."""
    found = json.loads((ROOT / "docs" / "results" / "text.json").read_text())["quality"]
    unused = [figure["budget"] / 100 * figure["dense_macs"] - figure["macs"] for figure in found["figures"]]
    assert min(unused) >= 0 and max(unused) < found["smallest_unit"]


def test_exit_codes_are_those_of_the_errors():
    said = dict(re.findall(r"(\d+)\s([a-zA-Z ]+)", README.partition("Exit codes:")[2].partition("\n\n")[0]))
    codes = {kind.exit_code for kind in vars(optin.errors).values() if getattr(kind, "exit_code", 1) != 1}
    assert {int(code) for code in said} == codes | {0, 130, 143}


COMMANDS = [
    (path.name, line)
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for block in re.findall(r"```bash\n(.*?)```", path.read_text(), re.DOTALL)
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("optin ")
]


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_commands_in_the_documentation_are_understood(page, line):
    """Every option exists and takes what it is given; nothing is run."""
    command: Any = typer.main.get_command(app)
    _, name, *arguments = shlex.split(line, comments=True)
    context = command.commands[name].make_context(name, arguments)
    assert context.params


def test_public_names_are_documented():
    assert optin.__all__ == sorted(optin.__all__, key=lambda name: (not name.isupper(), name[0].islower(), name))
    for name in set(optin.__all__) - {"PRESETS"}:
        assert getattr(optin, name).__doc__, name


def test_importing_the_package_loads_no_library_of_models():
    slow = {"transformers", "datasets", "torchmetrics", "timm", "jinja2", "triton"}
    code = f"import sys, optin; print(sorted({slow} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_progress_is_shown_on_the_error_stream(capsys):
    assert list(optin.rich_track(range(3), "stage", 3)) == [0, 1, 2]
    out, err = capsys.readouterr()
    assert out == "" and "stage" in err
