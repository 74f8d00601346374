"""Text in: tokenised batches of similar length, and figures out."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from ..describing.inputs import max_positions
from ..errors import InputError
from ..running.batch import Batch, to_device, token_mask
from ..running.modules import device_of, inference_mode_of
from ..running.outputs import pool, pooled
from ..space.options import Calibration
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from .comparison import Answers
from .data import Examples, listed, shown
from .labels import class_names
from .sentences import SentenceTokenizer
from .specs import TaskSpec
from .vocabulary import CHECKED, check_texts

_WHOLE = re.compile(r"-?[0-9]{1,9}")  # a class number; str.isdigit takes raised and circled digits too


def sequence_limit(model: nn.Module, tokenizer: Foreign, asked: int | None) -> int:
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


def encode(tokenizer: Foreign, examples: Examples, indices: Sequence[int], max_length: int) -> Foreign:
    """One batch (a `BatchEncoding` of tensors), padded to its longest example.

    Raises:
        InputError: the tokenizer has nothing to pad with.
    """
    if len(indices) > 1 and getattr(tokenizer, "pad_token", "") is None:
        raise InputError(
            "the tokenizer has no padding token: set one (tokenizer.pad_token = tokenizer.eos_token), with the "
            "pad_token_id of the configuration, and save both."
        )
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
    tokenizer: object,
    options: Calibration,
    seed: int,
    labels: Sequence[object] | None = None,
) -> list[Batch]:
    """A seeded draw of examples, in batches of similar length.

    Args:
        labels: one per example, for the criterion that needs them.

    Raises:
        InputError: fewer than two examples, or a tokenizer that is not the network's.
    """
    return drawn_batches(model, examples, tokenizer, options, seed, labels)[0]


def drawn_batches(
    model: nn.Module,
    examples: Examples,
    tokenizer: object,
    options: Calibration,
    seed: int,
    labels: Sequence[object] | None = None,
) -> tuple[list[Batch], list[int]]:
    """As `calibration_batches`, and the indices of the examples that were drawn."""
    count = options.taken(len(examples))
    max_length = sequence_limit(model, tokenizer, options.max_length)
    chosen = random.Random(seed).sample(range(len(examples)), count)
    check_texts(tokenizer, examples, chosen)
    batches = []
    for indices in bucketed(examples, chosen, options.batch_size):
        batch = dict(encode(tokenizer, examples, indices, max_length))
        if labels is not None:
            batch["labels"] = torch.tensor([labels[index] for index in indices])
        batches.append(batch)
    return batches, chosen


def bucketed(examples: Examples, indices: Sequence[int], size: int) -> list[list[int]]:
    """Indices grouped by length of the texts, so that batches hold little padding."""

    def length(index: int) -> int:
        return len(examples.texts[index]) + (0 if examples.pairs is None else len(examples.pairs[index]))

    ordered = sorted(indices, key=length)
    return [ordered[start : start + size] for start in range(0, len(ordered), size)]


def evaluate(
    model: nn.Module,
    tokenizer: object,
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
    if spec.kind.compared and reference is None:
        raise InputError("sentence embeddings are compared with the dense network's: pass it as the reference.")
    networks = [model] if reference is None else [model, reference]
    found = answers(
        networks,
        tokenizer,
        spec,
        examples,
        batch_size=batch_size,
        max_length=max_length,
        pooling=pooling,
        track=track,
    )
    return found.figures(0, len(networks) - 1 or None)


def answers(
    networks: Sequence[nn.Module],
    tokenizer: object,
    spec: TaskSpec,
    examples: Examples,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    pooling: str = "mean",
    track: Track = silent,
) -> Answers:
    """What networks of one kind say of the same texts; arguments and errors as of `evaluate`."""
    limit = sequence_limit(networks[0], tokenizer, max_length)
    labels = class_indices(networks[0], spec, examples)
    check_texts(tokenizer, examples, range(min(CHECKED, len(examples))))
    outputs: list[list[Tensor]] = [[] for _ in networks]
    targets: list[object] = []
    embed = tokenizer.embed if isinstance(tokenizer, SentenceTokenizer) else pool
    groups = bucketed(examples, range(len(examples)), batch_size)
    for group in track(groups, "evaluate", len(groups)):
        encoded = encode(tokenizer, examples, group, limit)
        places = _first_pieces(encoded, len(group)) if spec.kind.tagged else None
        for network, said in zip(networks, outputs, strict=True):
            said.append(_read(network, spec, encoded, places, pooling, embed))
        if places is not None:
            targets += [labels[group[row]][word] for row, _, word in places]
        elif labels:
            targets += [labels[index] for index in group]
    return Answers.of(spec, outputs, targets)


def class_indices(model: nn.Module, spec: TaskSpec, examples: Examples) -> list[Foreign]:
    """Labels as the network counts them: class indices, values, or one list of indices per example.

    Class names are translated by the task and by the model's configuration.

    Raises:
        InputError: labels missing, unknown to the model, or out of its range; names the row.
    """
    config: Foreign = model.config
    if spec.kind.compared:
        return []
    if examples.labels is None:
        raise InputError("evaluation needs a label column.")
    if spec.kind.numeric:
        return [_value(label, row) for row, label in enumerate(examples.labels, 1)]
    own = class_names(config)
    names = {name.lower(): index for index, name in enumerate(spec.names)} | own
    # Numbers in the data follow the task's order of classes; the network may have been trained with another.
    if spec.names and own.keys() >= {name.lower() for name in spec.names}:
        names |= {str(number): names[name.lower()] for number, name in enumerate(spec.names)}
    if not spec.kind.tagged:
        return [_class_index(label, names, config.num_labels, row) for row, label in enumerate(examples.labels, 1)]
    found = []
    for row, (words, tags) in enumerate(zip(examples.texts, examples.labels, strict=True), 1):
        if not isinstance(tags, list | tuple):
            raise InputError(f"row {row} must have a list of tags, one for each word, not {shown(tags)}.")
        if len(words) != len(tags):
            raise InputError(f"row {row} has {len(words)} words and {len(tags)} tags: they must pair up.")
        found.append([_class_index(tag, names, config.num_labels, row) for tag in tags])
    return found


def _class_index(label: object, names: Mapping[str, int], classes: int, row: int) -> int:
    index: int | None = None
    if isinstance(label, int) and not isinstance(label, bool):
        index = names.get(str(label), label) if abs(label) < 10**9 else label
    elif not isinstance(label, list | tuple | dict):
        text = str(label).strip()
        index = names.get(text, names.get(text.lower()))
        if index is None and _WHOLE.fullmatch(text):
            index = int(text)
    if index is None:
        raise InputError(
            f"the label {shown(label)} in row {row} is none of the model's: {listed(sorted(names))}. "
            f"Write numbers from 0 to {classes - 1}, or put the names into id2label and label2id of its config.json."
        )
    if not 0 <= index < classes:
        raise InputError(
            f"the label {shown(index)} in row {row} is outside the model's {classes} classes (0 to {classes - 1})."
        )
    return index


def _value(label: Foreign, row: int) -> float:
    try:
        # Python reads digits of all scripts and underscores among them, which no data set means.
        plain = not isinstance(label, bool) and (not isinstance(label, str) or (label.isascii() and "_" not in label))
        value = float(label) if plain else math.nan
    except (TypeError, ValueError, OverflowError):
        value = math.nan
    if not math.isfinite(value):
        raise InputError(f"the labels of a regression must be numbers; row {row} has {shown(label)}.")
    return value


def _first_pieces(encoded: Foreign, rows: int) -> list[tuple[int, int, int]]:
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
    model: nn.Module,
    spec: TaskSpec,
    encoded: Foreign,
    places: list[tuple[int, int, int]] | None,
    pooling: str,
    embed: Callable[[Tensor, Tensor, str], Tensor] = pool,
) -> Tensor:
    """Rows of logits or embeddings, on the CPU in float32."""
    batch = to_device(dict(encoded), device_of(model))
    with inference_mode_of(model):
        output = model(**batch)
    if spec.kind.compared:
        hidden = output.last_hidden_state
        values = pooled(output) if pooling == "pooler" else embed(hidden, token_mask(batch), pooling)
    elif places is not None:
        values = output.logits[[row for row, _, _ in places], [position for _, position, _ in places]]
    else:
        values = output.logits
    return values.float().cpu()
