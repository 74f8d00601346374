from __future__ import annotations

import pytest
import torch

from optin.errors import NumericalError
from optin.refit.regression import refit, refit_validated, rescaled
from optin.scoring.moments import Moments, ridged

CPU = torch.device("cpu")


@pytest.mark.parametrize("bias", [True, False])
def test_the_refit_solves_its_normal_equations(bias):
    x, e, w = torch.randn(300, 7), torch.randn(300, 4), torch.rand(300)
    moments = Moments(7, 4, CPU)
    moments.add(x, e, w)
    weight, shift = refit(moments, 0.05, bias=bias)
    penalty = (ridged(moments.second, 0.05) - moments.second)[:7, :7]
    residual = x.double() @ weight.mT + shift - e.double()
    gradient = (w[:, None] * residual).mT @ x.double() / w.sum() + weight @ penalty
    assert float(gradient.abs().max()) < 1e-6
    if bias:
        assert float((w[:, None] * residual).sum(0).abs().max() / w.sum()) < 1e-6
    else:
        assert float(shift.abs().max()) == 0


@pytest.mark.parametrize("block", [1, 3])
def test_scales_solve_their_least_squares(block):
    x, e, w, weight = torch.randn(300, 6), torch.randn(300, 4), torch.rand(300), torch.randn(4, 6)
    moments = Moments(6, 4, CPU)
    moments.add(x, e, w)
    change = rescaled(moments, weight, torch.arange(6).view(-1, block), 1e-12)
    made = torch.einsum("tub,oub->tou", x.unflatten(1, (-1, block)), weight.unflatten(1, (-1, block)))
    root = w.sqrt()[:, None]
    design, wanted = (root[:, None] * made).flatten(0, 1), (root * e).flatten()
    scales = torch.linalg.lstsq(design.double(), wanted.double()[:, None]).solution[:, 0]
    torch.testing.assert_close(change, weight.double() * scales.repeat_interleave(block), atol=1e-4, rtol=1e-4)


def test_an_exact_linear_relation_is_recovered():
    """Where kept features determine the lost ones, nothing is lost."""
    x = torch.randn(400, 6)
    x[:, 5] = 2 * x[:, 0] - x[:, 3] + 0.5
    weight = torch.randn(3, 6)
    moments = Moments(5, 3, CPU)
    moments.add(x[:, :5], x[:, 5:] @ weight[:, 5:].mT)
    change, shift = refit(moments, 1e-9, bias=True)
    torch.testing.assert_close(
        x[:, :5] @ (weight[:, :5] + change.float()).mT + shift.float(), x @ weight.mT, atol=1e-3, rtol=1e-3
    )


def folds(x, e):
    parts = []
    for fold in range(2):
        parts.append(Moments(x.shape[1], e.shape[1], CPU))
        parts[-1].add(x[fold::2], e[fold::2])
    return parts


def test_a_ridge_that_rounding_swallows_is_raised():
    """Large features that nearly equal each other: their sums in single precision have negative eigenvalues."""
    x = 1e4 * torch.randn(3000, 1) + torch.randn(3000, 200)
    moments = Moments(200, 1, CPU)
    moments.add(x, x[:, :1])
    assert float(torch.linalg.eigvalsh(moments.second)[0]) < 0
    weight, shift = refit(moments, 1e-12, bias=True)
    residual = x @ weight.mT.float() + shift.float() - x[:, :1]
    assert float(residual.square().mean()) < 1e-3 * float(x[:, 0].square().mean())


def test_moments_of_nothing_are_refused():
    with pytest.raises(NumericalError, match="cannot be factored"):
        refit(Moments(5, 1, CPU), 0.1, bias=True)


def test_noise_is_not_fitted():
    """What inputs do not explain is left alone; a ridge given by hand would fit it."""
    x, e = torch.randn(200, 60), torch.randn(200, 5)
    parts = folds(x, e)
    assert float(refit(Moments.sum(parts), 1e-2, bias=True)[0].norm()) > 0.5
    weight, shift = refit_validated(parts, 1e-2, bias=True)
    assert float(weight.norm()) < 0.1 and float(shift.norm()) < 0.5


def test_nothing_to_explain_gives_zero():
    weight, shift = refit_validated(folds(torch.randn(50, 8), torch.zeros(50, 3)), 1e-2, bias=True)
    assert not weight.any() and not shift.any()


@pytest.mark.parametrize("noise", [0.01, 1.0, 10.0])
def test_the_validated_ridge_is_near_the_best(noise):
    """On fresh rows it errs little more than the best of all ridges does."""
    true = torch.randn(5, 40)
    x, fresh = torch.randn(300, 40), torch.randn(4000, 40)
    parts = folds(x, x @ true.mT + noise * torch.randn(300, 5))

    def error(weight, shift):
        return float((fresh @ (weight.float() - true).mT + shift.float()).square().mean())

    best = min(error(*refit(Moments.sum(parts), ridge, bias=True)) for ridge in torch.logspace(-4, 2, 25).tolist())
    assert error(*refit_validated(parts, 3e-2, bias=True)) < 1.25 * best
