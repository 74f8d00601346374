from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from optin.errors import BudgetError
from optin.space.budget import Budget


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("50%", Budget(0.5)),
        ("50 % MACs", Budget(0.5)),
        ("12.5%", Budget(0.125)),
        (0.6, Budget(0.6)),
        ("2.1 GMACs", Budget(2.1e9, "MACs", relative=False)),
        ("300 mmacs", Budget(3e8, "MACs", relative=False)),
        ("40 Mparams", Budget(4e7, "parameters", relative=False)),
        ("1e6 parameters", Budget(1e6, "parameters", relative=False)),
        ("60% params", Budget(0.6, "parameters")),
        ("60% of the parameters", Budget(0.6, "parameters")),
        ("60% latency", Budget(0.6, "latency")),
        ("12 ms", Budget(12e9, "latency", relative=False)),
        ("0.5 s", Budget(500e9, "latency", relative=False)),
        ("800us", Budget(0.8e9, "latency", relative=False)),
        ("0.5", Budget(0.5)),
        ("40 MB", Budget(4e7, "bytes", relative=False)),
        ("1.5 GB", Budget(1.5e9, "bytes", relative=False)),
        ("60% bytes", Budget(0.6, "bytes")),
        ("60% FLOPs", Budget(0.6)),
        ("0.1 GFLOPs", Budget(5e7, "MACs", relative=False)),
        ("1,000,000 MACs", Budget(1e6, "MACs", relative=False)),
        ("15k params", Budget(15e3, "parameters", relative=False)),
        ("15 k parameters", Budget(15e3, "parameters", relative=False)),
    ],
)
def test_parse(text, expected):
    assert Budget.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "half",
        "50",
        "%",
        "100%",
        "120%",
        "-5%",
        "0%",
        1.0,
        0.0,
        -0.2,
        "nan%",
        "5 min",
        "0 ms",
        "1..2%",
        None,
        True,
        "inf%",
        "60% ms",
        "60% Mparams",
        "12 kms",
        "5 m s",
        "3 latency",
        "1,00 MACs",
        "15k",
        "7e",
        "e%",
        "50 of",
        50,
    ],
)
def test_what_is_no_budget_is_refused(text):
    with pytest.raises(BudgetError):
        Budget.parse(text)


@pytest.mark.parametrize(
    ("text", "meant"), [("50", "'50%'"), (50, "'50%'"), ("15k", "'15k params'"), ("2e9", "'2e\\+09 MACs'")]
)
def test_a_number_without_a_unit_is_answered_with_what_may_be_meant(text, meant):
    with pytest.raises(BudgetError, match=meant):
        Budget.parse(text)


@given(st.floats(0.001, 0.999), st.sampled_from(["MACs", "parameters", "bytes", "latency"]))
def test_text_and_back(value, quantity):
    budget = Budget(round(value, 6), quantity)
    assert Budget.parse(str(budget)).value == pytest.approx(budget.value, rel=1e-5)
    assert Budget.parse(str(budget)).quantity == quantity


@given(st.integers(1, 10**12), st.sampled_from(["MACs", "parameters", "bytes"]))
def test_the_text_of_an_absolute_budget_allows_no_more(value, quantity):
    read = Budget.parse(str(Budget(value, quantity, relative=False)))
    assert value - 1 <= read.limit(10**13) <= value


@given(st.floats(0.001, 0.999), st.integers(1, 10**12))
def test_a_relative_limit_is_the_largest_whole_cost_within_it(value, dense):
    limit = Budget(value).limit(dense)
    assert limit <= value * dense + 1e-3
    assert limit + 1 > value * dense - 1e-3


def test_percent_of_a_round_number_is_exact():
    assert Budget.parse("29%").limit(100) == 29
    assert Budget.parse("7%").limit(100) == 7


def test_an_absolute_budget_above_the_dense_cost_is_refused():
    with pytest.raises(BudgetError, match="nothing to prune"):
        Budget.parse("2 MMACs").limit(2_000_000)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("2.1GMACs", "2.1 GMACs"),
        ("40000 params", "40 kparams"),
        ("12 macs", "12 MACs"),
        ("12 ms", "12 ms"),
        ("40 mb", "40 MB"),
    ],
)
def test_shown_as_written(text, shown):
    assert str(Budget.parse(text)) == shown
