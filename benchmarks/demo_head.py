"""Tune the head and the last two layers of MiniLM on the Rotten Tomatoes sentences: what `optin demo` prunes.

    python benchmarks/demo_head.py

Writes src/optin/app/demo_head.safetensors in half precision, and prints the accuracy on the 1,000 held-out sentences.
What the other layers return is computed once. About six minutes on two cores.
"""

from __future__ import annotations

import torch
from finetune_text import accuracy, bucketed
from safetensors.torch import save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, get_linear_schedule_with_warmup

from optin.app.demo import HEAD, LABELS, TUNED, with_head
from optin.app.demo_data import minilm_folder, rotten_tomatoes

EPOCHS, BATCH, RATE, SEED = 4, 32, 2e-4, 0


def main() -> None:
    torch.manual_seed(SEED)
    tokenizer = AutoTokenizer.from_pretrained(minilm_folder())
    model = AutoModelForSequenceClassification.from_pretrained(minilm_folder(), num_labels=len(LABELS)).eval()
    train, held_out = rotten_tomatoes()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(TUNED))
    tuned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    layers = [layer for layer in model.bert.encoder.layer if next(layer.parameters()).requires_grad]
    read: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        for batch in bucketed(train, tokenizer, BATCH):
            hidden = model.bert(**{k: v for k, v in batch.items() if k != "labels"}, output_hidden_states=True)
            read.append((hidden.hidden_states[-len(layers) - 1].clone(), batch["attention_mask"], batch["labels"]))
    optimizer = torch.optim.AdamW(tuned, lr=RATE, weight_decay=0.01)
    steps = EPOCHS * len(read)
    schedule = get_linear_schedule_with_warmup(optimizer, steps // 10, steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for epoch in range(EPOCHS):
        total = 0.0
        for place in torch.randperm(len(read), generator=generator).tolist():
            hidden, mask, labels = read[place]
            added = torch.zeros(mask.shape).masked_fill(mask == 0, torch.finfo(torch.float32).min)[:, None, None]
            for layer in layers:
                hidden = layer(hidden, attention_mask=added)
            logits = model.classifier(model.dropout(model.bert.pooler(hidden)))
            loss = torch.nn.functional.cross_entropy(logits, labels)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(tuned, 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            total += loss.item()
        print(f"epoch {epoch + 1}: loss {total / len(read):.3f}", flush=True)
    kept = {name: value.half().contiguous() for name, value in model.state_dict().items() if name.startswith(TUNED)}
    save_file(kept, HEAD)
    found = accuracy(with_head(minilm_folder()), held_out, tokenizer)
    print(f"held-out accuracy {found:.3f}, {HEAD.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
