"""Tasks: data in, metric out. `specs` is a table; `data` reads files; `text` feeds networks and measures them."""

from .data import Examples, load_examples
from .specs import TASKS, TaskSpec, task_spec
from .text import calibration_batches, encode, evaluate, load_model, load_tokenizer

__all__ = [
    "TASKS",
    "Examples",
    "TaskSpec",
    "calibration_batches",
    "encode",
    "evaluate",
    "load_examples",
    "load_model",
    "load_tokenizer",
    "task_spec",
]
