"""Small random networks of every architecture, and inputs for them."""

from __future__ import annotations

import os

# Before anything of Hugging Face is imported: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

from tests.networks import HEADS_OF, REPRESENTATIVE, build, tokens
from tests.slow import slow_but

# Small networks gain nothing from threads, and lose much when another process is at work.
torch.set_num_threads(1)


# How fast a machine is, and whether hypothesis has its tables of characters yet, is nothing that a test asks for.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


@pytest.fixture(autouse=True)
def one_seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=slow_but(REPRESENTATIVE, sorted(HEADS_OF)))
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
