"""The whole job on a second device that is no GPU, where a tensor in the wrong place is refused (elsewhere.py)."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import accelerate
import pytest
import torch

import optin
from tests.slow import slow_but
from tests.zoo import NETWORKS, built

ROOT = Path(__file__).parent.parent


def alone(call: str) -> subprocess.CompletedProcess[str]:
    """A function of this file, in a process of its own."""
    code = f"import torch; torch.set_num_threads(1); from tests import test_devices; test_devices.{call}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)


def whole_job(kind: str) -> None:
    """Score, plan, apply and save there: as on the processor."""
    from optin.describing import refusals
    from tests.elsewhere import DEVICE, Elsewhere, device

    torch.manual_seed(0)
    recipe = optin.Recipe().override(trajectory__draws=8)
    model, batches = built(kind), [NETWORKS[kind].inputs() for _ in range(3)]
    expected = optin.prune(model, batches, "70%", recipe=recipe, track=optin.silent)
    with device(), patch.object(refusals, "Tensor", Elsewhere), tempfile.TemporaryDirectory() as folder:
        model.to(DEVICE)
        there = [{name: value.to(DEVICE) for name, value in batch.items()} for batch in batches]
        scores = optin.score(model, there, recipe=recipe, track=optin.silent)
        plan = optin.plan(model, scores, "70%", recipe=recipe, track=optin.silent)
        result = optin.apply(model, plan, there, recipe=recipe, scores=scores, track=optin.silent)
        assert plan.keep == expected.plan.keep
        assert {value.device for value in result.model.state_dict().values()} == {DEVICE}
        result.save(f"{folder}/small")
        refusals.Tensor = torch.Tensor
        loaded = optin.load(f"{folder}/small").state_dict()
        for name, value in result.model.state_dict().items():
            assert torch.equal(value.cpu(), loaded[name]), name
            wanted = expected.model.state_dict()[name]  # sums there round as they do on another machine
            assert (loaded[name] - wanted).abs().max() <= 1e-2 * wanted.abs().max(), name


def spread_job() -> None:
    """The job on a network whose blocks lie in two places, as a `device_map` of accelerate spreads them."""
    from accelerate.hooks import AlignDevicesHook, add_hook_to_module

    from optin.describing import refusals
    from tests.elsewhere import DEVICE, device

    torch.manual_seed(0)
    recipe = optin.Recipe(exchange=1).override(trajectory__draws=8)
    model, batches = built("llama"), [NETWORKS["llama"].inputs() for _ in range(4)]
    expected = optin.prune(model, batches, "70%", recipe=recipe, track=optin.silent)
    plain = patch.object(refusals, "_check_parameters", lambda model: None)
    with device(), plain, tempfile.TemporaryDirectory() as folder:
        for layer in model.model.layers[1:]:
            add_hook_to_module(layer.to(DEVICE), AlignDevicesHook(DEVICE))
        add_hook_to_module(model.model.norm, AlignDevicesHook("cpu"))
        add_hook_to_module(model, AlignDevicesHook("cpu", io_same_device=True))
        model.hf_device_map = {"model.layers.0": "cpu", "model.layers.1": DEVICE}
        result = optin.prune(model, batches, "70%", recipe=recipe, track=optin.silent)
        assert result.plan.keep == expected.plan.keep
        places = {name: value.device for name, value in model.state_dict().items()}
        assert {name: value.device for name, value in result.model.state_dict().items()} == places
        result.save(f"{folder}/small")
        loaded = optin.load(f"{folder}/small").state_dict()
        for name, value in result.model.state_dict().items():
            assert torch.equal(value.cpu(), loaded[name]), name
            wanted = expected.model.state_dict()[name]
            assert (loaded[name] - wanted).abs().max() <= 1e-2 * wanted.abs().max(), name


def mixing() -> None:
    """What a GPU refuses and what it takes."""
    from optin.describing import refusals
    from tests.elsewhere import Elsewhere, device

    with device() as there:
        x, here = torch.ones(3, device=there), torch.ones(3)
        for wrong in (
            lambda: x + here,
            lambda: torch.cat([x, here]),
            lambda: x.new_zeros(3) * here,
            lambda: torch.zeros_like(here).copy_(x) - x,
            lambda: torch.randn(3, device=there, generator=torch.Generator()),
            lambda: x.numpy(),
        ):
            with pytest.raises((RuntimeError, TypeError)):
                wrong()
        assert (x + torch.tensor(2.0)).device == x[torch.tensor([0])].device == torch.arange(3, device=there).device
        model, batch = built("bert").to(there), NETWORKS["bert"].inputs()
        model.bert.embeddings.position_ids = model.bert.embeddings.position_ids.cpu()
        with patch.object(refusals, "Tensor", Elsewhere), pytest.raises(optin.OptinError, match="on cpu"):
            optin.score(model, [{name: value.to(there) for name, value in batch.items()}], track=optin.silent)
        assert (x.cpu() + here).tolist() == [2, 2, 2] and (x + here.to(there)).sum().item() == 6


@pytest.mark.parametrize("kind", slow_but((), ("bert", "llama", "resnet")))
def test_the_whole_job(kind):
    done = alone(f"whole_job({kind!r})")
    assert done.returncode == 0, done.stderr[-3000:]


def test_a_network_in_two_places():
    done = alone("spread_job()")
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("name", ["llama", "mixtral"])
def test_forwards_on_the_object_change_no_description(name):
    model, batch = built(name), NETWORKS[name].inputs()
    expected = optin.describe(model, batch, parts=True)
    placed = accelerate.dispatch_model(built(name), {"": "cpu"}, force_hooks=True)
    found = optin.describe(placed, batch, parts=True)
    assert found.sizes == expected.sizes
    assert [group.absence for group in found] == [group.absence for group in expected]


def test_weights_that_accelerate_loads_at_every_forward_are_refused():
    model = accelerate.cpu_offload(built("llama"), execution_device=torch.device("cpu"))
    with pytest.raises(optin.ArchitectureError, match="offload: true"):
        optin.score(model, [NETWORKS["llama"].inputs()])


def test_a_tensor_in_the_wrong_place_shows():
    done = alone("mixing()")
    assert done.returncode == 0, done.stderr[-3000:]
