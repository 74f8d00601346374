"""A pruned network in ONNX Runtime, by optin and by plain onnxruntime.

    python examples/export_and_run.py

Needs the extra: pip install 'optin[export]'.
"""

from __future__ import annotations

import tempfile

import onnxruntime
import torch
import transformers

import optin


def main() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    model = transformers.BertForSequenceClassification(config).eval()
    ids = torch.randint(5, 100, (8, 12))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    small = optin.prune(model, [batch], "60%").model
    with tempfile.TemporaryDirectory() as folder:
        figures = optin.export(small, batch, f"{folder}/onnx")  # compared with `small` on the way
        runtime = optin.open_exported(f"{folder}/onnx")  # takes and returns what the network does
        session = onnxruntime.InferenceSession(figures["file"])
        (logits,) = session.run(None, {name: value.numpy() for name, value in batch.items()})
    assert torch.allclose(runtime(**batch).logits, torch.from_numpy(logits), atol=1e-5)
    print(f"differs by {figures['difference']:.0e}, {figures['bytes']:,} bytes")


if __name__ == "__main__":
    main()
