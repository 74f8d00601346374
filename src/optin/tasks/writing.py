"""Networks that write: what they say of texts or recordings, by a decoder or by letters (CTC), and how well."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..describing.inputs import IGNORED, completed
from ..errors import FAILURES, InputError, first_line
from ..running.batch import Batch, to_device
from ..running.modules import device_of, inference_mode_of
from ..space.options import Calibration
from ..storage.silenced import silenced
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from .audio import Recordings
from .data import Examples
from .metrics import divergences
from .specs import TaskSpec
from .text import bucketed, encode, sequence_limit
from .written import METRICS, Written, measured, normaliser, wanted_of

ANSWER = 128  # tokens at most
BEGINNING = 8  # tokens before an answer at most: language, task, no times
SECONDS = 30  # of a piece that longer recordings are cut into, where the processor says no other


def drawn_batches(
    model: nn.Module, examples: Foreign, preprocessor: object, options: Calibration, seed: int
) -> tuple[list[Batch], list[int]]:
    """A seeded draw of examples, with what the network itself answers as the text that its decoder reads.

    So no answers need to be known. Of a long recording the first piece is taken.
    """
    chosen = random.Random(seed).sample(range(len(examples)), options.taken(len(examples)))
    batches = []
    for group in grouped(examples, chosen, options.batch_size):
        inputs = inputs_of(model, preprocessor, examples, group, options.max_length)[0]
        if decodes(model):
            said = _said(model, inputs, preprocessor)
            answers = answer_ids(model, preprocessor, said)
            inputs = completed(model, {**inputs, "labels": answers})
            del inputs["labels"]
        batches.append(inputs)
    return batches, chosen


def grouped(examples: Foreign, indices: Sequence[int], size: int) -> list[list[int]]:
    """Examples in batches: texts of similar length, recordings as they come."""
    if isinstance(examples, Examples):
        return bucketed(examples, indices, size)
    return [list(indices[first : first + size]) for first in range(0, len(indices), size)]


def inputs_of(
    model: nn.Module,
    preprocessor: Foreign,
    examples: Foreign,
    indices: Sequence[int],
    max_length: int | None = None,
    *,
    whole: bool = False,
) -> tuple[Batch, list[int]]:
    """Inputs of some examples, and the place among `indices` that each of them is of.

    Args:
        whole: all pieces of recordings longer than the network takes, else the first.
    """
    if not isinstance(examples, Recordings):
        limit = sequence_limit(model, preprocessor, max_length)
        return dict(encode(preprocessor, Examples(examples.texts), indices, limit)), list(range(len(indices)))
    extractor: Foreign = getattr(preprocessor, "feature_extractor", preprocessor)
    rate = int(extractor.sampling_rate)
    longest = rate * int(getattr(extractor, "chunk_length", SECONDS))
    pieces, places = [], []
    for place, index in enumerate(indices):
        sound = examples.read(index, rate)
        starts = range(0, len(sound) if whole else 1, longest)
        pieces += [sound[start : start + longest] for start in starts]
        places += [place] * len(starts)
    return prepared(extractor, pieces, rate), places


def prepared(extractor: Foreign, sounds: Sequence[np.ndarray], rate: int) -> Batch:
    """One batch of recordings: of Whisper always of one length, of others as long as the longest.

    Raises:
        InputError: what prepares them refuses them.
    """
    padding = {} if hasattr(extractor, "chunk_length") else {"padding": True}
    try:
        return dict(extractor(list(sounds), sampling_rate=rate, return_tensors="pt", **padding))
    except FAILURES as error:
        raise InputError(f"the recordings cannot be prepared: {first_line(error)}") from error


def answer_limit(model: Foreign) -> int:
    """Tokens of an answer at most, with some places left for what a decoder begins with."""
    config = getattr(model, "config", None)
    names = ("max_target_positions", "max_position_embeddings")
    places = next((found for name in names if (found := getattr(config, name, None)) is not None), ANSWER)
    return max(1, min(ANSWER, places - BEGINNING))


def decodes(model: Foreign) -> bool:
    """Whether answers come token by token, out of a decoder."""
    return bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))


def answer_ids(model: Foreign, preprocessor: object, texts: Sequence[str]) -> Tensor:
    """Answers as tokens, padded with `IGNORED`, without the one that a decoder begins with by itself."""
    tokenizer = tokenizer_of(preprocessor)
    encoded = tokenizer(
        text_target=list(texts), padding=True, truncation=True, max_length=answer_limit(model), return_tensors="pt"
    )
    ids: Tensor = encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORED)
    start = getattr(model.config, "decoder_start_token_id", None)
    return ids[:, 1:] if ids.shape[1] > 1 and ids[:, 0].tolist() == [start] * len(ids) else ids


def tokenizer_of(preprocessor: object) -> Foreign:
    """What turns answers into tokens and back."""
    return getattr(preprocessor, "tokenizer", preprocessor)


@torch.inference_mode()
def _said(model: Foreign, inputs: Batch, preprocessor: Foreign) -> list[str]:
    """What a network answers, greedily."""
    with inference_mode_of(model), silenced():
        placed = to_device(inputs, device_of(model))
        if decodes(model):
            ids = model.generate(**placed, max_new_tokens=answer_limit(model), do_sample=False, num_beams=1)
        else:
            ids = model(**placed).logits.argmax(-1)
    found: list[str] = tokenizer_of(preprocessor).batch_decode(ids.cpu(), skip_special_tokens=True)
    return [text.strip() for text in found]


def answers(
    networks: Sequence[nn.Module],
    preprocessor: Foreign,
    spec: TaskSpec,
    examples: Foreign,
    *,
    batch_size: int = 32,
    max_length: int | None = None,
    track: Track = silent,
) -> Written:
    """What networks write of the same examples, against what is wanted."""
    wanted = wanted_of(examples)
    said: list[list[str]] = [[""] * len(examples) for _ in networks]
    sums = torch.zeros(2, len(networks), len(examples), dtype=torch.float64)
    counts = torch.zeros(2, len(examples), dtype=torch.float64)
    groups = grouped(examples, range(len(examples)), batch_size)
    for group in track(groups, "evaluate", len(groups)):
        inputs, places = inputs_of(networks[0], preprocessor, examples, group, max_length, whole=True)
        pieces = Counter(places)
        for part, of in _parts(inputs, places, batch_size):
            alone = [row for row, place in enumerate(of) if pieces[place] == 1]  # its text is that of the example
            found = _compare(networks, preprocessor, part, [group[place] for place in of], alone, wanted, said)
            if found is not None:
                indices, part_sums, part_counts = found
                sums[..., indices], counts[..., indices] = part_sums, part_counts
    normalise = normaliser(tokenizer_of(preprocessor)) if spec.kind.of_sound else str.strip
    parts = {name: measured(name, said, wanted, normalise) for name in spec.metrics if name in METRICS}
    return Written(parts, counts[0], sums[0], sums[1], counts[1])


def _parts(inputs: Batch, places: Sequence[int], size: int) -> Iterator[tuple[Batch, Sequence[int]]]:
    """Pieces of long recordings are more than there are examples."""
    for first in range(0, len(places), size):
        chosen = slice(first, first + size)
        yield {name: value[chosen] for name, value in inputs.items()}, places[chosen]


def _compare(
    networks: Sequence[nn.Module],
    preprocessor: object,
    inputs: Batch,
    examples: Sequence[int],
    alone: Sequence[int],
    wanted: Sequence[str],
    said: list[list[str]],
) -> tuple[list[int], Tensor, Tensor] | None:
    """Add what networks say of a batch of pieces to all, and compare their distributions.

    Args:
        examples: that the pieces are of.
        alone: rows whose piece is the whole example, so that what is wanted is the answer to it.

    Returns:
        The examples of these rows; their sums of -ln p and of the KL, of shape (2, network, example); and how many
        tokens and distributions that is, of shape (2, example). None of no such row.
    """
    read = [_read(network, inputs) for network in networks]
    for network, heard, texts in zip(networks, read, said, strict=True):
        for example, text in zip(examples, _said(network, heard, preprocessor), strict=True):
            texts[example] = f"{texts[example]} {text}".strip()
    if not alone:
        return None
    indices = [examples[row] for row in alone]
    targets, read_on = None, {}
    if decodes(networks[0]):
        targets = answer_ids(networks[0], preprocessor, [wanted[index] for index in indices])
        read_on = {"decoder_input_ids": completed(networks[0], {"labels": targets})["decoder_input_ids"]}
    logits = [
        logits_of(network, _rows(heard, alone) | read_on) for network, heard in zip(networks, read, strict=True)
    ]
    known = torch.ones(logits[0].shape[:2], dtype=torch.bool) if targets is None else targets != IGNORED
    sums = torch.zeros(2, len(networks), len(alone), dtype=torch.float64)
    for place, values in enumerate(logits):
        if targets is not None:
            lost = F.cross_entropy(values.mT, targets, reduction="none", ignore_index=IGNORED)
            sums[0, place] = lost.sum(1).double()
        if place < len(networks) - 1:
            sums[1, place] = (divergences(logits[-1], values) * known).sum(1).double()
    rows = known.sum(1).double()
    return indices, sums, torch.stack([torch.zeros_like(rows) if targets is None else rows, rows])


@torch.inference_mode()
def _read(network: Foreign, inputs: Batch) -> Batch:
    """Inputs with what an encoder makes of them in the place of what it reads, so that it runs once."""
    placed = to_device(inputs, device_of(network))
    if not decodes(network):
        return placed
    with inference_mode_of(network):
        encoded = network.get_encoder()(**placed).last_hidden_state
    mask = {name: value for name, value in placed.items() if name == "attention_mask"}
    return {"encoder_outputs": _encoded(encoded), **mask}


def _encoded(hidden: Tensor) -> object:
    """What an encoder gives, as a decoder takes it."""
    from transformers.modeling_outputs import BaseModelOutput

    return BaseModelOutput(last_hidden_state=hidden)


def _rows(batch: Batch, rows: Sequence[int]) -> Batch:
    """Some examples of a batch."""
    found = {name: value[rows] for name, value in batch.items() if name != "encoder_outputs"}
    if (encoded := batch.get("encoder_outputs")) is not None:
        found["encoder_outputs"] = _encoded(encoded.last_hidden_state[rows])
    return found


@torch.inference_mode()
def logits_of(network: nn.Module, batch: Batch) -> Tensor:
    """What a network says of a batch, on the CPU in float32."""
    with inference_mode_of(network):
        output: Foreign = network(**to_device(batch, device_of(network)))
    logits: Tensor = output.logits
    return logits.float().cpu()


def check_writes(model: Foreign, preprocessor: object, examples: object) -> None:
    """Refuse a network that writes nothing of the examples, before any work.

    Raises:
        InputError: says why.
    """
    wanted_of(examples)
    name = type(model).__name__
    try:
        inputs, _ = inputs_of(model, preprocessor, examples, [0])
        _said(model, {key: value[:1] for key, value in inputs.items()}, preprocessor)
    except FAILURES as error:
        raise InputError(f"{name} writes no answers: {first_line(error)}") from error
