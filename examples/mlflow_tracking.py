"""Every stage of a pruning as a run of MLflow: a callback, and the figures of the report at the end.

    pip install mlflow
    python examples/mlflow_tracking.py

Other trackers take the same two things: figures by name after every stage, and a dictionary at the end.
"""

from __future__ import annotations

import mlflow
import torch
import transformers

import optin


def log(stage, figures):
    """A callback for `optin.prune`: `stage` is "score", "search" or "apply"."""
    mlflow.log_metrics({f"{stage}/{name}": value for name, value in figures.items()})


def main() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    model = transformers.BertForSequenceClassification(config).eval()
    batches = [{"input_ids": torch.randint(5, 100, (8, 12))} for _ in range(4)]
    with mlflow.start_run():
        result = optin.prune(model, batches, "60%", callback=log)
        mlflow.log_dict(result.recipe.to_dict(), "recipe.yaml")
        mlflow.log_dict(result.report, "report.json")


if __name__ == "__main__":
    main()
