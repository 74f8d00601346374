"""Small random networks of every architecture, and inputs for them."""

from __future__ import annotations

import os

# Before anything of Hugging Face is imported: no test reaches for the network.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"

import hypothesis
import pytest
import torch

from tests.shapes import check_shapes

check_shapes()  # before anything of optin is imported

from optin.describing import labels
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


DESCRIBED: dict[object, object] = {}
AFRESH = (
    "test_labels",
    "test_twins",
    "test_elastic",
    "test_large",
    "test_networks",
    "hostile",
)  # tests of describing itself


@pytest.fixture(autouse=True)
def described_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of transformers of one shape and configuration are described once for all tests."""
    if any(part in request.node.nodeid for part in AFRESH):
        return
    plain = labels._described

    def described(model, inputs, architecture, parts=False, queries=False):
        modules = list(model.modules())
        if not hasattr(model, "config") or any(m._forward_hooks or m._forward_pre_hooks for m in modules):
            return plain(model, inputs, architecture, parts, queries)
        key = (
            (parts, queries),
            type(model),
            architecture,
            model.config.to_json_string(use_diff=False),
            model.config._attn_implementation,
            tuple(map(type, modules)),
            tuple((name, value.shape, value.dtype, value.device) for name, value in model.named_parameters()),
            tuple(sorted((name, getattr(value, "shape", value)) for name, value in inputs.items())),
        )
        if key not in DESCRIBED:
            DESCRIBED[key] = plain(model, inputs, architecture, parts, queries)
        return DESCRIBED[key]

    monkeypatch.setattr(labels, "_described", described)


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
