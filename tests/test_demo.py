"""The parts of the demo; `make demo` runs the whole."""

from __future__ import annotations

import pytest
import torch

from optin.app.demo import logistic_regression
from optin.app.demo_data import minilm_folder, package_folder, rotten_tomatoes
from optin.errors import DependencyError


def test_logistic_regression_ends_at_a_minimum():
    features, labels = torch.randn(200, 5), torch.randint(2, (200,))
    weight, bias = logistic_regression(features, labels, penalty=0.01)
    weight = weight.clone().requires_grad_()
    loss = torch.nn.functional.cross_entropy(features @ weight.mT + bias, labels) + 0.01 * weight.square().sum()
    (gradient,) = torch.autograd.grad(loss, weight)
    assert float(gradient.abs().max()) < 1e-4


def test_the_data_is_split_once_and_for_all():
    train, held_out = rotten_tomatoes()
    assert (len(train), len(held_out)) == (7530, 1000)
    assert rotten_tomatoes()[1] == held_out and rotten_tomatoes(seed=1)[1] != held_out
    assert abs(sum(held_out.labels) - 500) < 60
    assert train.head(3).texts == train.texts[:3]
    assert (minilm_folder() / "model.safetensors").exists()


def test_a_missing_package_is_named():
    with pytest.raises(DependencyError, match=r"'no-such-package'.*optin\[demo\]"):
        package_folder("no_such_package")
