"""Documents in: windows of tokens out of them, and figures of how well networks foresee the next token."""

from __future__ import annotations

import dataclasses
import itertools
import random
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InputError
from ..running.batch import Batch
from ..running.modules import device_of, inference_mode_of
from ..space.options import Calibration, Task, check_examples
from ..storage.silenced import silenced
from ..support.progress import Track, silent
from ..support.untyped import Foreign
from .comparison import DRAWS, LEAST
from .data import Examples, load_examples
from .metrics import divergences
from .specs import TaskSpec
from .text import sequence_limit
from .vocabulary import check_texts, rows_of

WINDOW = 256  # tokens, if the recipe says no length
LOGITS = 1 << 27  # numbers that the logits of one batch hold at most


@dataclass(frozen=True, slots=True)
class Documents:
    """Whole texts, of one source or several.

    Attributes:
        sources: the documents of each.
        shares: of each source in the calibration windows; they add up to 1.
    """

    sources: Sequence[Examples]
    shares: Sequence[float]

    def __len__(self) -> int:
        return sum(len(source) for source in self.sources)


@dataclass(frozen=True, slots=True)
class Windows:
    """Documents as windows of tokens. An example is a step, half a window: what is scored; before it stands another.

    Attributes:
        streams: the tokens of each source, its documents one behind the other.
        places: (source, step) of every example.
        step: tokens of a step.
        start: tokens that every window begins with, as the tokenizer has it.
        shares: as in `Documents`.
        origins: where each source was read from; None where that is not known.
    """

    streams: Sequence[Tensor]
    places: Sequence[tuple[int, int]]
    step: int
    start: Tensor
    shares: Sequence[float]
    origins: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.places)

    def select(self, indices: Sequence[int]) -> Self:
        """The examples at some indices, in that order."""
        return dataclasses.replace(self, places=[self.places[index] for index in indices])

    def identity(self, index: int) -> object:
        """What tells an example from those of other parts and sources; None where the source is not known."""
        source, step = self.places[index]
        return None if self.origins[source] is None else (self.origins[source], step)

    def tokens(self, source: int, step: int) -> Tensor:
        """A step with the one before it, which is its context; the first of a stream has none."""
        body = self.streams[source][max(0, step - 1) * self.step : (step + 1) * self.step]
        return torch.cat([self.start, body])


def load_documents(spec: TaskSpec, options: Task, part: str, *, labelled: bool) -> Documents:
    """Read one part of the data of every source; arguments and errors as of `load_examples`, without labels.

    A text file is one document, a row of a table one too.
    """
    places = [options.data, *options.more_data]
    each = [dataclasses.replace(options, data=place) for place in places]
    sources = [load_examples(spec, one, part, labelled=False) for one in each]
    for origin in {source.origin for source in sources}:
        if [source.origin for source in sources].count(origin) > 1:
            raise InputError(f"{origin} is given twice: pass every source once, and how much of it with --share.")
    shares = options.shares or [1.0] * len(places)
    if len(shares) != len(places):
        raise InputError(f"there are {len(places)} sources of data and {len(shares)} shares: give one for each.")
    return Documents(sources, [share / sum(shares) for share in shares])


