"""The versions of what a result depends on."""

from __future__ import annotations

import hashlib
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from .. import __version__


def versions() -> dict[str, str]:
    """Installed versions of optin, torch and transformers."""
    found = {"optin": __version__}
    for name in ("torch", "transformers"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def build() -> dict[str, str]:
    """What computes the same as this process does: `versions`, and SHA-256 of the package's own source."""
    digest, folder = hashlib.sha256(), Path(__file__).parent.parent
    for file in sorted(folder.rglob("*.py")):
        digest.update(f"{file.relative_to(folder)}".encode())
        digest.update(file.read_bytes())
    return {**versions(), "source": digest.hexdigest()[:12]}
