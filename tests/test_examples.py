"""Every example runs as its first lines say."""

from __future__ import annotations

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
