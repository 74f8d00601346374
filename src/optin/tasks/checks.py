"""Whether a network can be evaluated on some examples: all that can be wrong, found before any work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..describing.inputs import default_length, example_inputs, image_input, takes
from ..errors import InputError, first_line
from ..running.batch import Batch, to_device, token_mask
from ..running.modules import device_of, inference_mode_of
from ..running.outputs import answers, projected
from ..support.untyped import Foreign
from . import segmentation, text, vision
from .audio import Recordings
from .data import Examples
from .held_out import Data
from .images import Images, Unreadable
from .loading import UNFILLED
from .metrics import check_metrics
from .prose import Windows, check_causal
from .segmentation import Scenes
from .sentences import SentenceTokenizer
from .specs import TaskSpec
from .writing import check_writes, inputs_of

SIDE = 256  # pixels at most of a scene that a network is tried on


def check_evaluation(
    model: nn.Module, spec: TaskSpec, examples: Data, preprocessor: object = None, pooling: str = "mean"
) -> None:
    """Refuse what `evaluate` of the task would fail on: labels, masks, a head that does not fit, missing packages.

    The network is run once, on one input.

    Args:
        preprocessor: tokenizer or image processor; without, the network is tried on an input of its own choice.
        pooling: as in `Trajectory.pooling`, for sentence and image embeddings.

    Raises:
        InputError: says what does not fit.
        DependencyError: a package is missing.
    """
    check_metrics()
    if len(examples) == 0:
        raise InputError("there is nothing to evaluate: the data holds no examples.")
    check_fit(model, spec)
    if spec.kind.matched:
        vision.class_indices(model, spec, _images(examples))
        return
    if spec.kind.writes:
        check_writes(model, preprocessor, examples)
        return
    answer = _answer(model, spec, examples, preprocessor, pooling)
    if spec.kind.of_scenes:
        segmentation.check_scenes(_scenes(examples), answer.shape[1])
    elif spec.kind.of_images:
        vision.class_indices(model, spec, _images(examples))
    elif isinstance(examples, Recordings):
        vision.class_indices(model, spec, examples)
    elif isinstance(examples, Windows):
        check_causal(model, examples)
    elif isinstance(examples, Examples):
        _check_variety(spec, examples, text.class_indices(model, spec, examples))


def check_reference(
    model: nn.Module, dense: nn.Module, spec: TaskSpec, examples: Data, preprocessor: object, pooling: str
) -> None:
    """Refuse a reference whose outputs are not those of the network: no distance between them would mean anything.

    Raises:
        InputError: says how many outputs each has.
    """
    if spec.kind.matched or spec.kind.writes:
        return
    axis = 1 if spec.kind.of_scenes else -1
    ours, theirs = (_answer(network, spec, examples, preprocessor, pooling).shape[axis] for network in (model, dense))
    if ours != theirs:
        raise InputError(f"the network has {ours:,} outputs and the reference {theirs:,}: they cannot be compared.")


def check_fit(model: nn.Module, spec: TaskSpec) -> None:
    """Refuse a task whose inputs the network does not take.

    Raises:
        InputError: images for a network of texts, or the reverse.
    """
    name = type(model).__name__
    if spec.kind.matched and not hasattr(model, "get_text_features"):
        raise InputError(f"{name} has no towers for images and texts: zero-shot classification needs one like CLIP.")
    if spec.kind.of_images and image_input(model) is None:
        raise InputError(f"{name} takes no images. Name a text task with --task.")
    sounds = takes(model, "input_features") or takes(model, "input_values")
    if spec.kind.of_sound and not sounds:
        raise InputError(f"{name} takes no recordings. Name another task with --task.")
    if not spec.kind.of_images and not spec.kind.of_sound and not takes(model, "input_ids"):
        raise InputError(f"{name} takes no texts. Name an image task with --task, for example image-classification.")


def _answer(model: nn.Module, spec: TaskSpec, examples: object, preprocessor: object, pooling: str) -> Tensor:
    """What the network says of one input, of the form that the task needs."""
    name = type(model).__name__
    inputs = _one_input(model, spec, examples, preprocessor)
    try:
        with inference_mode_of(model), torch.inference_mode():
            output = model(**to_device(inputs, device_of(model)))
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise InputError(f"one example does not fit into the memory: {first_line(error)}") from error
    except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
        shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in inputs.items())
        raise InputError(f"{name} does not take what is prepared for it ({shapes}): {first_line(error)}") from error
    answer = _read(output, spec, pooling)
    if answer is None:
        raise InputError(f"{name} does not fit the task: it gives no {spec.kind.gives}.")
    if spec.kind.compared and isinstance(preprocessor, SentenceTokenizer):
        try:
            preprocessor.embed(answer, token_mask(inputs).to(answer.device), pooling)
        except RuntimeError as error:
            raise InputError(f"the Dense modules do not fit the network: {first_line(error)}") from error
    _check_width(name, spec, answer.shape[1] if spec.kind.of_scenes else answer.shape[-1])
    return answer


def _read(output: object, spec: TaskSpec, pooling: str) -> Tensor | None:
    """The part of an output that the task is measured by; None where it is missing or of another form."""
    if spec.kind.of_scenes:
        try:
            found: Foreign = answers(output)
        except AttributeError:
            return None
        return found if found.dim() == 4 else None
    if spec.kind.compared:
        if spec.kind.of_images and (isinstance(output, Tensor) or projected(output)):
            return output if isinstance(output, Tensor) else projected(output)[0]
        name = "pooler_output" if pooling == "pooler" else "last_hidden_state"
        found = getattr(output, name, None)
        return found if isinstance(found, Tensor) else None
    found = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    dims = 3 if spec.kind.tagged or spec.kind.of_prose else 2
    return found if isinstance(found, Tensor) and found.dim() == dims else None


def _check_width(name: str, spec: TaskSpec, width: int) -> None:
    if spec.kind.numeric and width != 1:
        raise InputError(f"{name} has {width} outputs, and a regression one: name a classification with --task.")
    if spec.kind.labels == "class" and width < 2:
        raise InputError(f"{name} has one output, and a classification several: try --task text-regression.")
    if "f1" in spec.metrics and width != 2:
        raise InputError(f"{name} has {width} outputs, and the task has 2 classes.")


def _check_variety(spec: TaskSpec, examples: Examples, labels: list[object]) -> None:
    """Correlations and neighbours need more than one example."""
    if spec.kind.compared and len(examples) < 2:
        raise InputError("embeddings are compared with their neighbours': give two examples at least.")
    if spec.kind.numeric and len(set(labels)) < 2:
        raise InputError("a regression is measured by correlation: give examples with different labels.")


def _one_input(model: nn.Module, spec: TaskSpec, examples: Foreign, preprocessor: object) -> Batch:
    if isinstance(examples, Recordings):
        return inputs_of(model, preprocessor, examples, [0])[0]
    if isinstance(examples, Windows):
        ids = examples.tokens(*examples.places[0])[None]
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if preprocessor is None:
        return example_inputs(model, default_length(model)) if spec.kind.of_images else _few_tokens()
    if not spec.kind.of_images:
        return dict(text.encode(preprocessor, examples, [0], min(8, text.sequence_limit(model, preprocessor, None))))
    name = image_input(model) or ""
    for index in range(len(examples)):
        try:
            image = examples.read(index)
        except Unreadable:
            continue
        if spec.kind.of_scenes:
            image = image.crop((0, 0, min(image.width, SIDE), min(image.height, SIDE)))
        return vision.prepared(preprocessor, [image], name)
    raise InputError(f"none of the {len(examples)} images can be read: {examples.problem()}")


def _few_tokens() -> Batch:
    ids = torch.zeros(1, 4, dtype=torch.int64)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def _images(examples: object) -> Images:
    if not isinstance(examples, Images):
        raise InputError(f"the task needs images, and these are {type(examples).__name__}.")
    return examples


def _scenes(examples: object) -> Scenes:
    if not isinstance(examples, Scenes):
        raise InputError(f"the task needs images with masks, and these are {type(examples).__name__}.")
    return examples


def check_pooling(model: nn.Module, pooling: str) -> None:
    """Refuse a pooler whose weights are random.

    Raises:
        InputError: the checkpoint had none.
    """
    if pooling == "pooler" and (missing := getattr(model, UNFILLED, [])):
        raise InputError(
            f"the checkpoint has no weights for {missing[0]!r}: choose the pooling 'mean', 'first' or 'last'."
        )
