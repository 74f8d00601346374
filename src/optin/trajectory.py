"""The trajectory of a network: feature maps of its embeddings and of its output (METHOD section 2).

Each loss is the squared distance || phi(network) - phi(reference) ||^2 of a feature map phi. A map comes as a
pair: its loss, which `exact` evaluates, and its probe <v, phi> with random v, whose squared derivative the
`sketch` averages, because E[(d<v, phi>)^2] = || d phi ||^2.

| map | phi | loss |
|---|---|---|
| manifold | A A^T / K, rows of A are K tokens of unit length | mean squared difference of their cosines |
| the same of a CNN | mean channels over positions and examples, at unit length | squared distance of the means |
| distribution | softened logits in the Fisher metric | tau^2 KL(p_ref(tau) || p(tau)), averaged over rows |
| point | the output itself (normalised where it is an embedding) | squared error, averaged over rows |
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from .batches import Batch, position_mask
from .errors import ArchitectureError

MASKED = -1e4  # logit of what can be no answer
PIXELS = 256  # of a map of classes that are compared, per example


class Positions:
    """Which positions of a hidden state count, and which K of them are compared.

    All states of one shape share one draw: the blocks of a network, and the networks that are compared.
    """

    def __init__(self, batch: Batch, count: int, generator: torch.Generator, channels_first: bool = False) -> None:
        self.batch, self.count, self.generator, self.channels_first = batch, count, generator, channels_first
        self._drawn: dict[torch.Size, Tensor] = {}

    def manifold(
        self, hidden: Float[Tensor, "stacked_batch ..."], stack: int = 1
    ) -> Float[Tensor, "stack rows features"]:
        """phi of the manifold map, of each of `stack` networks evaluated on one batch axis."""
        if self.channels_first:
            return channel_means(hidden.movedim(1, -1) if hidden.dim() == 4 else hidden, stack)
        return gram(unit_rows(hidden, self.rows(hidden[: len(hidden) // stack]), stack))

    def mask(self, hidden: Float[Tensor, "*position dim"]) -> Bool[Tensor, "*position"]:
        """Positions that are not padding."""
        return position_mask(self.batch, hidden)

    def rows(self, hidden: Float[Tensor, "*position dim"]) -> Int[Tensor, " rows"]:
        """K of them, as indices into the flattened positions."""
        shape = hidden.shape[:-1]
        if shape not in self._drawn:
            self._drawn[shape] = draw_rows(self.mask(hidden), self.count, self.generator)
        return self._drawn[shape]


def draw_rows(mask: Bool[Tensor, "*position"], count: int, generator: torch.Generator) -> Int[Tensor, " rows"]:
    """At most `count` positions that are not padding, as indices into the flattened mask, ascending."""
    real = mask.flatten().nonzero().squeeze(1).cpu()
    chosen = torch.randperm(len(real), generator=generator)[:count]
    return real[chosen].sort().values.to(mask.device)


def unit_rows(
    hidden: Float[Tensor, "stacked_batch *position dim"], rows: Int[Tensor, " rows"], stack: int = 1
) -> Float[Tensor, "stack rows dim"]:
    """The chosen tokens of each of `stack` networks evaluated on one batch axis, at unit length."""
    return F.normalize(hidden.reshape(stack, -1, hidden.shape[-1])[:, rows].float(), dim=-1)


def gram(rows: Float[Tensor, "stack rows dim"]) -> Float[Tensor, "stack rows rows"]:
    """Cosines between all pairs of tokens, over K."""
    return rows @ rows.mT / rows.shape[-2]


def channel_means(
    maps: Float[Tensor, "stacked_batch *position channel"], stack: int = 1
) -> Float[Tensor, "stack 1 channel"]:
    """The mean over positions and examples of the channels, each position at unit length."""
    rows = F.normalize(maps.reshape(stack, -1, maps.shape[-1]).float(), dim=-1)
    return rows.mean(-2, keepdim=True)


def manifold_loss(
    phi: Float[Tensor, "stack rows features"], reference: Float[Tensor, "1 rows features"]
) -> Float[Tensor, " stack"]:
    """L_mid of one block: || phi - phi_ref ||^2."""
    return (phi - reference).square().sum((-2, -1))


def manifold_probe(phi: Float[Tensor, "stack rows features"], generator: torch.Generator) -> Tensor:
    """<v, phi> with independent signs v; scalar."""
    return (_signs(phi, generator) * phi).sum()


@dataclass(frozen=True, slots=True)
class Output:
    """The final output of `stack` networks: one row per example, or per chosen token.

    Attributes:
        kind: "distribution" (values are logits) or "point".
        values: shape (stack, row, class or feature), float32.
    """

    kind: str
    values: Float[Tensor, "stack row feature"]


def read_output(
    output: Any,
    positions: Positions,
    *,
    stack: int = 1,
    pooling: str = "mean",
    problem: str | None = None,
) -> Output:
    """Read what a transformers model returns.

    Args:
        positions: of the unstacked batch: where per-token outputs are compared.
        pooling: "mean", "first" or "pooler", for a bare encoder.
        problem: `config.problem_type`: "regression" and "multi_label_classification" are honoured.

    Raises:
        ArchitectureError: the output has neither logits nor hidden states.
    """
    if hasattr(output, "start_logits"):
        both = torch.cat([_unstack(output.start_logits, stack), _unstack(output.end_logits, stack)], 1)
        mask = positions.mask(both[0, : both.shape[1] // 2, :, None])
        return Output("distribution", both.masked_fill(~mask.repeat(2, 1), MASKED))
    if embeddings := projected(output):
        return Output("point", F.normalize(_unstack(torch.cat(embeddings, -1), stack), dim=-1))
    logits = output if isinstance(output, Tensor) else getattr(output, "logits", None)
    if hasattr(output, "masks_queries_logits"):
        logits = semantic_logits(output)
    if logits is not None:
        if not isinstance(logits, Tensor):
            raise ArchitectureError(unread(output))
        values = _unstack(logits, stack)
        if values.dim() == 5:  # one class per pixel: a regular part of the pixels
            step = math.ceil(math.sqrt(values[0, 0, 0].numel() / PIXELS))
            values = values[..., ::step, ::step].movedim(2, -1).flatten(1, 3)
        if values.dim() == 4:
            values = values.flatten(1, 2)[:, positions.rows(values[0])]
        if problem == "regression" or values.shape[-1] == 1:
            return Output("point", values)
        if problem == "multi_label_classification":
            values = torch.stack([values, torch.zeros_like(values)], -1).flatten(1, 2)
        # A class that is masked has a probability of zero, and no gradient.
        return Output("distribution", values.masked_fill(values == -torch.inf, MASKED))
    hidden = getattr(output, "last_hidden_state", None)
    if not isinstance(hidden, Tensor):
        raise ArchitectureError(unread(output))
    if pooling == "pooler":
        return Output("point", F.normalize(_unstack(pooled(output), stack), dim=-1))
    values = _unstack(hidden, stack)
    return Output("point", pool(values, positions.mask(values[0]), pooling))


def semantic_logits(output: Any) -> Float[Tensor, "batch class height width"]:
    """Log scores of the classes at every pixel, from queries that each have classes and a mask (Mask2Former)."""
    classes = output.class_queries_logits.softmax(-1)[..., :-1]
    masks = output.masks_queries_logits.sigmoid()
    scores = torch.einsum("bqc,bqhw->bchw", classes, masks)
    return scores.clamp_min(torch.finfo(scores.dtype).tiny).log()


def projected(output: Any) -> list[Tensor]:
    """The embeddings of a contrastive network's output, image before text; empty for any other output."""
    return [value for name in ("image_embeds", "text_embeds") if (value := getattr(output, name, None)) is not None]


