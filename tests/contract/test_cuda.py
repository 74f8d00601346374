"""The contract on a GPU, for a network of every kind: run where there is one (scripts/gpu)."""

from __future__ import annotations

import copy

import pytest
import torch

import optin
from optin.describing import describe
from optin.describing.inputs import image_input
from optin.running.gating import gated, masks
from optin.running.outputs import answers
from optin.running.surgery import shrink
from optin.running.twins import twinned
from tests import zoo
from tests.networks import build, inputs
from tests.test_cnn import NETWORKS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

KINDS = ("bert", "albert", "deberta-v2", "distilbert", "vit", "dinov2-gated", "beit", "swin", "clip", "timm-vit")
DECODERS = ("llama", "gpt2", "t5", "whisper")  # of the zoo; the heads of the first share keys
DTYPES = {"float32": 1e-4, "bfloat16": 4e-2}  # of the largest output
RECIPE = optin.Recipe().override(trajectory__draws=8, refit__folds=2)


def made(kind: str) -> tuple[torch.nn.Module, list[dict[str, torch.Tensor]]]:
    """A network, and eight batches for it."""
    if kind in NETWORKS:
        model = NETWORKS[kind]().eval()
        generator = torch.Generator().manual_seed(0)
        return model, [{image_input(model): torch.randn(4, 3, 28, 28, generator=generator)} for _ in range(8)]
    if kind in DECODERS:
        torch.manual_seed(0)
        return zoo.built(kind), [zoo.NETWORKS[kind].inputs() for _ in range(8)]
    model = build(kind)
    return model, [inputs(model, seed=seed) for seed in range(8)]


def on(device: str, dtype: torch.dtype, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()}


@torch.inference_mode()
def run(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return answers(model(**batch)).float().cpu()


def near(found: torch.Tensor, expected: torch.Tensor, share: float) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=share * expected.abs().max().item())


@pytest.fixture(autouse=True)
def exact_products(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*KINDS, *DECODERS, *NETWORKS])
def test_pruned_shrunk_saved_and_loaded(kind, dtype, tmp_path):
    share, precision = DTYPES[dtype], getattr(torch, dtype)
    model, calibration = made(kind)
    model = model.to("cuda", precision)
    batches = [on("cuda", precision, batch) for batch in calibration]
    before = run(model, batches[0])

    result = optin.prune(model, batches, "60%", recipe=RECIPE)
    assert torch.equal(run(model, batches[0]), before), "the network that was given is left as it was"
    assert {parameter.device.type for parameter in result.model.parameters()} == {"cuda"}
    assert {parameter.dtype for parameter in result.model.parameters()} == {precision}

    cut, space = copy.deepcopy(model), describe(model, batches[0])
    with twinned(model), gated(model, space, masks(model, result.plan)):
        expected = run(model, batches[0])
    shrink(cut, space, result.plan)
    near(run(cut, batches[0]), expected, share)

    result.save(tmp_path / "small")
    answered = run(result.model, batches[0])
    own = kind in NETWORKS
    loaded = optin.load(tmp_path / "small", into=made(kind)[0]) if own else optin.load(tmp_path / "small")
    weights = result.model.state_dict()
    assert all(torch.equal(value, weights[name].cpu()) for name, value in loaded.state_dict().items())
    near(run(loaded, on("cpu", precision, calibration[0])), answered, share)
    near(run(loaded.to("cuda"), batches[0]), answered, share)


@pytest.mark.parametrize("kind", ["bert", "vit", "residual", "llama"])
def test_scores_are_those_of_the_processor(kind):
    model, batches = made(kind)
    expected = optin.score(model, batches, recipe=RECIPE)
    found = optin.score(model.to("cuda"), [on("cuda", torch.float32, batch) for batch in batches], recipe=RECIPE)
    assert found.curves.keys() == expected.curves.keys()
    for name, curve in found.curves.items():
        torch.testing.assert_close(curve.cost, expected.curves[name].cost, rtol=0.05, atol=1e-9)
