"""Fine-tuning a pruned (or dense) image classifier on another data set, by the Trainer of transformers.

Of the paper's uses: prune on one data set, then start from the small network on another.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoint import SECTION, save
from .errors import DependencyError, InputError
from .folders import new_folder
from .modules import device_of
from .other_models import is_other
from .pipeline import Result, summary
from .plans import Plan
from .quiet import quiet
from .recipe import Training
from .tasks import Images, task_spec
from .tasks.images import Unreadable
from .tasks.vision import evaluate
from .trajectory import Output, output_loss

FINETUNED = "finetuned"  # kind of result


def finetune(
    model: nn.Module,
    processor: Any,
    train: Images,
    held_out: Images,
    out: Path,
    training: Training | None = None,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Train a classifier with a new head and save it, pruned as it was; returns its figures.

    Args:
        seed: of the order of the images and of the new head.
        teacher: a network of the same classes whose outputs are followed beside the labels.
        overwrite: replace an earlier result of fine-tuning in `out`.

    Raises:
        InputError: no labels, a network without a classifier of images, or a teacher of other classes.
        DependencyError: accelerate is not installed.
    """
    from transformers import PrinterCallback, Trainer, TrainingArguments

    options = training or Training()
    if train.labels is None or held_out.labels is None:
        raise InputError("fine-tuning needs labels: put each class into a folder of its own.")
    classes = max(max(train.labels), max(held_out.labels)) + 1
    torch.manual_seed(seed)
    replace_head(model, classes, train.classes)
    if teacher is not None and getattr(teacher.config, "num_labels", None) != classes:
        raise InputError(f"the teacher must know the {classes} classes of the data: fine-tune it first.")
    model.requires_grad_(not options.head_only)
    model.get_submodule("classifier").requires_grad_(True)

    class Distilling(Trainer):
        """The loss of the labels, and half of it replaced by the teacher's where there is one."""

        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> Any:
            output = model(**inputs)
            loss = F.cross_entropy(output.logits, inputs["labels"])
            if teacher is not None:
                with torch.no_grad():
                    aim = teacher(pixel_values=inputs["pixel_values"].to(device_of(teacher))).logits
                loss = (loss + follow(output.logits, aim.to(output.logits.device), options.temperature)) / 2
            return (loss, output) if return_outputs else loss

    try:
        arguments = TrainingArguments(
            output_dir=str(out.with_name(f"{out.name}.training")),
            num_train_epochs=options.epochs,
            per_device_train_batch_size=options.batch_size,
            per_device_eval_batch_size=options.batch_size,
            learning_rate=options.learning_rate,
            warmup_steps=0.1,
            weight_decay=0.01,
            seed=seed,
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            logging_strategy="no",
            remove_unused_columns=False,
            use_cpu=device_of(model).type == "cpu",
        )
    except ImportError:
        raise DependencyError("fine-tuning needs the package 'accelerate': pip install 'optin[finetune]'") from None
    with quiet():
        trainer = Distilling(
            model=model,
            args=arguments,
            train_dataset=Prepared(train, processor),
            data_collator=collate,
        )
        trainer.remove_callback(PrinterCallback)
        done = trainer.train()
    model.requires_grad_(True).eval()
    spec = task_spec("image-classification")
    accuracy = evaluate(model, processor, spec, held_out, batch_size=options.batch_size)["accuracy"]
    section = getattr(model.config, SECTION, None)
    figures = {
        "accuracy": accuracy,
        "classes": classes,
        "images": len(train),
        "seconds": done.metrics["train_runtime"],
        "saved": str(out),
    }
    if section is None:
        with new_folder(out, FINETUNED, overwrite) as work, quiet():
            model.save_pretrained(work)  # type: ignore[operator]
            processor.save_pretrained(work)
    else:
        plan = Plan.from_dict(section)
        result = Result(model, plan, {**summary(plan), "seconds": {}, "finetuned": figures})
        save(result, out, processor, overwrite=overwrite, kind=FINETUNED)
    return figures


def replace_head(model: nn.Module, classes: int, names: tuple[str, ...] = ()) -> None:
    """Give a classifier of images a new last layer.

    Raises:
        InputError: it has none that is known.
    """
    network: Any = model
    if is_other(model) or not isinstance(getattr(model, "classifier", None), nn.Linear):
        raise InputError(f"{type(model).__name__} has no linear 'classifier' to replace: fine-tune a classifier.")
    old = network.classifier
    new = nn.Linear(old.in_features, classes).to(old.weight.device, old.weight.dtype)
    nn.init.normal_(new.weight, std=0.02)
    nn.init.zeros_(new.bias)
    network.classifier = new
    if hasattr(network, "num_labels"):
        network.num_labels = classes
    labels = names if len(names) == classes else tuple(str(index) for index in range(classes))
    network.config.id2label = dict(enumerate(labels))
    network.config.label2id = {name: index for index, name in enumerate(labels)}


def follow(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """tau^2 KL(teacher || student) of the softened outputs, averaged over images."""
    got, aim = (Output("distribution", logits.float().unsqueeze(0)) for logits in (student, teacher))
    return output_loss(got, aim, temperature).squeeze(0)


class Prepared(torch.utils.data.Dataset[dict[str, Any]]):
    """Images as a processor makes them; one that cannot be read gives way to the next."""

    def __init__(self, images: Images, processor: Any) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        assert self.images.labels is not None
        for step in range(len(self)):
            place = (index + step) % len(self)
            try:
                picture = self.images.read(place)
            except Unreadable:
                continue
            values = self.processor(images=picture, return_tensors="pt")["pixel_values"][0]
            return {"pixel_values": values, "labels": self.images.labels[place]}
        raise InputError("none of the images can be read.")


def collate(rows: list[dict[str, Any]]) -> dict[str, Tensor]:
    """One batch."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
