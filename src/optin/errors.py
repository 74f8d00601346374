"""The exceptions of the package: each says what was wrong, what was expected and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

TYPO = 0.75  # of the letters that two names must share; "ernie" is no slip of the pen for "upernet"
LONGEST = 300  # letters of another library's message that are passed on
NOT_TYPED = ("architecture",)  # kinds of names that programs write: what looks like another is another
# What a forward of the user's own network may raise on inputs that it does not take.
FAILURES = (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError, AssertionError, MemoryError)


class OptinError(Exception):
    """Base of every error that a user can cause. `exit_code` is what the command line returns."""

    exit_code = 1


class InputError(OptinError):
    """A path, option, recipe, data file or batch that cannot be used."""

    exit_code = 2


class ArchitectureError(OptinError):
    """A network that the package does not understand."""

    exit_code = 3


class BudgetError(OptinError):
    """A budget that cannot be read or cannot be reached."""

    exit_code = 4


class NumericalError(OptinError):
    """NaN or infinite weights or activations."""

    exit_code = 5


class CheckpointError(OptinError):
    """A checkpoint or score file that is damaged, tampered with or cannot be written."""

    exit_code = 6


class DependencyError(OptinError):
    """An optional package that is needed here and is not installed."""

    exit_code = 7


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """Message for a name that is in no registry; with a known one that it may be a slip of the pen for."""
    known = sorted(known)
    near = [] if kind in NOT_TYPED else difflib.get_close_matches(name, known, n=1, cutoff=TYPO)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"unknown {kind} {name!r:.80}.{hint} Known: {', '.join(known)}."


def first_line(error: BaseException) -> str:
    """The first line of what an error says, and the second where the first ends with a colon; in full words."""
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    said = " ".join(lines[: 2 if lines[0].endswith(":") else 1])
    return said if len(said) <= LONGEST else f"{said[:LONGEST].rpartition(' ')[0]} ..."


def out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out, on whichever device; torch has several ways to say so."""
    text = str(error).lower()
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or any(said in text for said in ("out of memory", "can't allocate memory", "not enough memory"))
    )


def refused(message: str, error: BaseException) -> InputError:
    """What to raise `from` an error of a network's own code: that memory ran out, or that it refuses its inputs."""
    if out_of_memory(error):
        return InputError("memory ran out. Use smaller batches, fewer or shorter inputs, or --dtype bfloat16.")
    return InputError(f"{message}: {first_line(error)}")