def windows_of(model: nn.Module, tokenizer: Foreign, documents: Documents, max_length: int | None = None) -> Windows:
    """Documents as windows of so many tokens: what the recipe says, or `WINDOW`, or what the network takes.

    Raises:
        InputError: a length beyond the network's, or less text than one window; a tokenizer that knows no words.
    """
    length = sequence_limit(model, tokenizer, max_length)
    length = min(length, WINDOW) if max_length is None else length
    first = tokenizer("a")["input_ids"][:1]
    start = torch.tensor(first if first and first[0] == tokenizer.bos_token_id else [], dtype=torch.int64)
    step = (length - len(start)) // 2
    if step < 1:
        raise InputError(f"windows of {length} tokens are too short: ask for more with --max-length.")
    for source in documents.sources:
        check_texts(tokenizer, source, range(len(source)))
    streams = [_stream(tokenizer, source.texts) for source in documents.sources]
    places = []
    for number, (stream, source) in enumerate(zip(streams, documents.sources, strict=True)):
        if len(stream) < 2 * step:
            raise InputError(
                f"{source.origin or 'the data'} has {len(stream):,} tokens, and a window takes {2 * step}: "
                "give more text, or a smaller --max-length."
            )
        places += [(number, place) for place in range(len(stream) // step)]
    origins = [source.origin for source in documents.sources]
    return Windows(streams, places, step, start, documents.shares, origins)


def _stream(tokenizer: Foreign, texts: Sequence[str]) -> Tensor:
    """Documents one behind the other, with the token between them that ends a text, if there is one."""
    with silenced():  # of texts longer than the network takes, which are cut here
        rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    return torch.tensor(list(itertools.chain.from_iterable((*row, *end) for row in rows)), dtype=torch.int64)


def drawn_batches(
    model: nn.Module, windows: Windows, options: Calibration, seed: int
) -> tuple[list[Batch], list[int]]:
    """A seeded draw of whole windows, of each source its share, and the examples that they hold.

    Raises:
        InputError: fewer than two windows.
    """
    places = {place: index for index, place in enumerate(windows.places)}
    generator = random.Random(seed)
    chosen: list[tuple[int, int]] = []
    for source, count in enumerate(_counts(windows.shares, options.examples)):
        whole = [step for number, step in windows.places if number == source and step % 2]
        if len(whole) < count:
            warnings.warn(
                f"{windows.origins[source] or 'the data'} has {len(whole)} windows, and calibration asks for {count} "
                "of it: all are used.",
                stacklevel=2,
            )
        chosen += [(source, step) for step in generator.sample(whole, min(count, len(whole)))]
    check_examples(len(chosen))
    generator.shuffle(chosen)
    size = _rows(model, options.batch_size, len(windows.start) + 2 * windows.step)
    batches = []
    for group in (chosen[first : first + size] for first in range(0, len(chosen), size)):
        ids = torch.stack([windows.tokens(*place) for place in group])
        batches.append({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    return batches, [places[source, part] for source, step in chosen for part in (step - 1, step)]


def _counts(shares: Sequence[float], total: int) -> list[int]:
    """So many windows, of every source its share: rounded down, and the rest to those that lost most by that."""
    exact = [share * total for share in shares]
    counts = [int(value) for value in exact]
    rest = sorted(range(len(shares)), key=lambda place: counts[place] - exact[place])
    for place in rest[: total - sum(counts)]:
        counts[place] += 1
    return counts


def _rows(model: nn.Module, wanted: int, length: int) -> int:
    """Windows of a batch, so few that the logits fit."""
    classes = rows_of(model) or 1
    return max(1, min(wanted, LOGITS // (length * classes)))


@dataclass(frozen=True)
class Foreseen:
    """How networks foresee the tokens of every example.

    Attributes:
        tokens: that are foreseen, of shape (example,).
        surprise: sums of -ln p of the tokens, of shape (network, example).
        hits: how many had the largest probability, of shape (network, example).
        divergence: sums of the KL divergence from the last network, of shape (network, example).
    """

    tokens: Tensor
    surprise: Tensor
    hits: Tensor
    divergence: Tensor
    alone: ClassVar[bool] = True

    def figures(self, place: int = 0, reference: int | None = None) -> dict[str, float]:
        """See `Said`: perplexity and next-token accuracy; a reference is the last of all networks."""
        total = self.tokens.sum()
        found = {
            "perplexity": float((self.surprise[place].sum() / total).exp()),
            "accuracy": float(self.hits[place].sum() / total),
        }
        return found | ({"kl": float(self.divergence[place].sum() / total)} if reference is not None else {})

    def sure(self, one: int, other: int) -> dict[str, tuple[float, float]]:
        """See `Said` and `Answers.interval`: steps are drawn."""
        generator = torch.Generator().manual_seed(0)
        rows = len(self.tokens)
        if rows < LEAST:
            return {}
        differences = []
        for _ in range(DRAWS):
            drawn = torch.randint(rows, (rows,), generator=generator)
            means = (self.surprise[:, drawn].sum(1) / self.tokens[drawn].sum()).exp()
            differences.append(means[one] - means[other])
        low, high = torch.stack(differences).quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        return {"perplexity": (low, high)}


def foreseen(
    networks: Sequence[nn.Module], windows: Windows, *, batch_size: int = 32, track: Track = silent
) -> Foreseen:
    """What networks make of the same windows: every token is scored once, behind at least half a window of context.

    Only the first step of a stream has less, which is what stands before it.
    """
    size = _rows(networks[0], batch_size, len(windows.start) + 2 * windows.step)
    groups = list(_of_one_length(windows, size))
    sums = torch.zeros(3, len(networks), len(windows), dtype=torch.float64)
    tokens = torch.zeros(len(windows), dtype=torch.float64)
    for group in track(groups, "evaluate", len(groups)):
        ids = torch.stack([windows.tokens(*windows.places[index]) for index in group])
        scored = min(windows.step, ids.shape[1] - 1)  # nothing foresees the very first token
        tokens[group] = float(scored)
        logits = [_logits(network, ids, scored) for network in networks]
        targets = ids[:, -scored:].to(logits[0].device)
        for place, values in enumerate(logits):
            sums[0, place, group] = F.cross_entropy(values.mT, targets, reduction="none").sum(1).double().cpu()
            sums[1, place, group] = (values.argmax(-1) == targets).sum(1).double().cpu()
            if place < len(networks) - 1:
                sums[2, place, group] = divergences(logits[-1], values).sum(1).double().cpu()
    return Foreseen(tokens, *sums)


def _of_one_length(windows: Windows, size: int) -> Iterator[list[int]]:
    """Examples in batches: the first steps of streams, which are shorter, among themselves."""
    kinds: dict[bool, list[int]] = defaultdict(list)
    for index, (_, step) in enumerate(windows.places):
        kinds[step == 0].append(index)
    for indices in kinds.values():
        yield from (indices[first : first + size] for first in range(0, len(indices), size))


@torch.inference_mode()
def _logits(network: nn.Module, ids: Tensor, scored: int) -> Tensor:
    """What a network says of the last tokens before it sees them, in float32."""
    with inference_mode_of(network):
        output: Foreign = network(input_ids=ids.to(device_of(network)))
    logits: Tensor = (output if isinstance(output, Tensor) else output.logits)[:, -scored - 1 : -1]
    return logits.float()


def check_causal(model: nn.Module, windows: Windows) -> None:
    """Refuse a network that sees the tokens which it is to foresee: its perplexity would mean nothing.

    Raises:
        InputError: the last token changes what it says before it.
    """
    ids = windows.tokens(*windows.places[-1])[None]
    changed = ids.clone()
    changed[0, -1] = ids[0, 0] if ids[0, -1] != ids[0, 0] else ids[0, -1] - 1 if ids[0, -1] > 0 else 1
    before, after = (_logits(model, tokens, ids.shape[1] - 1) for tokens in (ids, changed))
    noise = max(1e-5, 4 * torch.finfo(next(model.parameters()).dtype).eps)
    if (before - after).abs().max() > noise * before.abs().max():
        raise InputError(
            f"{type(model).__name__} sees the tokens that it is to foresee: it is no causal language model."
        )
