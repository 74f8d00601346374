from __future__ import annotations

import torch

from optin.accounting import costs
from optin.describing import describe
from tests.networks import ATTENTION, NEURONS, build


def closed_form(heads: list[int], neurons: list[int], length: int) -> int:
    """MACs of the small BERT classifier, by hand: width 24, heads of 6, pooler 24 x 24, 3 classes."""
    total = 24 * 24 + 24 * 3
    for h, n in zip(heads, neurons, strict=True):
        total += length * (4 * 24 * 6 * h) + 2 * length * length * 6 * h + length * 2 * 24 * n
    return total


def test_macs_by_hand(bert):
    macs, _ = costs(bert, describe(bert), 10)
    assert macs.dense == closed_form([4, 4, 4], [20, 20, 20], 10)
    kept = {ATTENTION[i]: 1 + i for i in range(3)} | {NEURONS[i]: 5 * i + 2 for i in range(3)}
    assert macs({**macs.sizes, **kept}) == closed_form([1, 2, 3], [2, 7, 12], 10)


def test_prices_are_differences(bert):
    for cost in costs(bert, describe(bert), 10):
        prices = cost.prices(cost.sizes)
        for name, size in cost.sizes.items():
            assert cost(cost.sizes) - cost({**cost.sizes, name: size - 1}) == prices[name]


def test_the_breakdown_adds_up(bert):
    macs, parameters = costs(bert, describe(bert), 10)
    assert sum(macs.breakdown(macs.sizes).values()) == macs.dense
    assert parameters.dense == sum(parameter.numel() for parameter in bert.parameters())


def test_tied_parameters_count_once():
    model = build("bert", "MaskedLM")
    _, parameters = costs(model, describe(model), 10)
    assert parameters.dense == sum({p.data_ptr(): p.numel() for p in model.parameters()}.values())


def test_layers_that_run_often_cost_often():
    once, often = build("albert", num_hidden_layers=1), build("albert", num_hidden_layers=3)
    prices = [costs(model, describe(model), 10)[0].prices(describe(model).sizes) for model in (once, often)]
    assert all(3 * prices[0][name] == prices[1][name] for name in prices[0] if "pooler" not in name)


def test_counting_leaves_no_trace(bert):
    bert.train()
    costs(bert, describe(bert), 10)
    assert bert.training and all(parameter.requires_grad for parameter in bert.parameters())
    assert not any(module._forward_hooks for module in bert.modules())
    assert torch.is_grad_enabled()
