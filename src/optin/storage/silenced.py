"""Keep the libraries of Hugging Face from writing over our progress: what is wrong is raised."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """No progress bar, no load report and no word of retries, until the block ends."""
    from transformers.utils import logging as transformers_logging

    names = ("transformers", "huggingface_hub", "datasets")
    levels = {name: logging.getLogger(name).level for name in names}
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if shown:
            transformers_logging.enable_progress_bar()
