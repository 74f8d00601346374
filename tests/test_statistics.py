from __future__ import annotations

import pytest
import torch

from optin.running.store import Store
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
        assert moments._rows <= 1024


def test_weights_default_to_one_and_half_precision_is_summed_in_single():
    x = torch.full((4096, 1), 0.1, dtype=torch.bfloat16)
    moments = Moments(1, 0, CPU)
    moments.add(x)
    assert float(moments.second[0, 0]) == pytest.approx(float(x[0, 0]) ** 2, rel=1e-3)
    assert float(moments.second[-1, -1]) == 1


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
