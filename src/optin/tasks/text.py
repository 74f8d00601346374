"""Text in: tokenised batches of similar length, and figures out."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..arch.inputs import max_positions
from ..batches import Batch, to_device, token_mask
from ..errors import InputError
from ..modules import device_of, inference_mode_of
from ..progress import Track, silent
from ..recipe import Calibration
from ..trajectory import pool, pooled
from .data import Examples
from .metrics import divergence, measure
from .specs import TaskSpec


def sequence_limit(model: nn.Module, tokenizer: Any, asked: int | None) -> int:
    """Tokens per example: what was asked for, or what model and tokenizer allow.

    Raises:
        InputError: more was asked for than the model has positions.
    """
    allowed = max_positions(model)
    if asked is not None:
        if allowed is not None and asked > allowed:
            raise InputError(f"the length {asked} is beyond the {allowed} tokens of this model. Ask for less.")
        return asked
    limits = [limit for limit in (allowed, tokenizer.model_max_length) if limit is not None and limit < 10**6]
    return min(limits, default=512)


def encode(tokenizer: Any, examples: Examples, indices: Sequence[int], max_length: int) -> Any:
    """One batch (a `BatchEncoding` of tensors), padded to its longest example."""
    part = examples.select(indices)
    return tokenizer(
        part.texts,
        part.pairs,
        padding=True,
        truncation=True,
        max_length=max_length,
        is_split_into_words=isinstance(part.texts[0], list | tuple),
        return_tensors="pt",
    )


def calibration_batches(
    model: nn.Module,
    examples: Examples,
    tokenizer: Any,
    options: Calibration,
    seed: int,
    labels: Sequence[Any] | None = None,
) -> list[Batch]:
    """A seeded draw of examples, in batches of similar length.

    Args:
        labels: one per example, for the criterion that needs them.

    Raises:
        InputError: fewer examples than asked for.
    """
    options.check(len(examples))
    max_length = sequence_limit(model, tokenizer, options.max_length)
    chosen = random.Random(seed).sample(range(len(examples)), options.examples)
    batches = []
    for indices in bucketed(examples, chosen, options.batch_size):
        batch = dict(encode(tokenizer, examples, indices, max_length))
        if labels is not None:
            batch["labels"] = torch.tensor([labels[index] for index in indices])
        batches.append(batch)
    return batches


def bucketed(examples: Examples, indices: Sequence[int], size: int) -> list[list[int]]:
    """Indices grouped by length of the texts, so that batches hold little padding."""

    def length(index: int) -> int:
        return len(examples.texts[index]) + (0 if examples.pairs is None else len(examples.pairs[index]))

    ordered = sorted(indices, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    spec: TaskSpec,
    examples: Examples,
    *,
    reference: nn.Module | None = None,
    batch_size: int = 32,
    max_length: int | None = None,
    pooling: str = "mean",
    track: Track = silent,
) -> dict[str, float]:
    """The task's metrics, and with a reference the KL divergence of its outputs from the model's ("kl").

    Args:
        reference: the dense network. Sentence embeddings are compared with its own and need it.

    Raises:
        InputError: labels that are missing or do not fit the model, or no reference where one is needed.
    """
    if spec.kind == "embedding" and reference is None:
        raise InputError("sentence embeddings are compared with the dense network's: pass it as the reference.")
    limit = sequence_limit(model, tokenizer, max_length)
    labels = class_indices(model, spec, examples)
    outputs, expected, targets = [], [], []
    groups = bucketed(examples, range(len(examples)), batch_size)
    for group in track(groups, "evaluate", len(groups)):
        encoded = encode(tokenizer, examples, group, limit)
        places = _first_pieces(encoded, len(group)) if spec.kind == "tokens" else None
        outputs.append(_read(model, spec, encoded, places, pooling))
        if reference is not None:
            expected.append(_read(reference, spec, encoded, places, pooling))
        if places is not None:
            targets += [labels[group[row]][word] for row, _, word in places]
        elif labels:
            targets += [labels[index] for index in group]
    values = torch.cat(outputs)
    if spec.kind == "embedding":
        return measure(spec.metrics, values, torch.cat(expected), 0)
    predictions = values.squeeze(-1) if spec.kind == "regression" else values.argmax(-1)
    figures = measure(spec.metrics, predictions, torch.tensor(targets), values.shape[-1])
    if expected and spec.kind != "regression":
        figures["kl"] = float(divergence(torch.cat(expected), values))
    return figures


def class_indices(model: nn.Module, spec: TaskSpec, examples: Examples) -> list[Any]:
    """Labels as the network counts them: class indices, values, or one list of indices per example.

    Class names are translated by the task and by the model's configuration.

    Raises:
        InputError: labels missing, unknown to the model, or out of its range.
    """
    config: Any = model.config
    if spec.kind == "embedding":
        return []
    if examples.labels is None:
        raise InputError("evaluation needs a label column.")
    if spec.kind == "regression":
        try:
            return [float(value) for value in examples.labels]
        except (TypeError, ValueError) as error:
            raise InputError(f"the labels of a regression must be numbers: {error}.") from None
    names = {name.lower(): index for index, name in enumerate(spec.names)}
    names |= {str(name).lower(): index for name, index in (config.label2id or {}).items()}
    # Numbers in the data follow the task's order of classes; the network may have been trained with another.
    own = {str(name).lower() for name in (config.label2id or {})}
    if spec.names and own.issuperset(name.lower() for name in spec.names):
        names |= {str(number): names[name.lower()] for number, name in enumerate(spec.names)}
    if spec.kind == "tokens":
        for row, (words, tags) in enumerate(zip(examples.texts, examples.labels, strict=True)):
            if len(words) != len(tags):
                raise InputError(f"row {row + 1} has {len(words)} words and {len(tags)} tags: they must pair up.")
        return [[_class_index(tag, names, config.num_labels) for tag in tags] for tags in examples.labels]
    return [_class_index(label, names, config.num_labels) for label in examples.labels]


def _class_index(label: Any, names: Mapping[str, int], classes: int) -> int:
    text = str(label).strip()
    index = names.get(text.lower())
    if index is None and text.lstrip("-").isdigit():
        index = int(text)
    if index is None:
        raise InputError(f"the label {text!r:.40} is none of the model's: {', '.join(sorted(names))}.")
    if not 0 <= index < classes:
        raise InputError(f"the label {index} is outside the model's {classes} classes (0 to {classes - 1}).")
    return index


def _first_pieces(encoded: Any, rows: int) -> list[tuple[int, int, int]]:
    """(row, token, word) of the first token of every word that was not cut off."""
    places = []
    for row in range(rows):
        previous = None
        for position, word in enumerate(encoded.word_ids(row)):
            if word is not None and word != previous:
                places.append((row, position, word))
            previous = word
    return places


@torch.inference_mode()
def _read(
    model: nn.Module, spec: TaskSpec, encoded: Any, places: list[tuple[int, int, int]] | None, pooling: str
) -> Tensor:
    """Rows of logits or embeddings, on the CPU in float32."""
    batch = to_device(dict(encoded), device_of(model))
    with inference_mode_of(model):
        output = model(**batch)
    if spec.kind == "embedding":
        hidden = output.last_hidden_state
        values = pooled(output) if pooling == "pooler" else pool(hidden, token_mask(batch), pooling)
    elif places is not None:
        values = output.logits[[row for row, _, _ in places], [position for _, position, _ in places]]
    else:
        values = output.logits
    return values.float().cpu()
