from __future__ import annotations

import os

import pytest
import torch

from optin.errors import InputError
from optin.support import threads
from optin.support.threads import allowed, quotas, use_threads


@pytest.fixture(autouse=True)
def as_before():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def groups(tmp_path, files, own=""):
    root, process = tmp_path / "cgroup", tmp_path / "self"
    root.mkdir()
    process.write_text(own)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return list(quotas(root, process))


CASES = {
    "no groups": ({}, "", []),
    "version 2": ({"cpu.max": "200000 100000\n"}, "", [2.0]),
    "no limit": ({"cpu.max": "max 100000\n"}, "", []),
    "version 1": ({"cpu/cpu.cfs_quota_us": "150000", "cpu/cpu.cfs_period_us": "100000"}, "", [1.5]),
    "no limit of version 1": ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, "", []),
    "its own group and those above": (
        {"a/cpu.max": "400000 100000", "a/b/cpu.max": "max 100000", "a/b/c/cpu.max": "50000 100000"},
        "0::/a/b/c\n",
        [0.5, 4.0],
    ),
    "own group of version 1": (
        {"cpu/a/cpu.cfs_quota_us": "100000", "cpu/a/cpu.cfs_period_us": "50000"},
        "4:memory:/a\n3:cpu:/a\n",
        [2.0],
    ),
    "rubbish": ({"cpu.max": "a b c"}, "no group\n", []),
}


@pytest.mark.parametrize("case", CASES)
def test_quotas_are_read(case, tmp_path):
    files, own, expected = CASES[case]
    assert groups(tmp_path, files, own) == expected


def test_no_more_threads_than_the_quota(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "quotas", lambda: iter([0.5, 4.0]))
    torch.set_num_threads(2)
    assert allowed() == 1 and use_threads() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    torch.set_num_threads(2)
    assert use_threads() == 2
    assert use_threads(1) == torch.get_num_threads() == 1


def test_without_quota_all_that_the_process_may_use(monkeypatch):
    monkeypatch.setattr(threads, "quotas", lambda: iter([]))
    assert allowed() == len(os.sched_getaffinity(0))


@pytest.mark.parametrize("count", [0, -1, 10**9])
def test_absurd_counts_are_refused(count):
    with pytest.raises(InputError, match="--threads"):
        use_threads(count)