def pooled(output: Any) -> Tensor:
    """What a bare encoder's own pooling gives.

    Raises:
        ArchitectureError: it has none.
    """
    value: Tensor | None = getattr(output, "pooler_output", None)
    if value is None:
        raise ArchitectureError("this encoder has no pooler: use the pooling 'mean' or 'first'.")
    return value


def pool(
    hidden: Float[Tensor, "*stack batch token dim"], mask: Bool[Tensor, "batch token"], pooling: str
) -> Float[Tensor, "*stack batch dim"]:
    """Sentence embeddings of unit length."""
    if pooling == "first":
        return F.normalize(hidden[..., 0, :], dim=-1)
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return F.normalize((hidden * weights).sum(-2) / weights.sum(-2).clamp_min(1), dim=-1)


def output_loss(output: Output, reference: Output, temperature: float) -> Float[Tensor, " stack"]:
    """L_out: tau^2 KL(p_ref(tau) || p(tau)) or squared error, averaged over rows."""
    if output.kind == "point":
        return (output.values - reference.values).square().sum(-1).mean(-1)
    log_p = F.log_softmax(output.values / temperature, -1)
    log_ref = F.log_softmax(reference.values / temperature, -1)
    return temperature**2 * (log_ref.exp() * (log_ref - log_p)).sum(-1).mean(-1)


