"""Which task a network is for, as its configuration says, and which preset is for that."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ..storage.gguf import is_gguf
from ..storage.libraries import of_other
from ..storage.untrusted import check_source
from ..support.files import read_json
from ..support.untyped import Foreign
from .loading import clear_errors, home_of
from .specs import TASKS

ENDS: Mapping[str, str] = {  # how the name of a class ends
    "ForSequenceClassification": "text-classification",
    "ForCausalLM": "language-modelling",
    "LMHeadModel": "language-modelling",
    "MTModel": "seq2seq",
    "ForCTC": "speech-recognition",
    "ForAudioClassification": "audio-classification",
    "ForTokenClassification": "token-classification",
    "ForImageClassification": "image-classification",
    "ForSemanticSegmentation": "semantic-segmentation",
    "ForUniversalSegmentation": "semantic-segmentation",
}
IMAGES = ("image_size", "num_channels", "vision_config", "backbone_config")  # what only networks of images have


SOUNDS = ("num_mel_bins", "conv_kernel", "feat_extract_norm")  # what only networks of recordings have


def guessed_task(source: str) -> str | None:
    """The task of a checkpoint, without its weights; None where that is not plain.

    Raises:
        InputError: it is no folder here, and cannot be had from the hub.
        CheckpointError: its configuration is damaged.
    """
    source = home_of(source)
    if is_gguf(source):
        return "language-modelling"
    if of_other(source):
        return "image-classification"
    if not Path(source).exists():
        check_source(source)
        return _of_config(_from_hub(source), Path(source))
    return _of_config(_config(source), Path(source))


def guessed_preset(task: str) -> str:
    """The preset for a task."""
    kind = TASKS[task].kind if task in TASKS else None
    if kind is None or not kind.of_images:
        return "default"
    return "segmentation" if kind.of_scenes else "beta"


def _config(source: str) -> Foreign:
    file = Path(source) / "config.json"
    return read_json(file) if file.is_file() else {}


def _from_hub(source: str) -> Foreign:
    import transformers

    with clear_errors(source):
        return transformers.PretrainedConfig.get_config_dict(source)[0]


def _of_config(config: Foreign, folder: Path) -> str | None:
    named = config.get("architectures") if isinstance(config, dict) else None
    name = named[0] if isinstance(named, list) and named and isinstance(named[0], str) else ""
    if any(key in config for key in SOUNDS) and name.endswith(
        ("ForSequenceClassification", "ForAudioClassification")
    ):
        return "audio-classification"
    if name.endswith("ForConditionalGeneration") and not any(key in config for key in IMAGES):
        heard = any(key in config for key in SOUNDS)
        return "speech-recognition" if heard else "seq2seq" if _pairs(config) else None
    task = next((task for end, task in ENDS.items() if name.endswith(end)), None)
    if task == "text-classification" and (
        config.get("problem_type") == "regression" or len(config.get("id2label") or "  ") == 1
    ):
        return "text-regression"
    if task is not None or not name.endswith("Model") or "Head" in name:
        return task
    if "text_config" in config and "vision_config" in config:
        return "zero-shot-image-classification"
    return "image-embedding" if any(key in config for key in IMAGES) else "sentence-embedding"


def _pairs(config: Foreign) -> bool:
    """Whether a network has an encoder and a decoder of texts; families that are nothing else need not say so."""
    return bool(config.get("is_encoder_decoder")) or any(
        key in config for key in ("decoder_layers", "num_decoder_layers")
    )
