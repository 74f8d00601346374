"""Fine-tune MiniLM on the Rotten Tomatoes sentences: the dense network of the text benchmark.

    python benchmarks/finetune_text.py

Writes a transformers folder under the cache (`optin.support.files.cache_folder()`) and prints its accuracy on
1,000 held-out sentences. A finished folder is reused. About four minutes on two cores.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from optin.app.demo_data import Sentences, minilm_folder, rotten_tomatoes
from optin.support.files import cache_folder

EPOCHS, BATCH, RATE, SEED = 2, 32, 1e-4, 0


def bucketed(sentences: Sentences, tokenizer, size: int, generator: torch.Generator | None = None):
    """Batches of similar length; with a generator their order is shuffled."""
    order = sorted(range(len(sentences)), key=lambda i: len(sentences.texts[i]))
    groups = [order[i : i + size] for i in range(0, len(order), size)]
    if generator is not None:
        groups = [groups[i] for i in torch.randperm(len(groups), generator=generator).tolist()]
    for group in groups:
        batch = tokenizer([sentences.texts[i] for i in group], padding=True, truncation=True, return_tensors="pt")
        yield batch | {"labels": torch.tensor([sentences.labels[i] for i in group])}


def accuracy(model, sentences: Sentences, tokenizer) -> float:
    model.eval()
    with torch.inference_mode():
        hits = sum(
            int((model(**batch).logits.argmax(-1) == batch["labels"]).sum())
            for batch in bucketed(sentences, tokenizer, 64)
        )
    return hits / len(sentences)


def finetune() -> Path:
    """Folder of the fine-tuned network, trained now if it is not in the cache."""
    folder = cache_folder() / "minilm-rotten-tomatoes"
    if (folder / "config.json").exists():
        return folder
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=2)
    train, test = rotten_tomatoes()
    steps = EPOCHS * -(-len(train) // BATCH)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, weight_decay=0.01)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    for epoch in range(EPOCHS):
        model.train()
        for batch in bucketed(train, tokenizer, BATCH, generator):
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        print(f"epoch {epoch + 1}: held-out accuracy {accuracy(model, test, tokenizer):.3f}", flush=True)
    partial = folder.with_suffix(".partial")
    model.eval().save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    shutil.move(partial, folder)
    return folder


if __name__ == "__main__":
    folder = finetune()
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    held_out = rotten_tomatoes()[1]
    print(f"{folder}: held-out accuracy {accuracy(model, held_out, AutoTokenizer.from_pretrained(folder)):.3f}")
