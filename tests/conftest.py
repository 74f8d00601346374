"""Small random networks of every architecture, and inputs for them."""

from __future__ import annotations

import pytest
import torch

from tests.networks import ARCHITECTURES, build, tokens


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=sorted(ARCHITECTURES))
def architecture(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def bert():
    """A BERT classifier of three layers."""
    return build("bert", "SequenceClassification")


@pytest.fixture
def batches(bert):
    """Eight batches of four padded inputs."""
    return [tokens(bert, batch=4, length=9, seed=seed) for seed in range(8)]
