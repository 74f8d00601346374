"""Fine-tuning a pruned (or dense) image classifier on another data set, by the Trainer of transformers.

Of the paper's uses: prune on one data set, then start from the small network on another.
"""

from __future__ import annotations

import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import DependencyError, InputError, NumericalError
from ..result import Result, plan_figures
from ..running.modules import call, device_of
from ..running.outputs import Output
from ..scoring.trajectory import output_loss
from ..space.options import Training
from ..space.plans import Plan
from ..storage.libraries import is_other
from ..storage.planned import SECTION
from ..storage.saving import save
from ..storage.silenced import silenced
from ..support.folders import new_folder
from ..support.untyped import Figures, Foreign
from ..tasks import Images, check_evaluation, task_spec
from ..tasks.images import Unreadable, check_labels
from ..tasks.vision import evaluate

EPOCHS, STEPS, RATE = 10_000, 10**8, 1.0  # passes, steps of the optimiser and its rate, at most
FINETUNED = "finetuned"  # kind of result


def finetune(
    model: nn.Module,
    processor: Foreign,
    train: Images,
    held_out: Images,
    out: Path,
    training: Training | None = None,
    *,
    seed: int = 0,
    teacher: nn.Module | None = None,
    overwrite: bool = False,
) -> Figures:
    """Train a classifier with a new head and save it, pruned as it was; returns its figures.

    Args:
        seed: of the order of the images and of the new head.
        teacher: a network of the same classes whose outputs are followed beside the labels.
        overwrite: replace an earlier result of fine-tuning in `out`.

    Raises:
        InputError: labels or options that cannot be used, a network without a classifier of images, or a teacher of
            other classes.
        NumericalError: the training diverged; nothing is written.
        DependencyError: accelerate is not installed.
    """
    options = training or Training()
    _check_options(options, len(train))
    classes = _check_data(train, held_out)
    torch.manual_seed(seed)
    replace_head(model, classes, train.classes)
    if teacher is not None and getattr(teacher.config, "num_labels", None) != classes:
        raise InputError(f"the teacher must know the {classes} classes of the data: fine-tune it first.")
    spec = task_spec("image-classification")
    check_evaluation(model, spec, held_out, processor)
    model.requires_grad_(not options.head_only)
    model.get_submodule("classifier").requires_grad_(True)
    done = _train(model, processor, train, options, seed, teacher)
    _check_converged(model, done.training_loss)
    model.requires_grad_(True).eval()
    accuracy = evaluate(model, processor, spec, held_out, batch_size=options.batch_size)["accuracy"]
    section = getattr(model.config, SECTION, None)
    figures = {
        "accuracy": accuracy,
        "classes": classes,
        "images": len(train),
        "seconds": done.metrics["train_runtime"],
        "saved": str(out),
    }
    if train.origin is not None and train.origin == held_out.origin:
        figures["seen"] = "the accuracy is of the images that it was trained on"
    if section is None:
        with new_folder(out, FINETUNED, overwrite) as work, silenced():
            model.save_pretrained(work)  # type: ignore[operator]
            processor.save_pretrained(work)
    else:
        plan = Plan.from_dict(section)
        result = Result(model, plan, {**plan_figures(plan), "seconds": {}, "finetuned": figures})
        save(result, out, processor, overwrite=overwrite, kind=FINETUNED)
    return figures


def _train(
    model: nn.Module, processor: object, train: Images, options: Training, seed: int, teacher: nn.Module | None
) -> Foreign:
    """Train in place, by the library's Trainer; returns what it says of it."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    class Distilling(Trainer):
        """The loss of the labels, and half of it replaced by the teacher's where there is one."""

        def compute_loss(
            self, model: Foreign, inputs: Foreign, return_outputs: bool = False, num_items_in_batch: object = None
        ) -> Foreign:
            output = call(model, inputs)
            loss = F.cross_entropy(output.logits, inputs["labels"])
            if teacher is not None:
                with torch.no_grad():
                    aim = teacher(pixel_values=inputs["pixel_values"].to(device_of(teacher))).logits
                loss = (loss + follow(output.logits, aim.to(output.logits.device), options.temperature)) / 2
            return (loss, output) if return_outputs else loss

    with silenced(), tempfile.TemporaryDirectory() as scratch:  # the Trainer wants a folder, and writes nothing there
        try:
            arguments = TrainingArguments(
                output_dir=scratch,
                num_train_epochs=options.epochs,
                per_device_train_batch_size=min(options.batch_size, len(train)),
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
            raise DependencyError(
                "fine-tuning needs the package 'accelerate': pip install 'optin[finetune]'"
            ) from None
        trainer = Distilling(
            model=model,
            args=arguments,
            train_dataset=Prepared(train, processor),
            data_collator=collate,
        )
        trainer.remove_callback(PrinterCallback)
        return trainer.train()


def _check_options(options: Training, images: int) -> None:
    """Refuse what no training survives, or no one waits for."""
    steps = options.epochs * max(1, images / options.batch_size)
    if not options.epochs <= EPOCHS or steps > STEPS:
        raise InputError(f"training for {options.epochs:g} epochs has no end: ask for fewer than {EPOCHS:,}.")
    if not options.learning_rate <= RATE:
        raise InputError(f"the learning rate {options.learning_rate:g} cannot converge: ask for {RATE:g} at most.")


def _check_data(train: Images, held_out: Images) -> int:
    """How many classes there are; in both parts the same ones, with images that can be read."""
    if train.labels is None or held_out.labels is None:
        raise InputError("fine-tuning needs labels: put each class into a folder of its own.")
    for images in (train, held_out):
        check_labels(images.labels or (), images.classes)
        if not any(_readable(images, index) for index in range(len(images))):
            raise InputError(f"none of the {len(images)} images can be read: {images.problem()}")
    if strange := [name for name in held_out.classes if train.classes and name not in train.classes]:
        raise InputError(
            f"the class {strange[0]!r:.60} is evaluated and not among those to train on: rename or add it."
        )
    classes = max(*train.labels, *held_out.labels) + 1
    if classes < 2:
        raise InputError("the data has one class, and a classifier needs two.")
    return classes


def _readable(images: Images, index: int) -> bool:
    try:
        images.read(index)
    except Unreadable:
        return False
    return True


def _check_converged(model: nn.Module, loss: float) -> None:
    tensors = (*model.parameters(), *model.buffers())
    whole = all(bool(torch.isfinite(value).all()) for value in tensors if value.is_floating_point())
    if not (math.isfinite(loss) and whole):
        raise NumericalError(
            f"the training diverged (loss {loss:g}), and nothing was written: ask for a smaller --learning-rate."
        )


def replace_head(model: nn.Module, classes: int, names: tuple[str, ...] = ()) -> None:
    """Give a classifier of images a new last layer.

    Raises:
        InputError: it has none that is known.
    """
    network: Foreign = model
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


class Prepared(torch.utils.data.Dataset[dict[str, object]]):
    """Images as a processor makes them; one that cannot be read gives way to the next."""

    def __init__(self, images: Images, processor: Foreign) -> None:
        self.images, self.processor = images, processor

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, object]:
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


def collate(rows: list[Figures]) -> dict[str, Tensor]:
    """One batch."""
    return {
        "pixel_values": torch.stack([row["pixel_values"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
    }
