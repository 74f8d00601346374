"""How fast the command line answers: medians of ten, warm.

    python benchmarks/startup.py

Prints the seconds of Python itself, of `import optin`, of the library that lays out the help, and of `optin --help`.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time

ROUNDS = 10
COMMANDS = {
    "python -c pass": ["-c", "pass"],
    "import optin": ["-c", "import optin"],
    "import typer.rich_utils": ["-c", "import typer.rich_utils"],
    "optin --help": ["-m", "optin", "--help"],
}


def seconds(arguments: list[str]) -> float:
    """Of one run."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    for name, arguments in COMMANDS.items():
        seconds(arguments)
        print(f"{name}: {statistics.median(seconds(arguments) for _ in range(ROUNDS)):.2f} s")


if __name__ == "__main__":
    main()
