"""Every architecture, bare and with every head, through one suite."""

from __future__ import annotations

import copy
import subprocess
import sys

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

import optin
from optin.describing import describe
from optin.describing.inputs import example_inputs
from optin.running.gating import gated, masks
from optin.running.outputs import answers
from optin.running.surgery import shrink
from optin.running.twins import twinned
from optin.space.plans import Cost, Plan
from tests.networks import EAGER_ONLY, HEADS_OF, REPRESENTATIVE, build, inputs, plan_of
from tests.slow import slow_but

CASES = [(architecture, head) for architecture, heads in sorted(HEADS_OF.items()) for head in heads]
IMPLEMENTATIONS = [
    (architecture, head, attention)
    for architecture, head in CASES
    for attention in ("eager", "sdpa")
    if head not in ("TokenClassification", "QuestionAnswering", "MaskedLM")
    if not (attention == "sdpa" and architecture in EAGER_ONLY)
]


def random_plan(model, seed: int = 0) -> Plan:
    """Keep a random, different number of units in each group."""
    space = describe(model)
    generator = torch.Generator().manual_seed(seed)
    keep = {}
    for group in space:
        count = int(torch.randint(1, group.size, (1,), generator=generator))
        keep[group.name] = tuple(sorted(torch.randperm(group.size, generator=generator)[:count].tolist()))
    return plan_of(model, keep, 32 if "swin" in space.architecture.lower() else 16)


@torch.inference_mode()
def run(model, batch):
    return answers(model(**batch))


@pytest.mark.parametrize(
    ("architecture", "head", "attention"), slow_but(lambda case: case[0] in REPRESENTATIVE, IMPLEMENTATIONS)
)
def test_shrunk_equals_gated(architecture, head, attention):
    model = build(architecture, head, attention)
    batch, plan, space = inputs(model), random_plan(model), describe(model)
    with twinned(model), gated(model, space, masks(model, plan)):
        expected = run(model, batch)
    assert not torch.allclose(expected, run(model, batch), atol=1e-3), "the plan must change something"
    shrink(model, space, plan)
    torch.testing.assert_close(run(model, batch), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("architecture", "head"), slow_but(lambda case: case[0] in REPRESENTATIVE, CASES))
def test_saved_equals_loaded(architecture, head, tmp_path):
    model = build(architecture, head, "eager" if architecture in EAGER_ONLY else "sdpa")
    result = optin.apply(model, random_plan(model))
    result.report["budget"] = "random"
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small")
    assert isinstance(loaded, type(model)) and type(loaded).__name__ == type(model).__name__
    weights = result.model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in loaded.state_dict().items())
    batch = inputs(model)
    if architecture == "swinv2":  # its cosines round differently from one allocation to the next
        torch.testing.assert_close(run(loaded, batch), run(result.model, batch), atol=1e-5, rtol=1e-5)
    else:
        assert torch.equal(run(loaded, batch), run(result.model, batch))


@pytest.mark.parametrize("architectures", slow_but([REPRESENTATIVE], [REPRESENTATIVE, sorted(HEADS_OF)]), ids=len)
def test_saved_equals_loaded_in_a_fresh_process(architectures, tmp_path):
    """One process for all of them."""
    expected = {}
    for architecture in architectures:
        model, folder = build(architecture, attention="eager" if architecture in EAGER_ONLY else "sdpa"), tmp_path
        result = optin.apply(model, random_plan(model))
        result.save(folder / architecture / "small")
        batch = inputs(model)
        torch.save(batch, folder / architecture / "inputs.pt")
        expected[architecture] = run(result.model, batch)
    code = (
        "import pathlib, sys, torch, optin\n"
        "from optin.running.outputs import answers\n"
        "torch.set_num_threads(1)\n"  # as here: another number may round otherwise
        "for folder in pathlib.Path(sys.argv[1]).iterdir():\n"
        "    inputs = torch.load(folder / 'inputs.pt', weights_only=True)\n"
        "    with torch.inference_mode():\n"
        "        torch.save(answers(optin.load(folder / 'small')(**inputs)), folder / 'outputs.pt')\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    for architecture, outputs in expected.items():
        found = torch.load(tmp_path / architecture / "outputs.pt", weights_only=True)
        if architecture == "swinv2":  # as above
            torch.testing.assert_close(found, outputs, atol=1e-5, rtol=1e-5)
        else:
            assert torch.equal(found, outputs), architecture


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_macs_equal_an_independent_counter(architecture, head):
    """torch counts the products that actually run: on the dense network, and on the shrunk one."""
    model = build(architecture, head)
    plan = random_plan(model)
    assert plan.dense.macs == counted(model, plan.length)
    shrink(model, describe(model), plan)
    assert plan.pruned.macs == counted(model, plan.length)
    assert plan.pruned.parameters == sum(parameter.numel() for parameter in model.parameters())


def counted(model, length: int) -> int:
    with FlopCounterMode(display=False) as counter:
        model.requires_grad_(False)(**example_inputs(model, length))
    return counter.get_total_flops() // 2


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_groups_are_disjoint_and_complete(architecture, head):
    model = build(architecture, head)
    space = describe(model)
    owners: dict[tuple[str, int], list[int]] = {}
    for group in space:
        for cut in group.cuts:
            owned = range(cut.offset, cut.offset + group.size * cut.block)
            owners.setdefault((cut.parameter, cut.dim), []).extend(owned)
    for (parameter, dim), indices in owners.items():
        assert sorted(indices) == list(range(model.get_parameter(parameter).shape[dim])), parameter
    # Complete: every linear map inside a block of the body is cut, on exactly one axis.
    for block in {space.blocks[group.layer] for group in space} & set(space.body):
        for name, module in model.get_submodule(block).named_modules():
            if isinstance(module, torch.nn.Linear) and "position_bias" not in name:
                axes = [dim for parameter, dim in owners if parameter == f"{block}.{name}.weight"]
                assert len(axes) == 1, f"{block}.{name}"


@pytest.mark.parametrize(("architecture", "head"), CASES)
def test_a_plan_that_keeps_everything_changes_nothing(architecture, head):
    model = build(architecture, head)
    space = describe(model)
    keep = {group.name: tuple(range(group.size)) for group in space}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    shrink(model, space, Plan(space.architecture, space.sizes, keep, Cost(1, 1), Cost(1, 1), 16))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_pruning_the_pruned(architecture, tmp_path):
    """A second plan applies to the small network, and both together are saved as one."""
    model = build(architecture, attention="eager" if architecture in EAGER_ONLY else "sdpa")
    first = optin.apply(model, random_plan(model, 1))
    second = optin.apply(first.model, random_plan_of_shrunk(first.model))
    second.save(tmp_path / "twice")
    batch = inputs(model)
    torch.testing.assert_close(
        run(optin.load(tmp_path / "twice"), batch), run(second.model, batch), atol=1e-6, rtol=1e-6
    )


def random_plan_of_shrunk(model) -> Plan:
    space = describe(model)
    keep = {group.name: range(group.size - (group.size > 1)) for group in space}
    return plan_of(model, keep, 32 if "swin" in space.architecture.lower() else 16)


def test_the_whole_job(architecture):
    """Default recipe: the given network stays as it is, the budget holds, the outputs stay finite."""
    model = build(architecture)
    before = copy.deepcopy(model.state_dict())
    batches = [inputs(model, seed=seed) for seed in range(4)]
    result = optin.prune(model, batches, budget="60%")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert result.plan.pruned.macs <= 0.6 * result.plan.dense.macs
    assert torch.isfinite(run(result.model, batches[0])).all()
