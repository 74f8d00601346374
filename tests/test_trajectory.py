from __future__ import annotations

import itertools
import math
from types import SimpleNamespace

import pytest
import torch

from optin.errors import ArchitectureError
from optin.running.outputs import Output, answers, pool, read_output
from optin.scoring.trajectory import (
    Positions,
    draw_rows,
    gram,
    manifold_loss,
    manifold_probe,
    multinomial_factor,
    output_loss,
    output_probe,
    unit_rows,
)

MASK = torch.tensor([[1, 1, 1], [1, 0, 0]]).bool()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def positions() -> Positions:
    return Positions({"input_ids": MASK.long(), "attention_mask": MASK.long()}, 99, generator())


def test_rows_are_never_padding():
    drawn = {int(row) for seed in range(20) for row in draw_rows(MASK, 2, generator(seed))}
    assert drawn == {0, 1, 2, 3}
    assert draw_rows(MASK, 99, generator()).tolist() == [0, 1, 2, 3]


def test_manifold_loss_by_hand():
    """Two tokens at right angles against two parallel ones: cosines 0 and 1, two entries of four differ by 1/2."""
    rows = torch.tensor([0, 1])
    reference = gram(unit_rows(torch.tensor([[[3.0, 0.0], [0.0, 5.0]]]), rows))
    parallel = unit_rows(torch.tensor([[[1.0, 1.0], [2.0, 2.0]]]), rows)
    assert manifold_loss(gram(parallel), reference).tolist() == pytest.approx([2 * 0.25])


def test_manifold_loss_sees_relations_not_coordinates():
    hidden = torch.randn(2, 3, 5, generator=generator())
    rotation = torch.linalg.qr(torch.randn(5, 5, generator=generator(1))).Q
    rows = torch.tensor([0, 1, 2, 3])
    loss = manifold_loss(gram(unit_rows(7 * hidden @ rotation, rows)), gram(unit_rows(hidden, rows)))
    assert float(loss) < 1e-10


def test_stacked_networks_are_read_one_by_one():
    one, two = torch.randn(2, 2, 3, 5, generator=generator())
    rows = torch.tensor([0, 2, 3])
    both = unit_rows(torch.cat([one, two]), rows, stack=2)
    assert torch.equal(both, torch.cat([unit_rows(one, rows), unit_rows(two, rows)]))


def test_output_loss_by_hand():
    """p_ref = (1/2, 1/2), p = (3/4, 1/4) at tau = 2: KL = log(2 / sqrt 3), times tau^2."""
    reference = Output("distribution", torch.zeros(1, 1, 2))
    other = Output("distribution", torch.tensor([[[2 * math.log(3), 0.0]]]))
    assert float(output_loss(other, reference, 2.0)) == pytest.approx(4 * math.log(2 / math.sqrt(3)), rel=1e-5)
    point = output_loss(Output("point", torch.ones(1, 4, 3)), Output("point", torch.zeros(1, 4, 3)), 2.0)
    assert float(point) == pytest.approx(3.0)


@pytest.mark.parametrize("classes", [2, 3, 6])
def test_the_factor_has_exactly_the_covariance_of_a_multinomial(classes):
    """Averaged over all sign vectors, not over some."""
    p = torch.rand(classes, dtype=torch.float64, generator=generator()).softmax(0)
    signs = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=classes)), dtype=torch.float64)
    v = multinomial_factor(p.expand(len(signs), -1), signs)
    torch.testing.assert_close(v.mT @ v / len(signs), torch.diag(p) - p[:, None] * p)


def test_the_factor_stays_finite_where_classes_have_no_probability():
    p = torch.tensor([[0.5, 0.5, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 0.0, 0.0, 0.0]])
    assert torch.isfinite(multinomial_factor(p, torch.ones(3, 4))).all()


@pytest.mark.parametrize("kind", ["distribution", "point"])
def test_output_probe_has_the_second_moment_of_the_loss(kind):
    """For a small step the loss is || d phi ||^2, which is the mean of the squared probes' derivatives."""
    reference = torch.randn(1, 3, 4, generator=generator())
    step = 1e-2 * torch.randn(1, 3, 4, generator=generator(1))
    exact = float(output_loss(Output(kind, (reference + step).double()), Output(kind, reference.double()), 4.0))
    source, squares = generator(2), []
    for _ in range(4000):
        values = reference.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(output_probe(Output(kind, values), 4.0, source), values)
        squares.append(float((gradient * step).sum()) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(exact, rel=0.1)


def test_manifold_probe_has_the_second_moment_of_the_loss():
    reference = torch.randn(1, 4, 3, dtype=torch.float64, generator=generator())
    step = 1e-3 * torch.randn(1, 4, 3, dtype=torch.float64, generator=generator(1))
    exact = float(manifold_loss(gram(reference + step), gram(reference)))
    source, squares = generator(2), []
    for _ in range(4000):
        rows = reference.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(manifold_probe(gram(rows), source), rows)
        squares.append(float((gradient * step).sum()) ** 2)
    assert sum(squares) / len(squares) == pytest.approx(exact, rel=0.1)


def test_reading_outputs():
    logits = torch.randn(2, 4, generator=generator())
    assert read_output(SimpleNamespace(logits=logits), positions()).kind == "distribution"
    assert read_output(SimpleNamespace(logits=logits), positions(), problem="regression").kind == "point"
    assert read_output(SimpleNamespace(logits=logits[:, :1]), positions()).kind == "point"
    assert read_output(logits, positions()).values.shape == (1, 2, 4)
    several = read_output(SimpleNamespace(logits=logits), positions(), problem="multi_label_classification")
    assert torch.allclose(several.values.softmax(-1)[0, :, 0], logits.sigmoid().flatten())
    tokens = torch.randn(2, 3, 5, generator=generator())
    read = read_output(SimpleNamespace(logits=tokens), positions())
    assert torch.equal(read.values[0], tokens.flatten(0, 1)[MASK.flatten()])
    hidden = SimpleNamespace(last_hidden_state=tokens)
    assert torch.allclose(read_output(hidden, positions()).values.norm(dim=-1), torch.ones(1, 2))
    with pytest.raises(ArchitectureError, match="no tensor of numbers"):
        read_output(SimpleNamespace(), positions())


def test_spans_give_padding_no_weight():
    start = torch.randn(2, 3, generator=generator())
    output = SimpleNamespace(start_logits=start, end_logits=start)
    values = read_output(output, positions()).values
    assert values.shape == (1, 4, 3)
    assert values.softmax(-1)[0, 1, 1:].sum() == 0 and values.softmax(-1)[0, 3, 1:].sum() == 0
    assert answers(output).shape == (2, 3, 2)


def test_pooling_leaves_padding_out():
    hidden = torch.tensor([[[2.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])
    mask = torch.tensor([[True, True, False]])
    assert torch.allclose(pool(hidden, mask, "mean"), torch.tensor([[1.0, 1.0]]) / math.sqrt(2))
    assert torch.allclose(pool(hidden, mask, "first"), torch.tensor([[1.0, 0.0]]))
