"""Tasks: data in, metric out.

`specs` is a table; `data` and `images` read files; `loading` gets networks; `text` and `vision` feed them and
measure them.
"""

from . import segmentation, text, vision
from .data import Examples, load_examples
from .images import Images, load_images
from .loading import load_model, load_processor, load_tokenizer
from .segmentation import Scenes, load_scenes
from .specs import TASKS, TaskSpec, task_spec

__all__ = [
    "TASKS",
    "Examples",
    "Images",
    "Scenes",
    "TaskSpec",
    "load_examples",
    "load_images",
    "load_model",
    "load_processor",
    "load_scenes",
    "load_tokenizer",
    "segmentation",
    "task_spec",
    "text",
    "vision",
]