def output_probe(output: Output, temperature: float, generator: torch.Generator) -> Tensor:
    """<v, phi>, scalar. For a distribution v has the covariance diag(p) - p p^T, the metric of the KL."""
    values = output.values
    signs = _signs(values, generator)
    if output.kind == "point":
        return (signs * values).sum() / math.sqrt(values.shape[1])
    v = multinomial_factor(F.softmax(values.detach() / temperature, -1), signs)
    # At the reference tau^2 KL is 1/2 dz^T (diag(p) - p p^T) dz: tau cancels but for its place in p.
    return (v * values).sum() / math.sqrt(2 * values.shape[1])


def multinomial_factor(
    p: Float[Tensor, "*rows classes"], signs: Float[Tensor, "*rows classes"]
) -> Float[Tensor, "*rows classes"]:
    """L D^(1/2) signs, where L D L^T = diag(p) - p p^T (Tanabe and Sagae, 1992), without forming a matrix.

    With q_i = 1 - p_1 - ... - p_i: D_i = p_i q_i / q_(i-1) and L_ij = -p_i / q_j for i > j. For two classes the
    square of what comes out does not depend on the signs at all: no noise where networks most often end.
    """
    tail = p.flip(-1).cumsum(-1).flip(-1)  # q_(i-1), summed from the end to stay exact where it is small
    rest = F.pad(tail[..., 1:], (0, 1))  # q_i
    tiny = torch.finfo(p.dtype).tiny
    scaled = (p * rest / tail.clamp_min(tiny)).sqrt() * signs
    before = F.pad((scaled / rest.clamp_min(tiny) * (rest > tiny)).cumsum(-1)[..., :-1], (1, 0))
    return scaled - p * before


def _unstack(value: Tensor, stack: int) -> Tensor:
    return value.float().reshape(stack, -1, *value.shape[1:])


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    # Signs have the least variance among all v of unit variance. Drawn on the CPU, so that a seed gives the
    # same plan on every device.
    return (2.0 * torch.randint(2, like.shape, generator=generator) - 1).to(like.device)


def answers(output: Any) -> Tensor:
    """What a network says, as one tensor: its logits, or the last hidden state of a bare encoder.

    Raises:
        ArchitectureError: it has none of these.
    """
    if isinstance(output, Tensor):
        return output
    if hasattr(output, "start_logits"):
        return torch.stack([output.start_logits, output.end_logits], -1)
    if embeddings := projected(output):
        return torch.cat(embeddings, -1)
    if hasattr(output, "masks_queries_logits"):
        return semantic_logits(output)
    for name in ("logits", "last_hidden_state"):
        value = getattr(output, name, None)
        if isinstance(value, Tensor):
            return value
    raise ArchitectureError(unread(output))


def unread(output: Any) -> str:
    """What is said of an output that nobody can read."""
    if isinstance(output, Mapping):
        what = f"a {type(output).__name__} of {', '.join(map(str, output))}"
    elif isinstance(output, (list, tuple)):
        what = f"a {type(output).__name__} of {len(output)}"
    else:
        what = f"a {type(output).__name__}"
    return (
        f"the network returns {what}: neither one tensor nor logits, hidden states or embeddings by name. "
        "Wrap it in a module whose forward returns the tensor that matters."
    )


def distance(expected: Tensor, got: Tensor) -> float:
    """The largest difference, as a share of the largest value that is finite (1 at least).

    Infinities in the same places are the same: classes that a network masks.
    """
    if expected.shape != got.shape:
        return math.inf
    same = (expected == got) & expected.isinf()
    rest = (expected - got).masked_fill(same, 0)
    scale = expected.masked_fill(expected.isinf(), 0).abs().max().clamp_min(1) if expected.numel() else 1
    return float(rest.abs().max() / scale) if rest.numel() else 0.0


def tolerance_of(values: Tensor) -> float:
    """How far two outputs may be apart by rounding: see `distance`."""
    return 1e-4 if values.dtype in (torch.float32, torch.float64) else 5e-2
