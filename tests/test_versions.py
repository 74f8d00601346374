"""Folders that earlier versions wrote: one each in tests/folders, with what they computed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import transformers

import optin
from optin.space.plans import Plan

FOLDERS = Path(__file__).parent / "folders"
IDS = torch.arange(5, 25).view(2, 10)
# What the networks said when they were saved.
SAID = {
    "0.1.0": [
        [0.006846005562692881, 0.01102807093411684, -0.00040708016604185104],
        [0.007914639078080654, 0.010807034559547901, -0.0014208480715751648],
    ]
}


@pytest.mark.parametrize("version", SAID)
def test_a_folder_of_an_earlier_version_is_loaded(version, tmp_path):
    model = optin.load(FOLDERS / version)
    expected = torch.tensor(SAID[version])
    with torch.inference_mode():
        torch.testing.assert_close(model(IDS).logits, expected, atol=1e-6, rtol=0)
        shutil.copytree(FOLDERS / version, tmp_path / "copy")
        auto = transformers.AutoModelForSequenceClassification
        again = auto.from_pretrained(tmp_path / "copy", trust_remote_code=True)
        torch.testing.assert_close(again(IDS).logits, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("version", SAID)
def test_it_can_be_saved_and_pruned_again(version, tmp_path):
    model = optin.load(FOLDERS / version)
    batches = [{"input_ids": torch.randint(5, 60, (4, 10))} for _ in range(2)]
    result = optin.prune(model, batches, "80%", recipe=optin.Recipe().override(trajectory__draws=8))
    result.save(tmp_path / "small")
    again = optin.load(tmp_path / "small")
    with torch.inference_mode():
        assert torch.equal(again(IDS).logits, result.model(IDS).logits)


@pytest.mark.parametrize("version", SAID)
def test_a_plan_of_an_earlier_version_is_applied(version):
    plan = Plan.load(FOLDERS / version / "plan.json")
    config = transformers.BertConfig.from_pretrained(FOLDERS / version)
    del config.optin
    result = optin.apply(transformers.BertForSequenceClassification(config), plan)
    assert result.plan.pruned.parameters == sum(value.numel() for value in result.model.parameters())
