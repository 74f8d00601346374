"""Files of GGUF: decoders as llama.cpp has them, read by transformers and made float again."""

from __future__ import annotations

import contextlib
import importlib.util
import io
from pathlib import Path

from torch import nn

from ..errors import DependencyError
from ..support.untyped import Foreign

PACKAGES = ("gguf", "accelerate")


def is_gguf(source: str) -> bool:
    """Whether a source is such a file."""
    return source.endswith(".gguf") and Path(source).is_file()


def load_gguf(source: str, **options: Foreign) -> nn.Module:
    """The decoder of a file, with weights in float32 unless the options say another `dtype`.

    Raises:
        DependencyError: the packages that read it are not installed.
    """
    import torch
    import transformers

    loader: Foreign = transformers.AutoModelForCausalLM
    place = _place(source)
    with contextlib.redirect_stderr(io.StringIO()):  # for a bar that nothing else switches off
        model = loader.from_pretrained(**place, **({"dtype": torch.float32} | options))
    # Nothing of it is quantised any more, though the library goes on saying so and would not save it.
    model.is_quantized, model.hf_quantizer = False, None
    vars(model.config).pop("quantization_config", None)
    network: nn.Module = model.eval()
    return network


def gguf_tokenizer(source: str) -> Foreign:
    """The tokenizer of a file.

    Raises:
        DependencyError: as `load_gguf`.
    """
    import transformers

    return transformers.AutoTokenizer.from_pretrained(**_place(source))


def _place(source: str) -> dict[str, str]:
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        raise DependencyError(f"GGUF needs the package {missing[0]!r}: pip install 'optin[gguf]'")
    file = Path(source)
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
