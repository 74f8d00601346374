"""Images in: batches as a checkpoint's processor makes them, the right model class, and figures out."""

from __future__ import annotations

import random
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..describing import describe
from ..describing.inputs import image_input
from ..errors import InputError, first_line
from ..running.batch import Batch, to_device
from ..running.modules import device_of, inference_mode_of, modules_run
from ..running.outputs import pool, pooled, projected
from ..space.options import Calibration
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from .audio import Recordings
from .comparison import Answers
from .data import listed
from .images import Images, Unreadable, check_labels
from .labels import class_names
from .specs import TaskSpec


def encode(processor: object, images: Images, indices: Sequence[int], name: str) -> tuple[Batch, list[int]]:
    """One batch, and the indices whose image could be read.

    Args:
        name: the network's argument for images.
    """
    pictures, found = [], []
    for index in indices:
        try:
            pictures.append(images.read(index))
        except Unreadable:
            continue
        found.append(index)
    return (prepared(processor, pictures, name), found) if pictures else ({}, [])


def prepared(processor: Foreign, pictures: Sequence[object], name: str) -> Batch:
    """One batch of images that were read.

    Args:
        name: the network's argument for images.

    Raises:
        InputError: the processor refuses them.
    """
    try:
        return {name: processor(images=list(pictures), return_tensors="pt")["pixel_values"]}
    except (ValueError, TypeError, OSError, KeyError, RuntimeError) as error:
        raise InputError(f"the image processor refuses the images: {first_line(error)}") from error


PROMPT = "a photo of a {}."


@dataclass(frozen=True)
class Both:
    """The image processor and the tokenizer of a network with two towers, used and saved together."""

    images: Foreign
    tokenizer: Foreign

    def __call__(self, **inputs: object) -> object:
        """Prepare images."""
        return self.images(**inputs)

    def prompts(self, classes: Sequence[str]) -> Batch:
        """One text for each class, tokenised."""
        texts = [PROMPT.format(name.replace("_", " ")) for name in classes]
        # SigLIP was trained with texts padded to full length.
        padding = "max_length" if "siglip" in type(self.images).__name__.lower() else True
        return dict(self.tokenizer(texts, padding=padding, truncation=True, return_tensors="pt"))

    def save_pretrained(self, folder: object) -> None:
        """Write both."""
        self.images.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def text_tower(model: Foreign, batch: Batch) -> list[str]:
    """The parts of a network with two towers that texts alone pass: their embeddings are made once and for all."""
    prompts = {name: value for name, value in batch.items() if name != _argument(model)}
    runs = set(modules_run(model, lambda: model.get_text_features(**prompts)))
    consumers = {gate.module for group in describe(model, batch) for gate in group.gates}
    return sorted({name.partition(".")[0] for name in consumers & runs})


