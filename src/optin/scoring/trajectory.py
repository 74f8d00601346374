"""The trajectory of a network: feature maps of its embeddings and of its output (docs/method.md, Trajectory).

Each loss is the squared distance || phi(network) - phi(reference) ||^2 of a feature map phi. A map comes as a
pair: its loss, which `exact` evaluates, and its probe <v, phi> with random v, whose squared derivative the
`sketch` averages, because E[(d<v, phi>)^2] = || d phi ||^2.

| map | phi | loss |
|---|---|---|
| manifold | A A^T / K, rows of A are K tokens of unit length | mean squared difference of their cosines |
| the same of a CNN | mean channels over positions and examples, at unit length | squared distance of the means |
| distribution | softened logits in the Fisher metric | tau^2 KL(p_ref(tau) || p(tau)), averaged over rows |
| point | the output itself (normalised where it is an embedding) | squared error, averaged over rows |
| values | each tensor at unit variance | squared error, averaged over rows and features |
"""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F

from ..running.batch import Batch, position_mask
from ..running.outputs import Output


class Positions:
    """Which positions of a hidden state count, and which K of them are compared.

    All states of one shape share one draw: the blocks of a network, and the networks that are compared.
    """

    def __init__(self, batch: Batch, count: int, generator: torch.Generator, of_maps: bool = False) -> None:
        self.batch, self.count, self.generator, self.of_maps = batch, count, generator, of_maps
        self._drawn: dict[torch.Size, Tensor] = {}

    def manifold(
        self, hidden: Float[Tensor, "stacked_batch ..."], stack: int = 1
    ) -> Float[Tensor, "stack rows features"]:
        """phi of the manifold map, of each of `stack` networks evaluated on one batch axis."""
        if self.of_maps:
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


def output_loss(output: Output, reference: Output, temperature: float) -> Float[Tensor, " stack"]:
    """L_out: tau^2 KL(p_ref(tau) || p(tau)) or squared error, averaged over rows."""
    beside = 0 if output.beside is None else output_loss(output.beside, _beside(reference), temperature)
    if output.kind == "values":
        return ((output.values - reference.values) * reference.scaled).square().mean((-2, -1)) + beside
    if output.kind == "point":
        return (output.values - reference.values).square().sum(-1).mean(-1) + beside
    log_p = F.log_softmax(output.values / temperature, -1)
    log_ref = F.log_softmax(reference.values / temperature, -1)
    return temperature**2 * (log_ref.exp() * (log_ref - log_p)).sum(-1).mean(-1) + beside


def _beside(output: Output) -> Output:
    assert output.beside is not None
    return output.beside


def output_probe(output: Output, temperature: float, generator: torch.Generator) -> Tensor:
    """<v, phi>, scalar. For a distribution v has the covariance diag(p) - p p^T, the metric of the KL."""
    beside = 0 if output.beside is None else output_probe(output.beside, temperature, generator)
    values = output.values
    signs = _signs(values, generator)
    if output.kind == "values":
        return (signs * values * output.scaled).sum() / math.sqrt(values[0].numel()) + beside
    if output.kind == "point":
        return (signs * values).sum() / math.sqrt(values.shape[1]) + beside
    v = multinomial_factor(F.softmax(values.detach() / temperature, -1), signs)
    # At the reference tau^2 KL is 1/2 dz^T (diag(p) - p p^T) dz: tau cancels but for its place in p.
    return (v * values).sum() / math.sqrt(2 * values.shape[1]) + beside


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


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    # Signs have the least variance among all v of unit variance. Drawn on the CPU, so that a seed gives the
    # same plan on every device.
    return (2.0 * torch.randint(2, like.shape, generator=generator) - 1).to(like.device)
