"""Tasks: data in, metric out.

`specs` is a table of tasks; `kinds` says how the data of each is loaded, batched and measured. `data`, `rows`,
`images`, `decoding` and `audio` read files; `loading` gets networks and what prepares their inputs (`vocabulary`,
`sentences`); `text`, `prose`, `writing`, `sounds`, `vision` and `segmentation` feed and measure them, `comparison`
two side by side; `checks` finds before any work what would keep them from it; `held_out` keeps apart what calibration
saw.
"""

from . import segmentation, text, vision
from .checks import check_evaluation, check_fit, check_pooling, check_reference
from .comparison import Comparison
from .data import Examples, load_examples
from .held_out import Data, at_most, held_out
from .images import Images, load_images
from .kinds import TextTask, task_of
from .loading import load_model, load_preprocessor, load_processor, load_tokenizer
from .prose import Documents, Windows
from .raw import batches_of
from .segmentation import Scenes, load_scenes
from .sentences import SentenceTokenizer
from .specs import TASKS, Kind, TaskSpec, task_spec

__all__ = [
    "TASKS",
    "Comparison",
    "Data",
    "Documents",
    "Examples",
    "Images",
    "Kind",
    "Scenes",
    "SentenceTokenizer",
    "TaskSpec",
    "TextTask",
    "Windows",
    "at_most",
    "batches_of",
    "check_evaluation",
    "check_fit",
    "check_pooling",
    "check_reference",
    "held_out",
    "load_examples",
    "load_images",
    "load_model",
    "load_preprocessor",
    "load_processor",
    "load_scenes",
    "load_tokenizer",
    "segmentation",
    "task_of",
    "task_spec",
    "text",
    "vision",
]
