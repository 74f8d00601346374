"""Every kind of network that people bring, tiny and with random weights: what is found in it, and the whole job.

    python benchmarks/networks.py                  all networks of tests/zoo.py
    python benchmarks/networks.py bert llama       some of them
    python benchmarks/networks.py --large          networks of true sizes, described; Llama 8B on the meta device

Each is described, pruned to 60 % of its MACs by the defaults, saved, and loaded again. Prints the table, and stores
it in docs/results/networks.md, the figures in docs/results/networks.json.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch
from measuring import Stored
from rich.console import Console
from rich.progress import track as progress
from text_tables import table

import optin
from optin.describing import describe
from optin.running.modules import inference_mode_of
from optin.running.tensors import tensors_of

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.zoo import NETWORKS, built

BATCHES = 4
LARGE = "a Llama of 8 billion weights"
KINDS = ("head", "neuron", "channel")


@torch.no_grad()
def said(model: Any, batch: dict[str, Any]) -> list[torch.Tensor]:
    """All numbers that a network returns."""
    with inference_mode_of(model), torch.random.fork_rng():
        torch.manual_seed(0)
        return [value for value in tensors_of(model(**batch)) if value.is_floating_point()]


def job(name: str) -> dict[str, Any]:
    """The figures of one network: kinds of units, seconds, what is left, whether it comes back."""
    model, kind = built(name), NETWORKS[name]
    batches = [kind.inputs() for _ in range(BATCHES)]
    start = time.perf_counter()
    try:
        space = optin.describe(model, batches[0])
    except optin.OptinError as error:
        return {"attends": kind.attends, "refused": str(error)}
    found: dict[str, Any] = {
        "attends": kind.attends,
        "describing": time.perf_counter() - start,
        "units": {unit: sum(group.size for group in space if group.kind == unit) for unit in KINDS},
    }
    start = time.perf_counter()
    try:
        result = optin.prune(model, batches, "60%")
    except optin.OptinError as error:
        return found | {"refused": str(error)}
    found["job"] = time.perf_counter() - start
    groups, macs = result.report["groups"], result.report["macs"]
    found["left"] = macs["pruned"] / macs["dense"]
    found["cut"] = {
        unit: sum(groups[group.name]["of"] - groups[group.name]["kept"] for group in space if group.kind == unit)
        for unit in KINDS
    }
    with tempfile.TemporaryDirectory() as folder:
        result.save(folder, overwrite=True)
        loaded = optin.load(folder, into=built(name) if kind.own else None).eval()
        pairs = zip(said(result.model, batches[0]), said(loaded, batches[0]), strict=True)
        found["comes back"] = all(torch.equal(one.nan_to_num(), other.nan_to_num()) for one, other in pairs)
    return found


def large() -> dict[str, Any]:
    """Seconds of describing a Llama of 8 billion weights that has no values, and the peak memory of this process."""
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "vocab_size": 128256}
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(num_attention_heads=32, num_key_value_heads=8, **sizes)).eval()
    start = time.perf_counter()
    space = describe(model, {"input_ids": torch.randint(5, 1000, (2, 8))})
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    weights = sum(value.numel() for value in model.parameters())
    return {"weights": weights, "groups": len(space), "describing": seconds, "peak bytes": peak, "others": _others()}


def _others() -> dict[str, float]:
    """Seconds of describing networks of true sizes with random weights."""
    import timm
    from transformers import BertConfig, BertForSequenceClassification

    networks = {
        "BERT-base, 2 x 128 tokens": (
            BertForSequenceClassification(BertConfig()).eval(),
            {"input_ids": torch.randint(5, 1000, (2, 128))},
        ),
        "EfficientNet-B0, 224 pixels": (
            timm.create_model("efficientnet_b0").eval(),
            {"x": torch.randn(2, 3, 224, 224)},
        ),
    }
    seconds = {}
    for name, (model, inputs) in networks.items():
        start = time.perf_counter()
        describe(model, inputs)
        seconds[name] = time.perf_counter() - start
    return seconds


def render(found: dict[str, Any]) -> str:
    """The table, and what it adds up to."""
    rows = []
    for name, entry in found.items():
        units, cut = entry.get("units", {}), entry.get("cut", {})
        counts = [f"{cut.get(unit, 0)} of {units[unit]}" if units.get(unit) else "" for unit in KINDS]
        refused = entry.get("refused", "")
        end = "yes" if entry.get("comes back") else refused[:160].replace("|", "/")
        left = f"{100 * entry['left']:.1f} %" if "left" in entry else ""
        times = [f"{entry[key]:.1f}" if key in entry else "" for key in ("describing", "job")]
        rows.append([name, *counts, left, *times, end])
    attending = [entry for entry in found.values() if entry["attends"]]
    pruned = [entry for entry in found.values() if entry.get("comes back")]
    seen = sum(bool(entry.get("units", {}).get("head")) for entry in attending)
    cut_heads = sum(bool(entry.get("cut", {}).get("head")) for entry in attending)
    text = (
        f"Of {len(found)} tiny networks with random weights {len(pruned)} are pruned to 60 % of their MACs by the "
        f"defaults, saved and loaded again, equal to the bit. Of {len(attending)} with attention {seen} have heads "
        f"that may go (with all groups cut shrunk equals gated: tests/contract/test_networks.py), and in {cut_heads} "
        "some went at 60 %, which is what the search chose. The others are refused with the reason. Counts are units "
        "cut of those found; seconds are of describing and of the whole job, on two cores."
    )
    head = ["network", "heads", "neurons", "channels", "MACs left", "describing, s", "job, s", "comes back"]
    return "\n".join([text, "", *table(head, rows)]) + "\n"


def render_large(found: dict[str, Any]) -> str:
    """One sentence, and one for others."""
    others = "; ".join(f"{name}: {seconds:.1f} s" for name, seconds in found.get("others", {}).items())
    return (
        f"A Llama of {found['weights'] / 1e9:.2f} billion weights on the meta device: {found['groups']} groups in "
        f"{found['describing']:.0f} s, {found['peak bytes'] / 2**30:.1f} GiB at the peak of the process.\n"
        f"Describing others of true sizes: {others}.\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", help="names of tests/zoo.py")
    parser.add_argument("--large", action="store_true", help="describe a large network instead")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    found = Stored("networks")
    if arguments.large:
        found[LARGE] = large()
    chosen = arguments.networks or ([] if arguments.large else list(NETWORKS))
    for name in progress(chosen, description="networks", console=Console(stderr=True)):
        found[name] = job(name)
    text = render({name: found[name] for name in NETWORKS if name in found})
    found.show(text + (f"\n{render_large(found[LARGE])}" if LARGE in found else ""))


if __name__ == "__main__":
    main()
