from __future__ import annotations

import hypothesis
import pytest
import torch
from hypothesis import strategies

from optin.running.store import Store
from optin.scoring.compensated import Reader, eliminate
from optin.scoring.moments import Moments, ridged

CPU = torch.device("cpu")


@pytest.mark.parametrize("rows", [5, 3000])
def test_streamed_moments_equal_the_direct_ones(rows):
    x, e, w = torch.randn(rows, 6), torch.randn(rows, 3), torch.rand(rows)
    moments = Moments(6, 3, CPU)
    for part in range(0, rows, 7):
        moments.add(x[part : part + 7], e[part : part + 7], w[part : part + 7])
    ones = torch.cat([x, torch.ones(rows, 1)], 1).double()
    weighted = ones * w[:, None] / w.sum()
    torch.testing.assert_close(moments.second, weighted.mT @ ones, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(moments.cross, weighted.mT @ e.double(), rtol=1e-5, atol=1e-6)


def test_memory_does_not_grow_with_the_rows():
    moments = Moments(4, 2, CPU)
    for _ in range(50):
        moments.add(torch.randn(500, 4), torch.randn(500, 2))
        assert moments._rows <= 512


def test_weights_default_to_one_and_half_precision_is_summed_in_single():
    x = torch.full((4096, 1), 0.1, dtype=torch.bfloat16)
    moments = Moments(1, 0, CPU)
    moments.add(x)
    assert float(moments.second[0, 0]) == pytest.approx(float(x[0, 0]) ** 2, rel=1e-3)
    assert float(moments.second[-1, -1]) == 1


def curve(second, weight, sensitivity, ridge):
    order, steps = eliminate([Reader.of(weight, second, sensitivity, 1, ridge)], torch.ones(weight.shape[1]))
    return order, steps.cumsum(0)


@hypothesis.settings(max_examples=8)
@hypothesis.given(strategies.integers(0, 2**31), strategies.sampled_from([3e-2, 1e-3]))
def test_sums_in_single_precision_give_the_curves_of_double(seed, ridge):
    """Of many rows with a few features a thousand times as large as the others, with means and correlations."""
    generator, size = torch.Generator().manual_seed(seed), 48
    scale = torch.ones(size)
    scale[torch.randperm(size, generator=generator)[:3]] = 1e3
    mix = torch.randn(size, size, generator=generator) / size**0.5
    moments, exact, total = Moments(size, 0, CPU), torch.zeros(size + 1, size + 1, dtype=torch.float64), 0.0
    for _ in range(8):
        x = (torch.randn(4000, size, generator=generator) @ mix + 0.5) * scale
        w = torch.rand(4000, generator=generator)
        moments.add(x, weights=w)
        ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
        exact, total = exact + (ones * w[:, None]).mT @ ones, total + float(w.double().sum())
    weight = torch.randn(20, size, generator=generator, dtype=torch.float64) / scale
    root = torch.randn(20, 20, generator=generator, dtype=torch.float64)
    order, cost = curve(exact / total, weight, root.mT @ root, ridge)
    got, found = curve(moments.second, weight, root.mT @ root, ridge)
    assert moments._sums.dtype == torch.float32 and moments.second.dtype == torch.float64
    assert float((found - cost).abs().max()) < 1e-4 * float(cost.max())
    assert float((got == order).double().mean()) > 0.9


def test_networks_in_double_precision_are_summed_in_it():
    x = torch.randn(700, 5, dtype=torch.float64)
    moments = Moments(5, 0, CPU, torch.float64)
    moments.add(x)
    torch.testing.assert_close(moments.total, x.mT @ x, rtol=1e-13, atol=1e-12)
    assert moments.tensors()["sums"].dtype == torch.float64


@pytest.mark.parametrize("features", [3, 900])
def test_moments_take_what_is_said_of_them(features):
    moments = Moments(features, 0, CPU)
    kept = [value for value in vars(moments).values() if isinstance(value, torch.Tensor)]
    assert sum(value.nbytes for value in kept) == pytest.approx(Moments.bytes(features), abs=8 + 4 * 512)


def test_the_ridge_spares_the_constant():
    second = torch.diag(torch.tensor([2.0, 4.0, 1.0], dtype=torch.float64))
    assert ridged(second, 0.1).diagonal().tolist() == pytest.approx([2.3, 4.3, 1.0])


def test_the_store_spills_and_cleans_up():
    values = {("a", i): torch.randn(10, 10) for i in range(6)}
    with Store(limit=1000) as store:
        for key, value in values.items():
            store[key] = value
        store["a", 5] = values["a", 5] + 1
        assert all(torch.equal(store[key], value + (key == ("a", 5))) for key, value in values.items())
        folder = store._folder
        assert len(list(folder.iterdir())) == 4
    assert not folder.exists()
