"""Translators and networks that hear: what they write, how it is measured, and that they are pruned."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
import transformers
from scipy.io import wavfile

import optin
from optin.errors import DependencyError, InputError
from optin.space.options import Calibration, Task
from optin.tasks import Examples, load_model, task_spec, writing
from optin.tasks.audio import Recordings, load_recordings, read_sound
from optin.tasks.metrics import chrf, word_errors
from optin.tasks.writing import answer_ids, answers, drawn_batches, inputs_of
from tests.networks import WORDS, tokenizer
from tests.test_cli import run
from tests.test_generate import IDS, NETWORKS, TOWERS

__all__ = ["run"]  # a fixture
FEW = ("--examples", 12, "--batch-size", 4)
RATE = 16000  # samples a second


def translator():
    torch.manual_seed(0)
    options = {**NETWORKS["T5ForConditionalGeneration"], "vocab_size": 40, "eos_token_id": 3}
    model = transformers.T5ForConditionalGeneration(transformers.T5Config(**options)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(scope="module")
def dictionary(tmp_path_factory):
    """A translator, and texts with what they are to become: their words the other way round."""
    folder = tmp_path_factory.mktemp("writing")
    translator().save_pretrained(folder / "dense")
    tokenizer().save_pretrained(folder / "dense")
    for part, count in (("train", 40), ("validation", 32)):
        rows = [[WORDS[(7 * row + 3 * place) % len(WORDS)] for place in range(3 + row % 4)] for row in range(count)]
        lines = [json.dumps({"text": " ".join(row), "translation": " ".join(reversed(row))}) for row in rows]
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def heard():
    """Recordings of a second at most, and what prepares them."""
    extractor = transformers.WhisperFeatureExtractor(
        feature_size=8, sampling_rate=RATE, hop_length=160, chunk_length=1
    )
    return transformers.WhisperProcessor(extractor, tokenizer())


def listener():
    torch.manual_seed(0)
    options = {**NETWORKS["WhisperForConditionalGeneration"], "vocab_size": 40, "max_source_positions": 50}
    options |= {"decoder_start_token_id": 2, "eos_token_id": 3, "pad_token_id": 0, "bos_token_id": 2}
    model = transformers.WhisperForConditionalGeneration(transformers.WhisperConfig(**options)).eval()
    for parameter in model.parameters():
        parameter.data.mul_(3 if parameter.dim() > 1 else 1)
    return model


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    """A network that hears, and tones of different lengths and rates."""
    folder = tmp_path_factory.mktemp("prompts")
    listener().save_pretrained(folder / "dense")
    heard().save_pretrained(folder / "dense")
    for part, count in (("train", 14), ("validation", 6)):
        place = folder / "data" / part
        place.mkdir(parents=True)
        lines = []
        for number in range(count):
            rate = RATE * (1 + number % 2)
            times = np.arange(int(rate * (0.4 + 0.35 * (number % 3)))) / rate
            tone = np.sin(2 * np.pi * (40 + 17 * number) * times)
            wavfile.write(place / f"{number}.wav", rate, (20000 * tone).astype(np.int16))
            lines.append(f"{number}: {WORDS[number % len(WORDS)]} {WORDS[(number + 3) % len(WORDS)]}")
        (place / "transcripts.txt").write_text("\n".join(lines) + "\n")
    return folder


def test_a_translator_is_pruned(run, dictionary, tmp_path):
    data = ("--data", dictionary, "--label", "translation", *FEW)
    code, out, error = run(
        "prune", dictionary / "dense", "--budget", "70%", *data, "--out", tmp_path / "small", "--json"
    )
    assert code == 0, error
    assert "--task seq2seq" in error
    quality = json.loads(out)["quality"]
    assert quality["pruned"].keys() == {"chrf", "exact", "perplexity", "kl"} and quality["examples"] == 32
    low, high = quality["interval"]["chrf"]
    assert low - 1e-6 <= quality["pruned"]["chrf"] - quality["dense"]["chrf"] <= high + 1e-6
    code, out, _ = run("evaluate", tmp_path / "small", *data[:-4], "--reference", dictionary / "dense", "--json")
    found = json.loads(out)
    assert code == 0 and found["kl"] == pytest.approx(quality["pruned"]["kl"], rel=1e-4)
    assert json.loads((tmp_path / "small" / "report.json").read_text())["generation"][0]["pruned"]["decode"] > 0


def test_what_is_measured_of_a_translator(dictionary):
    model, prepared = translator(), tokenizer()
    examples = Examples(["film plot good", "the plot"], None, ["good plot", "film"])
    found = answers([model], prepared, task_spec("seq2seq"), examples).figures()
    batch = prepared(examples.texts, padding=True, return_tensors="pt")
    labels = answer_ids(model, prepared, examples.labels)
    with torch.inference_mode():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        loss = float(model(**inputs, labels=labels).loss)
        ids = model.generate(**inputs, max_new_tokens=128, do_sample=False)
    assert found["perplexity"] == pytest.approx(math.exp(loss), rel=1e-4)
    said = prepared.batch_decode(ids, skip_special_tokens=True)
    scores = [chrf(one, other)[0] for one, other in zip(said, examples.labels, strict=True)]
    assert found["chrf"] == pytest.approx(sum(scores) / 2) and found["exact"] == 0
    assert chrf("good plot", "good plot")[0] == pytest.approx(1) and chrf("x", "good")[0] == 0
    assert word_errors("the film plot", "the good plot is") == (2, 4)
    assert word_errors("the film", "") == (2, 0) and word_errors("", "film") == (1, 1)


def test_calibration_reads_what_the_network_says_itself(dictionary):
    model, prepared = translator(), tokenizer()
    rows = [json.loads(line)["text"] for line in (dictionary / "train.jsonl").read_text().splitlines()]
    batches, chosen = drawn_batches(model, Examples(rows), prepared, Calibration(examples=8, batch_size=4), 0)
    assert len(chosen) == 8 and all(batch.keys() >= {"input_ids", "decoder_input_ids"} for batch in batches)
    batch = batches[0]
    with torch.inference_mode():
        logits = model(**batch).logits
    ids, said = batch["decoder_input_ids"], logits.argmax(-1)
    for row in range(len(ids)):  # every token follows from those before it, up to the first that decoding drops
        answer = prepared.decode(ids[row], skip_special_tokens=True).split()
        assert (
            prepared.decode(said[row], skip_special_tokens=True).split()[: len(answer) - 1] == answer[:-1]
            or answer == []
        )


def test_a_network_that_hears_is_pruned(run, prompts, tmp_path):
    data = ("--data", prompts / "data", *FEW)
    code, out, error = run(
        "prune", prompts / "dense", "--budget", "75%", *data, "--out", tmp_path / "small", "--json"
    )
    assert code == 0, error
    assert "--task speech-recognition" in error
    quality = json.loads(out)["quality"]
    assert quality["pruned"].keys() == {"wer", "perplexity", "kl"} and quality["pruned"]["wer"] >= 0
    code, out, _ = run("evaluate", tmp_path / "small", *data[:-4], "--json")
    assert code == 0 and json.loads(out)["wer"] == pytest.approx(quality["pruned"]["wer"])
    assert "automatic-speech-recognition" in (tmp_path / "small" / "README.md").read_text()


def test_long_recordings_are_cut_and_their_texts_joined(prompts, monkeypatch):
    model, prepared = listener(), heard()
    files = [prompts / "data" / "train" / f"{number}.wav" for number in (0, 2, 5)]
    recordings = Recordings(files, ["film plot", "good", "bad"])
    inputs, places = inputs_of(model, prepared, recordings, range(3), whole=True)
    lengths = [len(read_sound(file, RATE)) for file in files]
    assert places == [place for place, length in enumerate(lengths) for _ in range(-(-length // RATE))]
    assert inputs["input_features"].shape == (len(places), 8, 100) and len(places) > 3
    first, _ = inputs_of(model, prepared, recordings, range(3))
    assert torch.equal(first["input_features"][0], inputs["input_features"][0])
    monkeypatch.setattr(
        writing, "_said", lambda model, inputs, _: ["word"] * len(inputs["encoder_outputs"].last_hidden_state)
    )
    found = answers([model], prepared, task_spec("speech-recognition"), recordings, batch_size=2)
    pieces = [places.count(place) for place in range(3)]
    assert found.parts["wer"][0][0].tolist() == [max(2, pieces[0]), *pieces[1:]]  # all words are wrong
    assert pieces == [1, 2, 2] and (found.tokens > 0).tolist() == [True, False, False]  # of pieces no text is known


def test_letters_without_a_decoder(run, prompts, tmp_path):
    torch.manual_seed(0)
    config = transformers.Wav2Vec2Config(
        vocab_size=40, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48,
        conv_dim=(16, 16), conv_stride=(4, 4), conv_kernel=(8, 4), num_conv_pos_embeddings=8,
        num_conv_pos_embedding_groups=2, feat_extract_norm="layer", do_stable_layer_norm=True,
    )  # fmt: skip
    transformers.Wav2Vec2ForCTC(config).eval().save_pretrained(tmp_path / "dense")
    letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, **{chr(97 + n): 5 + n for n in range(26)}}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    own = transformers.Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json"))
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=RATE, return_attention_mask=True)
    transformers.Wav2Vec2Processor(extractor, own).save_pretrained(tmp_path / "dense")
    code, out, error = run(
        "prune", tmp_path / "dense", "--budget", "80%", "--data", prompts / "data", *FEW, "--out", tmp_path / "small",
        "--json",
    )  # fmt: skip
    assert code == 0, error
    assert json.loads(out)["quality"]["pruned"].keys() == {"wer", "kl"}


def test_sounds_are_classified(run, tmp_path):
    for part, count in (("train", 8), ("validation", 6)):
        for label, pitch in (("high", 200), ("low", 30)):
            place = tmp_path / "tones" / part / label
            place.mkdir(parents=True)
            for number in range(count):
                times = np.arange(RATE) / RATE
                wavfile.write(
                    place / f"{number}.wav", RATE, np.sin(2 * np.pi * (pitch + number) * times).astype("float32")
                )
    torch.manual_seed(0)
    config = transformers.WhisperConfig(
        **{**IDS, **TOWERS, "num_mel_bins": 8, "max_source_positions": 50}, id2label={0: "high", 1: "low"},
        label2id={"high": 0, "low": 1},
    )  # fmt: skip
    transformers.WhisperForAudioClassification(config).eval().save_pretrained(tmp_path / "dense")
    heard().feature_extractor.save_pretrained(tmp_path / "dense")
    code, out, error = run(
        "prune", tmp_path / "dense", "--budget", "70%", "--data", tmp_path / "tones", *FEW, "--out",
        tmp_path / "small", "--json",
    )  # fmt: skip
    assert code == 0, error
    assert "--task audio-classification" in error
    quality = json.loads(out)["quality"]
    assert quality["examples"] == 12 and 0 <= quality["pruned"]["accuracy"] <= 1


@pytest.mark.parametrize("kind", ["uint8", "int16", "int32", "float32"])
def test_samples_of_every_kind(kind, tmp_path):
    tone = np.sin(np.arange(400) / 7) / 2
    scale = {"uint8": 127, "int16": 2**15 - 1, "int32": 2**31 - 1, "float32": 1}[kind]
    stereo = np.stack([tone, tone], 1) * scale + (128 if kind == "uint8" else 0)
    wavfile.write(tmp_path / "tone.wav", 1600, stereo.astype(kind))
    found = read_sound(tmp_path / "tone.wav", 1600)
    assert found.shape == (400,) and found.dtype == np.float32
    np.testing.assert_allclose(found, tone, atol=0.02)
    assert len(read_sound(tmp_path / "tone.wav", 800)) == 200


def folder_of(tmp_path, **files):
    for name, content in files.items():
        file = tmp_path / name.replace("_", ".")
        if content is None:
            wavfile.write(file, RATE, np.ones(9, np.float32))
        else:
            file.write_text(content)
    return Task("speech-recognition", str(tmp_path))


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "holds no recordings"),
        ({"a_wav": None}, "does not say what is said"),
        ({"a_wav": None, "transcripts_txt": "a one"}, "name: text"),
        ({"a_wav": None, "transcripts_txt": "a: one\na: two"}, "'a' twice"),
        ({"a_wav": None, "transcripts_txt": "a: one\nb: two"}, "does not hold"),
        ({"a_wav": None, "transcripts_txt": "a: "}, "is empty"),
        ({"a_wav": None, "metadata_csv": "file,words\na.wav,one\n"}, "needs a column"),
    ],
)
def test_folders_that_do_not_say_enough(files, message, tmp_path):
    options = folder_of(tmp_path, **files)
    with pytest.raises(InputError, match=message):
        load_recordings(task_spec(options.name), options, "evaluation", labelled=True)


def test_lists_in_tables_and_recordings_that_nothing_is_known_of(tmp_path):
    files = {"a_wav": None, "b_wav": None, "metadata_csv": "file_name,transcription\nb.wav,two\n"}
    options = folder_of(tmp_path, **files)
    with pytest.warns(UserWarning, match="1 of 2 recordings"):
        found = load_recordings(task_spec(options.name), options, "evaluation", labelled=True)
    assert [file.name for file in found.files] == ["b.wav"] and found.texts == ["two"]


def test_files_that_cannot_be_read(tmp_path, monkeypatch):
    for name, data in (("empty.wav", b""), ("text.wav", b"no sound at all, but words"), ("cut.wav", b"RIFF\x00")):
        (tmp_path / name).write_bytes(data)
        with pytest.raises(InputError, match="cannot read|no sound"):
            read_sound(tmp_path / name, RATE)
    wavfile.write(tmp_path / "nan.wav", RATE, np.full(9, np.nan, np.float32))
    with pytest.raises(InputError, match="NaN"):
        read_sound(tmp_path / "nan.wav", RATE)
    monkeypatch.setitem(__import__("sys").modules, "soundfile", None)
    with pytest.raises(DependencyError, match=r"optin\[speech\]"):
        read_sound(tmp_path / "x.flac", RATE)


def test_answers_that_are_none(dictionary):
    model, prepared, spec = translator(), tokenizer(), task_spec("seq2seq")
    for labels, message in ((None, "--label"), ([3, 4], "must be texts"), ([" ", "..."], "holds a word")):
        with pytest.raises(InputError, match=message):
            answers([model], prepared, spec, Examples(["film", "plot"], None, labels))


def test_what_is_saved_is_loaded(run, prompts, tmp_path):
    code, *_ = run(
        "prune", prompts / "dense", "--budget", "75%", "--data", prompts / "data", *FEW, "--out", tmp_path / "small",
        "--no-evaluate", "--quiet",
    )  # fmt: skip
    assert code == 0
    small = load_model(str(tmp_path / "small"))
    assert isinstance(small, transformers.WhisperForConditionalGeneration)
    assert optin.Plan.load(tmp_path / "small" / "plan.json").shares["macs"] <= 0.75
