"""What checks the annotations of modules that write down the shapes of their tensors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an integer is a float


def check_shapes() -> None:
    """From the next import of such a module on."""
    source = Path(importlib.util.find_spec("optin").origin).parent
    shaped = (path for path in sorted(source.rglob("*.py")) if "from jaxtyping import" in path.read_text())
    names = [".".join(("optin", *path.relative_to(source).with_suffix("").parts)) for path in shaped]
    install_import_hook(names, "tests.shapes.checked")