class ZeroShot(nn.Module):
    """A classifier of images made of a network with two towers and the embeddings of its classes' names."""

    def __init__(self, model: Foreign, prompts: Batch) -> None:
        super().__init__()
        self.model = model
        with inference_mode_of(model), torch.inference_mode():
            self.classes = F.normalize(model.get_text_features(**to_device(prompts, device_of(model))).pooler_output)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Logits: scaled cosines of the image with every class."""
        images = F.normalize(self.model.get_image_features(pixel_values=pixel_values).pooler_output)
        logits: Tensor = self.model.logit_scale.exp() * images @ self.classes.T
        return logits + getattr(self.model, "logit_bias", 0)


def calibration_batches(
    model: nn.Module,
    images: Images,
    processor: object,
    options: Calibration,
    seed: int,
    labels: Sequence[int] | None = None,
) -> list[Batch]:
    """A seeded draw of images; unreadable ones are replaced by others, as long as there are any.

    Args:
        labels: one per image, for the criterion that needs them.

    Raises:
        InputError: fewer than two images that can be read.
    """
    return drawn_batches(model, images, processor, options, seed, labels)[0]


def drawn_batches(
    model: nn.Module,
    images: Images,
    processor: object,
    options: Calibration,
    seed: int,
    labels: Sequence[int] | None = None,
) -> tuple[list[Batch], list[int]]:
    """As `calibration_batches`, and the indices of the images that were drawn."""
    count = options.taken(len(images))
    order = list(range(len(images)))
    random.Random(seed).shuffle(order)
    # The text tower stays as it is, so any text of the task will do beside an image.
    prompts = processor.prompts(_class_names(images)) if isinstance(processor, Both) else {}
    batches: list[Batch] = []
    taken: list[int] = []
    place = 0
    while len(taken) < count:
        wanted = min(options.batch_size, count - len(taken))
        indices = order[place : place + wanted]
        if not indices:
            said = f"only {len(taken)} of {len(images)} images can be read; left out are: {images.problem()}, ..."
            if len(taken) < 2:
                raise InputError(said)
            warnings.warn(said, stacklevel=2)
            break
        place += wanted
        batch, found = encode(processor, images, indices, _argument(model))
        if found:
            if labels is not None:
                batch["labels"] = torch.tensor([labels[index] for index in found])
            batch |= {name: value[torch.arange(len(found)) % len(value)] for name, value in prompts.items()}
            batches.append(batch)
            taken += found
    return batches, taken


def evaluate(
    model: nn.Module,
    processor: object,
    spec: TaskSpec,
    images: Images,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 32,
    pooling: str = "mean",
    track: Track = silent,
) -> dict[str, float]:
    """The task's metrics, and with a reference the KL divergence of its outputs from the model's ("kl").

    Images that cannot be read are left out and counted ("skipped").

    Raises:
        InputError: labels that are missing or do not fit the model, no readable image, or no reference where
            embeddings are compared.
    """
    if spec.kind.compared and reference is None:
        raise InputError("image embeddings are compared with the dense network's: pass it as the reference.")
    networks = [model] if reference is None else [model, reference]
    found = answers(networks, processor, spec, images, batch_size=batch_size, pooling=pooling, track=track)
    return found.figures(0, len(networks) - 1 or None)


def answers(
    networks: Sequence[nn.Module],
    processor: object,
    spec: TaskSpec,
    images: Images,
    *,
    batch_size: int = 32,
    pooling: str = "mean",
    track: Track = silent,
) -> Answers:
    """What networks of one kind say of the same images; arguments and errors as of `evaluate`."""
    labels = class_indices(networks[0], spec, images)
    name = _argument(networks[0])
    if isinstance(processor, Both):
        prompts = processor.prompts(_class_names(images))
        networks = [ZeroShot(network, prompts) for network in networks]
    outputs: list[list[Tensor]] = [[] for _ in networks]
    targets: list[int] = []
    skipped = 0
    starts = range(0, len(images), batch_size)
    for start in track(starts, "evaluate", len(starts)):
        indices = range(start, min(start + batch_size, len(images)))
        batch, found = encode(processor, images, indices, name)
        skipped += len(indices) - len(found)
        if found:
            targets += [labels[index] for index in found] if labels else []
            for network, said in zip(networks, outputs, strict=True):
                said.append(_read(network, spec, batch, pooling))
    if not outputs[0]:
        raise InputError(f"none of the {len(images)} images can be read: {images.problem()}")
    return Answers.of(spec, outputs, targets, skipped)


def class_indices(model: nn.Module, spec: TaskSpec, images: Images | Recordings) -> list[int]:
    """Labels as the network counts them: class names are translated by its configuration where it knows them.

    Raises:
        InputError: labels missing or outside the model's classes.
    """
    if spec.kind.compared:
        return []
    if images.labels is None:
        raise InputError("evaluation needs labels: put each class into a folder of its own.")
    check_labels(images.labels, images.classes)
    if spec.kind.matched:
        return list(images.labels)
    config: object = getattr(model, "config", None)
    classes = int(getattr(config, "num_labels", 0) or getattr(model, "num_classes", 0) or _last_width(model))
    most = max(len(images.classes), max(images.labels, default=0) + 1)
    if most > classes:
        raise InputError(f"the data has {most} classes and the model {classes}: they do not belong together.")
    table = _table(class_names(config), images.classes)
    return [table[label] for label in images.labels] if table else list(images.labels)


def _table(known: Mapping[str, int], classes: Sequence[str]) -> list[int]:
    """The network's number of every class of the data; empty where it knows the classes by other names.

    Raises:
        InputError: it knows some of them alone, so that neither names nor numbers can be relied on.
    """
    found = [known.get(name, known.get(name.lower())) for name in classes]
    table = [index for index in found if index is not None]
    if table and len(table) < len(found):
        strange = next(name for name, index in zip(classes, found, strict=True) if index is None)
        raise InputError(
            f"the data's class {strange!r:.60} is none of the model's, and others are: {listed(sorted(known))}."
        )
    return table


def _last_width(model: nn.Module) -> int:
    """Outputs of the last linear map, where a network does not say how many classes it knows."""
    widths = [module.out_features for module in model.modules() if isinstance(module, nn.Linear)]
    return widths[-1] if widths else sys.maxsize


def _class_names(images: Images) -> tuple[str, ...]:
    if not images.classes:
        raise InputError("zero-shot classification needs class names: put each class into a folder of its name.")
    return images.classes


def _argument(model: nn.Module) -> str:
    name = image_input(model)
    if name is None:
        raise InputError(f"{type(model).__name__} takes no images. Name a text task with --task.")
    return name


@torch.inference_mode()
def _read(model: nn.Module, spec: TaskSpec, batch: Batch, pooling: str) -> Tensor:
    """Rows of logits or embeddings, on the CPU in float32."""
    with inference_mode_of(model):
        output = model(**to_device(batch, device_of(model)))
    values: Tensor
    if isinstance(output, Tensor):
        values = output
    elif not spec.kind.compared:
        values = output.logits
    elif embeddings := projected(output):
        values = embeddings[0]
    elif pooling == "pooler":
        values = pooled(output)
    else:
        hidden = output.last_hidden_state
        if hidden.dim() == 4:  # maps, their channels first
            hidden = hidden.flatten(2).mT
        values = pool(hidden, torch.ones(hidden.shape[:2], dtype=torch.bool, device=hidden.device), pooling)
    return values.float().cpu()
