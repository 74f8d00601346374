"""What README and the public interface promise."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import optin
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
    assert README.partition(begin)[2].partition(end)[0] == tables.replace("](peers-", "](docs/results/peers-")


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
