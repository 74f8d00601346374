"""Networks, tokenizers and image processors from a local folder or the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..checkpoint import SECTION, load
from ..errors import InputError
from ..files import read_json
from ..other_models import load_dense, of_other, processor_settings
from ..quiet import quiet
from ..runtimes import of_export, open_exported

_AUTO = {
    "classification": "AutoModelForSequenceClassification",
    "regression": "AutoModelForSequenceClassification",
    "tokens": "AutoModelForTokenClassification",
    "embedding": "AutoModel",
    "images": "AutoModelForImageClassification",
    "image-embedding": "AutoModel",
    "image-zero-shot": "AutoModel",
}


def load_model(source: str, kind: str | None = None, **options: Any) -> nn.Module:
    """A network for a task, from a local folder (dense, pruned or exported) or from the hub, in evaluation mode.

    Args:
        kind: a `TaskSpec.kind`; None takes the class that the checkpoint names.
        options: passed to `from_pretrained`.

    Raises:
        InputError: no such folder, or a hub that cannot be reached.
    """
    import transformers

    folder = Path(source)
    if of_export(folder):
        return open_exported(folder)
    config = read_json(folder / "config.json") if folder.is_dir() else None
    if isinstance(config, dict) and SECTION in config:
        return load(folder, **options)
    if of_other(source):
        return load_dense(source)
    if folder.exists() and config is None:
        raise InputError(f"{source} is a file: pass the folder that holds config.json.")
    with clear_errors(source):
        parsed = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        name = _AUTO.get(kind or "") or (parsed.architectures or ["AutoModel"])[0]
        model: nn.Module = getattr(transformers, name).from_pretrained(
            source, use_safetensors=True, trust_remote_code=False, **({"dtype": "auto"} | options)
        )
    return model.eval()


def load_tokenizer(source: str) -> Any:
    """The tokenizer of a local folder or hub id.

    Raises:
        InputError: there is none.
    """
    import transformers

    with clear_errors(source):
        return transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)


def load_processor(source: str) -> Any:
    """The image processor of a local folder or hub id; the one that needs no torchvision.

    Raises:
        InputError: there is none.
    """
    import transformers

    if of_other(source) and not (Path(source) / "preprocessor_config.json").is_file():
        return transformers.BitImageProcessorPil(**processor_settings(source))
    with clear_errors(source):
        return transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")


@contextlib.contextmanager
def clear_errors(source: str) -> Iterator[None]:
    """One line for what transformers says in many when a checkpoint or the hub cannot be had."""
    try:
        with quiet():
            yield
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        place = "a local folder" if Path(source).is_dir() else "no such folder here; from the hub"
        raise InputError(f"cannot load {source!r} ({place}): {reason.strip()[:300]}") from None
