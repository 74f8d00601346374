"""Networks, tokenizers and image processors from a local folder or the hub."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from torch import nn

from ..errors import InputError, OptinError
from ..running.modules import in_precision
from ..storage.gguf import gguf_tokenizer, is_gguf, load_gguf
from ..storage.libraries import load_dense, of_other, processor_settings
from ..storage.loading import load
from ..storage.planned import SECTION
from ..storage.runtimes import of_export, open_exported
from ..storage.silenced import silenced
from ..support.files import read_json
from ..support.untyped import Foreign
from .sentences import sentence_tokenizer
from .specs import Kind, TaskSpec
from .vision import Both
from .vocabulary import check_files, check_vocabulary

UNFILLED = "optin_unfilled"  # where a network remembers which of its weights its checkpoint lacks


def load_model(source: str, kind: Kind | None = None, **options: Foreign) -> nn.Module:
    """A network for a task, from a local folder (dense, pruned or exported), a GGUF file or the hub, ready to run.

    Args:
        kind: of the task; None takes the class that the checkpoint names.
        options: passed to `from_pretrained`.

    Raises:
        InputError: no such folder, a hub that cannot be reached, or weights that are missing.
    """
    import transformers

    source = home_of(source)
    if is_gguf(source):
        with clear_errors(source):
            return load_gguf(source, **options)
    folder = Path(source)
    if of_export(folder):
        return open_exported(folder)
    config = read_json(folder / "config.json") if folder.is_dir() else None
    if isinstance(config, dict) and SECTION in config:
        return load(folder, **options)
    if of_other(source):
        dense = load_dense(source)
        if "dtype" in options:
            in_precision(dense, options["dtype"])
        return dense
    if folder.exists() and config is None:
        raise InputError(f"{source} is a file: pass the folder that holds config.json.")
    if folder.is_dir():
        _check_weights(folder)
    with clear_errors(source):
        parsed = transformers.AutoConfig.from_pretrained(source, trust_remote_code=False)
        name = (kind and kind.loader) or (parsed.architectures or ["AutoModel"])[0]
        model, info = getattr(transformers, name).from_pretrained(
            source,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
            **({"dtype": "auto"} | options),
        )
    _check_filled(model, sorted(info["missing_keys"]), source, kind)
    network: nn.Module = model.eval()
    return network


def _check_weights(folder: Path) -> None:
    """Say what to do with weights that are not safetensors."""
    if any(folder.glob("*.safetensors")):
        return
    if any(folder.glob("pytorch_model*.bin")):
        raise InputError(
            f"{folder} holds its weights as pytorch_model.bin, which is unpickled and can run any code. If you trust "
            "it, load it with transformers and save it anew: AutoModel.from_pretrained(FOLDER).save_pretrained(NEW)."
        )
    if any(folder.glob("*.gguf")):
        raise InputError(
            f"{folder} holds a network of llama.cpp: pass the file itself, of a decoder, or what it was made of."
        )


def _check_filled(model: nn.Module, missing: list[str], source: str, kind: Kind | None) -> None:
    """Refuse random weights in the place of those that a checkpoint lacks, such as a classifier's.

    Encoders that were trained under a head of their own lack a pooler. It stays random and is remembered: nothing but
    the pooling "pooler" reads it.
    """
    read = [name for name in missing if "pooler" not in name.split(".")]
    if read:
        wanted = f", which the task ({kind}) needs" if kind else ""
        raise InputError(
            f"{source} has no weights for {read[0]!r} of {type(model).__name__} ({len(read)} in all){wanted}: "
            "name the task that it was trained for, or train it for this one. Networks without a task are pruned in "
            "Python: optin.prune(model, batches, budget)."
        )
    setattr(model, UNFILLED, missing)


def load_preprocessor(source: str, spec: TaskSpec, model: nn.Module) -> Foreign:
    """What prepares the inputs of a task for a network: tokenizer, image processor or both, checked to be its own.

    Raises:
        InputError: there is none, or it is another network's.
    """
    if spec.kind.of_sound:
        return load_listener(source, spec.kind.writes)
    processor = load_processor(source) if spec.kind.of_images else None
    if spec.kind.of_images and not spec.kind.matched:
        return processor
    tokenizer = load_tokenizer(source)
    check_vocabulary(model, tokenizer)
    if processor is not None:
        return Both(processor, tokenizer)
    return sentence_tokenizer(tokenizer, _fetcher(source), source) if spec.kind.compared else tokenizer


def load_tokenizer(source: str) -> Foreign:
    """The tokenizer of a local folder or hub id.

    Raises:
        InputError: there is none.
    """
    import transformers

    source = home_of(source)
    with clear_errors(source):
        if is_gguf(source):
            return gguf_tokenizer(source)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    if Path(source).is_dir():
        check_files(Path(source), tokenizer)
    return tokenizer


def load_processor(source: str) -> Foreign:
    """The image processor of a local folder or hub id; the one that needs no torchvision.

    Raises:
        InputError: there is none.
    """
    import transformers

    source = home_of(source)
    if of_other(source) and not (Path(source) / "preprocessor_config.json").is_file():
        return transformers.BitImageProcessorPil(**processor_settings(source))
    with clear_errors(source):
        return transformers.AutoImageProcessor.from_pretrained(source, trust_remote_code=False, backend="pil")


def load_listener(source: str, writes: bool) -> Foreign:
    """What prepares recordings for a network of a local folder or hub id, with the tokenizer of one that writes.

    Raises:
        InputError: there is none.
    """
    import transformers

    source = home_of(source)
    kind: Foreign = transformers.AutoProcessor if writes else transformers.AutoFeatureExtractor
    with clear_errors(source):
        found = kind.from_pretrained(source, trust_remote_code=False)
    lacks = [name for name in ("feature_extractor", "tokenizer") if writes and not hasattr(found, name)]
    if lacks or not hasattr(getattr(found, "feature_extractor", found), "sampling_rate"):
        raise InputError(
            f"{source} says nothing of how recordings are prepared: put the files of its processor there."
        )
    return found


def home_of(source: str) -> str:
    """A source with the home folder in the place of "~".

    Raises:
        InputError: a name that no file system takes.
    """
    try:
        path = Path(source).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(f"no such folder: {source:.100} ({error})") from error
    return str(path) if source.startswith("~") else source


def _fetcher(source: str) -> Foreign:
    """Files of a local folder or hub id by their names; None for those that are not there."""
    from transformers.utils.hub import cached_file

    folder = Path(home_of(source))

    def fetch(name: str) -> Path | None:
        if folder.is_dir():
            return folder / name if (folder / name).is_file() else None
        with clear_errors(source):
            found = cached_file(
                source,
                name,
                _raise_exceptions_for_missing_entries=False,
                _raise_exceptions_for_connection_errors=False,
            )
        return None if found is None else Path(found)

    return fetch


@contextlib.contextmanager
def clear_errors(source: str) -> Iterator[None]:
    """One line for what transformers says in many when a checkpoint or the hub cannot be had."""
    try:
        with silenced():
            yield
    except OptinError:
        raise
    except MemoryError as error:
        raise InputError(f"{source!r} does not fit into the memory.") from error
    except Exception as error:  # what the library says of odd configurations has no common class but this
        reason = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        path = Path(source)
        place = (
            "a local folder" if path.is_dir() else "a file" if path.is_file() else "no such folder here; from the hub"
        )
        raise InputError(f"cannot load {source!r} ({place}): {reason.strip()[:300]}") from error
