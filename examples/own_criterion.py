"""A criterion of your own: a function from `Scoring` to one removal curve per group.

    python examples/own_criterion.py

In a package, publish it as an entry point, and it has a name on the command line and in recipes:

    [project.entry-points."optin.criteria"]
    activation = "your_package:activation"
"""

from __future__ import annotations

import dataclasses

import torch
import transformers

import optin
from optin.describing import describe
from optin.running.batches import Batches
from optin.running.consumers import features_per_unit, rows_read
from optin.running.modules import hooks
from optin.scoring.criteria import Scoring
from optin.space.scores import Curve, Scores


@torch.no_grad()
def activation(scoring: Scoring) -> dict[str, Curve]:
    """Units by their mean square, as what reads them sees it."""
    importance = {group.name: torch.zeros(group.size) for group in scoring.space}

    def watch(group, gate):
        def hook(module, args):
            rows = rows_read(module, gate, args[0]).flatten(0, -2)  # tokens, or patches of a convolution
            features = features_per_unit(module, gate)
            first = gate.start * features // gate.block
            units = rows[:, first : first + group.size * features].square().mean(0)
            importance[group.name] += units.view(group.size, features).sum(1)

        return scoring.model.get_submodule(gate.module).register_forward_pre_hook(hook)

    with hooks(*(watch(group, gate) for group in scoring.space for gate in group.gates)):
        for batch in scoring.batches:
            scoring.model(**batch)
    return {name: Curve.from_importance(value) for name, value in importance.items()}


def main() -> None:
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=48, num_hidden_layers=3, num_attention_heads=4, intermediate_size=96
    )
    model = transformers.BertForSequenceClassification(config).eval()
    batches = [{"input_ids": torch.randint(5, 100, (8, 12))} for _ in range(4)]
    space, recipe = describe(model), optin.Recipe()
    scoring = Scoring(model, space, Batches.of(batches, torch.device("cpu")), recipe)
    scores = Scores(space.architecture, activation(scoring), length=12)
    plan = dataclasses.replace(optin.plan(model, scores, "60%"), provenance={})
    result = optin.apply(model, plan, batches)
    print(result.plan.kept)


if __name__ == "__main__":
    main()
