"""Every example runs as its first lines say."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("*.py"))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of mlflow, about where it stores runs
@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_the_example_runs(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if "mlflow" in file.stem:
        pytest.importorskip("mlflow")
        monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
        monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "runs").as_uri())
    runpy.run_path(str(file), run_name="__main__")


@pytest.mark.slow
def test_the_notebook_runs(tmp_path, monkeypatch):
    """Its cells in order, as a kernel runs them; a cell's last line may be a value to show."""
    monkeypatch.chdir(tmp_path)
    notebook, names = json.loads((EXAMPLES[0].parent / "first_steps.ipynb").read_text()), {}
    cells = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 5 and not any(cell.get("outputs") for cell in notebook["cells"])
    for cell in cells:
        exec(cell, names)
    assert names["result"].plan.shares["macs"] <= 0.5 and (tmp_path / "small" / "report.html").exists()
