"""The wheel and the source distribution, built and installed offline, hold the whole package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import optin
from optin.support.versions import versions
from tests.slow import slow_but

ROOT = Path(__file__).parent.parent
INSTALL = ("-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--target")
USE = (
    "import sys, optin, torch\n"
    "from transformers import BertConfig, BertModel\n"
    "sizes = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=4, intermediate_size=20, vocab_size=60)\n"
    "model = BertModel(BertConfig(**sizes)).eval()\n"
    "optin.prune(model, [{'input_ids': torch.arange(40).view(4, 10)}], '60%').save(sys.argv[1])\n"
    "print(optin.__file__)\n"
)


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", folder], cwd=ROOT, check=True, capture_output=True
    )
    return folder


@pytest.mark.parametrize("kind", slow_but([], ["*.whl", "*.tar.gz"]))
def test_distributions_install_and_work(kind, distributions, tmp_path):
    (file,) = distributions.glob(kind)
    site = tmp_path / "site"
    subprocess.run([sys.executable, *INSTALL, site, file], check=True, capture_output=True)
    package = ROOT / "src" / "optin"
    expected = {path.relative_to(package) for path in package.rglob("*") if path.is_file() and path.suffix != ".pyc"}
    assert expected == {
        path.relative_to(site / "optin")
        for path in (site / "optin").rglob("*")
        if path.suffix != ".pyc" and path.is_file()
    }
    environment = os.environ | {"PYTHONPATH": str(site)}
    command = [sys.executable, "-c", USE, tmp_path / "small"]
    used = subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True)
    assert Path(used.stdout.strip()).parent == site / "optin"
    assert {"model.safetensors", "report.html", "README.md"} <= {path.name for path in (tmp_path / "small").iterdir()}
    command = [sys.executable, "-m", "optin", "--version"]
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True, text=True).stdout


def test_the_version_is_that_of_the_changelog():
    """A version in development has its changes under "Unreleased", a release under its own number."""
    first = re.search(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first is not None
    released = "Unreleased" if "dev" in optin.__version__ else optin.__version__
    assert first[1].split(" ")[0] == released
    assert versions()["optin"] == optin.__version__
    cited = re.search(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert cited is not None and ("dev" in optin.__version__ or cited[1] == optin.__version__)
