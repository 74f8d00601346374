"""What a network takes: tokens, images or both, and how large they may be."""

from __future__ import annotations

import contextlib
import inspect
import weakref
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ..errors import ArchitectureError, CheckpointError, InputError, first_line
from ..running.batch import Batch
from ..running.modules import device_of, inference_mode_of
from ..running.samples import made_of
from ..space.plans import Plan
from ..space.scores import Scores
from ..support.untyped import Arguments, Foreign

IGNORED = -100  # of labels: no token
SIDES = (32, 64, 28, 96, 128, 160, 192, 224, 256, 299, 384)  # of images, tried where a network does not say


def takes(model: nn.Module, name: str) -> bool:
    """Whether the forward has an argument of this name, for example "pixel_values"; exported networks say theirs."""
    return name in (getattr(model, "input_names", None) or inspect.signature(model.forward).parameters)


def forward_names(model: nn.Module) -> tuple[str, ...]:
    """The arguments of a network's forward by name."""
    return tuple(inspect.signature(model.forward).parameters)


def completed(model: nn.Module, batch: Batch) -> Batch:
    """A batch of an encoder-decoder with decoder inputs: where only labels are given, these shifted right by one.

    That is what its own loss makes of them. Without it a decoder refuses, or reads the text of the encoder again.

    Raises:
        InputError: nothing says which token a decoder begins with.
    """
    network: object = model
    labels, config = batch.get("labels"), getattr(network, "config", None)
    if (
        not (getattr(config, "is_encoder_decoder", False) and takes(model, "decoder_input_ids"))
        or not (isinstance(labels, Tensor) and labels.dim() == 2 and not labels.is_floating_point())
        or batch.keys() & {"decoder_input_ids", "decoder_inputs_embeds"}
    ):
        return batch
    if hasattr(network, "prepare_decoder_input_ids_from_labels"):
        return {**batch, "decoder_input_ids": network.prepare_decoder_input_ids_from_labels(labels)}
    start, padding = getattr(config, "decoder_start_token_id", None), getattr(config, "pad_token_id", None)
    if start is None or padding is None:
        raise InputError("the batches hold labels, and nothing for the decoder: add 'decoder_input_ids' to them.")
    ids = torch.cat([torch.full_like(labels[:, :1], start), labels[:, :-1]], 1)
    return {**batch, "decoder_input_ids": ids.masked_fill(ids == IGNORED, padding)}


def default_length(model: nn.Module) -> int:
    """Length at which MACs are counted if nothing else is known: 128 tokens or the most, or the side in pixels."""
    return image_side(model) if image_input(model) else min(128, max_positions(model) or 128)


def image_input(model: nn.Module) -> str | None:
    """The name of the argument that takes images; None if there is none."""
    return next((name for name in ("pixel_values", "x", "input") if takes(model, name)), None)


def example_inputs(
    model: nn.Module,
    length: int,
    batch: int = 1,
    width: int | None = None,
    like: Mapping[str, object] | None = None,
) -> dict[str, Tensor]:
    """Random inputs: `length` is in tokens for a text encoder, in pixels of a side for an image encoder.

    Args:
        width: in pixels, of images that are not square.
        like: what the inputs look like, see `samples.looks_of`; without it the network's configuration and the
            names of its arguments say so.

    Raises:
        InputError: the model has fewer positions than `length`.
    """
    if like:
        return _made_like(model, like, length, batch, width)
    device, generator = device_of(model), torch.Generator().manual_seed(0)
    inputs: dict[str, Tensor] = {}
    images = image_input(model)
    if images is not None:
        shape = (batch, _channels(model), length, width or length)
        inputs[images] = torch.randn(shape, generator=generator).to(device, next(model.parameters()).dtype)
    if takes(model, "input_ids"):
        limit = max_positions(model)
        text: Foreign = getattr(model, "config", None)
        text = getattr(text, "text_config", text)
        tokens = text.max_position_embeddings if images is not None else length
        if limit is not None and tokens > limit:
            raise InputError(f"the length {length} is beyond the {limit} tokens of this model. Ask for less.")
        # Token 0 to 4 are special in most vocabularies; padding among them would change the positions.
        words = next((m.num_embeddings for m in model.modules() if isinstance(m, nn.Embedding)), 6)
        ids = torch.randint(5, getattr(text, "vocab_size", words), (batch, tokens), generator=generator)
        inputs["input_ids"] = ids.to(device)
        if takes(model, "attention_mask"):
            inputs["attention_mask"] = torch.ones_like(ids).to(device)
    return inputs


