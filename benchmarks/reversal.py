"""A small T5 that reverses sequences, pruned: how many answers are still right, symbol by symbol.

    python benchmarks/reversal.py

Its network is trained first, in some minutes, and kept in the cache. Calibration sees sequences without answers: the
decoder reads what the dense network says. Answers are generated greedily. Prints the table, and stores it in
docs/results/reversal.md, the figures in docs/results/reversal.json.
"""

from __future__ import annotations

import statistics
import time
from pathlib import Path
from typing import Any

import torch
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import mean_and_spread, table
from torch import Tensor, nn
from training import folder_of, one_cycle

import optin
from optin.space.options import Calibration
from optin.tasks import Examples, load_model, load_tokenizer, task_spec, writing

NAME = "t5-reversal"
SYMBOLS, SHORTEST, LONGEST = 100, 5, 10
PADDING, END, UNKNOWN = 0, 1, 2
FIRST = 3  # token of the first symbol
STEPS, BATCH, RATE = 2000, 100, 3e-3
HELD_OUT, LEAST = 500, 0.95  # sequences, and the share of them that the trained network has to reverse
CALIBRATION = Calibration(examples=256, batch_size=32)
BUDGETS = (90, 80, 70, 60, 50)
SEEDS = (0, 1, 2)
ROWS = {
    "optin": {},
    "magnitude, no refit": {"criterion": "magnitude", "refit__enabled": False},
    "random, no refit": {"criterion": "random", "refit__enabled": False},
}
DRAWING = ("optin", "random, no refit")  # rows that differ from seed to seed


def network() -> Any:
    """With random weights."""
    import transformers

    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=FIRST + SYMBOLS,
        d_model=64,
        d_kv=16,
        d_ff=128,
        num_layers=2,
        num_heads=4,
        dropout_rate=0.0,
        pad_token_id=PADDING,
        eos_token_id=END,
        decoder_start_token_id=PADDING,
    )
    return transformers.T5ForConditionalGeneration(config)


def tokenizer() -> Any:
    """One token for a symbol, and one for the end."""
    import transformers
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    names = ["<pad>", "</s>", "<unk>", *(f"s{symbol}" for symbol in range(SYMBOLS))]
    backend = Tokenizer(models.WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", END)])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=64
    )


def batch(count: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Sequences, and their symbols the other way round."""
    ids = torch.full((count, LONGEST + 1), PADDING)
    labels = torch.full((count, LONGEST + 1), -100)
    for row in range(count):
        length = int(torch.randint(SHORTEST, LONGEST + 1, (), generator=generator))
        symbols = torch.randint(FIRST, FIRST + SYMBOLS, (length,), generator=generator)
        ids[row, :length], labels[row, :length] = symbols, symbols.flip(0)
        ids[row, length] = labels[row, length] = END
    return {"input_ids": ids, "attention_mask": (ids != PADDING).long(), "labels": labels}


def sentences(count: int, seed: int) -> Examples:
    """Sequences as texts, with those that are wanted."""
    made = batch(count, torch.Generator().manual_seed(seed))["input_ids"]
    rows = [[f"s{token - FIRST}" for token in row.tolist() if token >= FIRST] for row in made]
    return Examples([" ".join(row) for row in rows], None, [" ".join(reversed(row)) for row in rows])


def trained() -> Path:
    """The folder of the trained network, which is made if it is not there."""
    folder = folder_of(NAME)
    if (folder / "config.json").exists():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    model, generator = network().train(), torch.Generator().manual_seed(0)
    optimiser = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.01)
    for step in progress(range(STEPS), description="training", console=Console(stderr=True)):
        optimiser.param_groups[0]["lr"] = RATE * one_cycle(step / STEPS)
        loss = model(**batch(BATCH, generator)).loss
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    tokenizer().save_pretrained(folder)
    model.eval().save_pretrained(folder)
    return folder


class Setting:
    """The network, and sequences that it was not trained on: to calibrate on, and to be measured on."""

    def __init__(self) -> None:
        source = str(trained())
        self.spec = task_spec("seq2seq")
        self.model, self.tokenizer = load_model(source, self.spec.kind), load_tokenizer(source)
        self.held_out = sentences(HELD_OUT, 10**6)

    def batches(self, seed: int) -> list[dict[str, Any]]:
        """Calibration inputs, without answers."""
        texts = sentences(CALIBRATION.examples, 2 * 10**6 + seed).texts
        return writing.drawn_batches(self.model, Examples(texts), self.tokenizer, CALIBRATION, seed)[0]

    def exact(self, model: nn.Module) -> float:
        """Share of the held-out sequences that are reversed without a fault."""
        found = writing.answers([model], self.tokenizer, self.spec, self.held_out, batch_size=100)
        return found.figures()["exact"]


def measured(setting: Setting, row: str, seed: int) -> dict[str, Any]:
    """One row of one seed: right answers by budget, and the seconds of the job until the first network."""
    recipe, batches = optin.Recipe(seed=seed).override(**ROWS[row]), setting.batches(seed)
    start, found = time.perf_counter(), dict[str, Any]()
    scores = optin.score(setting.model, batches, recipe=recipe, track=optin.silent)
    for budget in BUDGETS:
        plan = optin.plan(setting.model, scores, f"{budget}%", recipe=recipe)
        result = optin.apply(setting.model, plan, batches, recipe=recipe, scores=scores, track=optin.silent)
        found.setdefault("seconds", time.perf_counter() - start)
        found[str(budget)] = setting.exact(result.model)
    return found


def render(results: dict[str, Any]) -> str:
    """The table in Markdown."""
    rows = []
    for row in (row for row in ROWS if row in results):
        seeds = list(results[row].values())
        cells = [mean_and_spread([100 * found[str(budget)] for found in seeds], 1) for budget in BUDGETS]
        seconds = statistics.mean(found["seconds"] for found in seeds)
        rows.append([f"**{row}**" if row == "optin" else row, *cells, f"{seconds:.1f}"])
    return "\n".join(
        [
            "# An encoder-decoder that reverses",
            "",
            "`python benchmarks/reversal.py`: a T5 of width 64 with two layers on both sides, trained to reverse "
            f"sequences of {SHORTEST} to {LONGEST} of {SYMBOLS} symbols. Answers that are right from end to end, "
            f"in %, of {HELD_OUT} held-out sequences, generated greedily; the dense network's: "
            f"{100 * results['dense']:.1f} %. {CALIBRATION.examples} other sequences for calibration, without "
            f"answers; mean of {len(SEEDS)} seeds ± standard deviation where rows draw. Seconds are those of the job "
            "until the first network, on one thread of a machine that others used too.",
            "",
            *table(["", *(f"{budget} % MACs" for budget in BUDGETS), "job, s"], rows),
            "",
        ]
    )


def main() -> None:
    setting, results = Setting(), Stored("reversal")
    results["dense"] = setting.exact(setting.model)
    if results["dense"] < LEAST:
        raise SystemExit(
            f"only {100 * results['dense']:.1f} % of the answers are right: it has to be trained longer."
        )
    wanted = [(row, seed) for row in ROWS for seed in (SEEDS if row in DRAWING else SEEDS[:1])]
    for row, seed in progress(wanted, "rows", console=Console(stderr=True)):
        if str(seed) not in results.get(row, {}):
            results[row] = {**results.get(row, {}), str(seed): measured(setting, row, seed)}
    results.show(render(results))


if __name__ == "__main__":
    main()
