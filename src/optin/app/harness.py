"""Tasks of EleutherAI's lm-evaluation-harness, on any network that a folder holds."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ..errors import DependencyError, InputError, first_line
from ..recipe import Recipe
from ..support.files import read_text
from ..support.untyped import Figures, Foreign
from ..tasks import load_tokenizer, task_spec
from .placement import Placement, local

FILES = (".yaml", ".yml")
LARGEST = 2**20  # bytes of such a file


def run_harness(source: str, tasks: Sequence[str], recipe: Recipe, placement: Placement) -> Figures:
    """The harness's figures of a decoder, `task metric` by `task metric`.

    Args:
        tasks: their names, or YAML files of your own, which may run code that they name.
        recipe: says how many examples of each task are taken at most, and how many are in a batch.

    Raises:
        DependencyError: the harness is not installed.
        InputError: a task that it does not know, or data of it that cannot be had.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise DependencyError(
            f"the harness cannot be imported ({first_line(error)}): pip install 'optin[lm-eval]'"
        ) from None
    own = [Path(task) for task in tasks if task.endswith(FILES)]
    names = [_name_of(Path(task)) if task.endswith(FILES) else task for task in tasks]
    model: Foreign = placement.load(local(source), task_spec("language-modelling").kind)
    network = HFLM(
        pretrained=model, tokenizer=load_tokenizer(local(source)), batch_size=recipe.calibration.batch_size
    )
    manager = TaskManager(include_path=[str(file.parent) for file in own] or None)
    try:
        found: Foreign = lm_eval.simple_evaluate(
            network, tasks=names, limit=recipe.task.limit, task_manager=manager, bootstrap_iters=0, log_samples=False
        )
    except Exception as error:  # what the harness says of tasks and their data has no common class but this
        raise InputError(f"the harness cannot run {', '.join(names)}: {first_line(error)}") from error
    figures = {
        f"{task} {metric.partition(',')[0]}": value
        for task, metrics in found["results"].items()
        for metric, value in metrics.items()
        if isinstance(value, float) and "stderr" not in metric
    }
    return {"model": source, **figures}


def _name_of(file: Path) -> str:
    """The name that a task's own file gives to it."""
    found = re.search(r"^task:\s*['\"]?([\w.-]+)", read_text(file, LARGEST, "YAML"), re.MULTILINE)
    if found is None:
        raise InputError(f"{file} is no task of the harness: it must say its name, 'task: NAME'.")
    return found[1]