def _made_like(model: nn.Module, like: Mapping[str, object], length: int, batch: int, width: int | None) -> Arguments:
    """Inputs as they were seen, on the device and in the precision of the network."""
    limit = max_positions(model)
    if limit is not None and "input_ids" in like and image_input(model) is None and length > limit:
        raise InputError(f"the length {length} is beyond the {limit} tokens of this model. Ask for less.")
    device, dtype = device_of(model), next(model.parameters()).dtype

    def placed(value: Tensor) -> Tensor:
        return value.to(device, dtype) if value.is_floating_point() else value.to(device)

    return {name: placed(value) for name, value in made_of(like, batch, length, width).items()}


def max_positions(model: nn.Module) -> int | None:
    """The longest sequence that a network takes, in tokens; None where there is no limit."""
    config: Foreign = getattr(model, "config", None)
    limit: int | None = getattr(config, "max_position_embeddings", None)
    if limit is None or limit < 1 or getattr(config, "position_biased_input", True) is False:
        return None
    # These count positions from behind the padding index.
    offset = config.pad_token_id + 1 if config.model_type in ("roberta", "xlm-roberta", "camembert", "mpnet") else 0
    return limit - offset


def image_side(model: nn.Module) -> int:
    """The image side that a network says it takes, else the first of those that parts of it say or that are usual.

    Raises:
        ArchitectureError: it takes none of them.
    """
    config = getattr(model, "config", None)
    said = getattr(getattr(config, "vision_config", config), "image_size", None)
    if said is None:
        if model not in _sides:
            _sides[model] = _first_taken(model)
        said = _sides[model]
    return int(said if isinstance(said, int) else said[0])


_sides: weakref.WeakKeyDictionary[nn.Module, int] = weakref.WeakKeyDictionary()


@contextlib.contextmanager
def with_weights(model: nn.Module, most: int) -> Iterator[nn.Module]:
    """The network; while it is being loaded another of its kind on the CPU, since not every forward runs without.

    Args:
        most: weights of the other network.
    """
    if device_of(model).type != "meta" or sum(value.numel() for value in model.parameters()) > most:
        yield model
        return
    kind: Foreign = next(kind for kind in type(model).__mro__ if kind.__module__.startswith("transformers."))
    with torch.device("cpu"):
        yield kind(model.config).eval()


def _first_taken(model: nn.Module) -> int:
    network: object = model
    settings = getattr(network, "pretrained_cfg", None) or {}
    places = [getattr(part, name, None) for part in model.modules() for name in ("img_size", "image_size")]
    places += [
        settings.get("input_size", (None,))[-1],
        224 if type(model).__module__.startswith("torchvision.") else None,
    ]
    said = [
        place if isinstance(place, int) else place[0] for place in places if isinstance(place, (int, tuple, list))
    ]
    problem = ""
    for side in dict.fromkeys([*said, *SIDES]):
        try:
            with inference_mode_of(model), torch.no_grad():
                model(**example_inputs(model, side))
        except Exception as error:  # on images of another size a forward may fail in any way
            problem = problem or first_line(error)
        else:
            return int(side)
    raise ArchitectureError(
        f"{type(model).__name__} takes no images with sides of {min(SIDES)} to {max(SIDES)} pixels: {problem}."
    )


def _channels(model: nn.Module) -> int:
    network: object = model
    if hasattr(network, "config"):
        return int(getattr(getattr(network.config, "vision_config", network.config), "num_channels", 3))
    return next((module.in_channels for module in model.modules() if isinstance(module, nn.Conv2d)), 3)


def inputs_like(
    model: nn.Module, known: Plan | Scores | None, length: int, width: int | None = None, batch: int = 1
) -> Arguments:
    """Random inputs of the kinds that a network was scored on, with the arguments that were no tensors.

    Args:
        known: what the scoring or planning left behind; without it the network says what it takes.

    Raises:
        InputError: the model has fewer positions than `length`.
        CheckpointError: a damaged provenance.
    """
    if known is None:
        return example_inputs(model, length, batch, width)
    data = known.provenance.get("data")
    like = data.get("inputs") if isinstance(data, Mapping) else None
    return example_inputs(model, length, batch, width, like) | keywords_of(known)


def planned_inputs(model: nn.Module, known: Plan | Scores, batch: int = 1) -> Arguments:
    """Random inputs of the size that MACs were counted at."""
    return inputs_like(model, known, known.length, known.width, batch)


def keywords_of(plan_or_scores: Plan | Scores) -> Arguments:
    """The arguments of the forward that were no tensors when a network was scored.

    Raises:
        CheckpointError: a provenance that holds something else.
    """
    data = plan_or_scores.provenance.get("data", {})
    found = data.get("keywords", {}) if isinstance(data, Mapping) else None
    plain = (bool, int, float, str, type(None))
    if not isinstance(found, Mapping) or not all(isinstance(value, plain) for value in found.values()):
        raise CheckpointError(
            "the provenance of the plan or the scores is damaged: its keywords are no plain values."
        )
    return dict(found)
