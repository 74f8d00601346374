"""Folders that claim what their weights have no place for, and networks in other forms than optin reads."""

from __future__ import annotations

import json
import shutil
import time

import pytest
import torch
from torch import nn

import optin
from optin.app.placement import Placement
from optin.errors import CheckpointError, InputError, OptinError
from optin.storage.libraries import create
from optin.storage.timm_models import describe_creation
from optin.storage.untrusted import check_source
from tests.contract.test_architectures import random_plan
from tests.networks import ATTENTION, build, tokens

MAGNITUDE = optin.Recipe().override(criterion="magnitude", refit__enabled=False)
HUGE = {
    "num_labels": 10**7,
    "num_labels of a billion": 10**9,
    "vocab_size": 10**9,
    "hidden_size": 10**9,
    "image_size": 10**9,
    "num_hidden_layers": 10**6,
    "num_hidden_layers of a word": "12",
    "intermediate_size": 10**8,
    "max_position_embeddings": 10**9,
    "depths": [10**6, 10**6],
    "groups": 10**7,
    "num_groups": 10**7,
    "type_vocab_size": 10**8,
}


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """A pruned BERT, a pruned ResNet of optin's own, and a dense BERT."""
    folder = tmp_path_factory.mktemp("manifest")
    torch.manual_seed(0)
    model, channels = build("bert"), create("optin:resnet20")
    optin.apply(model, random_plan(model)).save(folder / "bert")
    optin.apply(channels, random_plan(channels)).save(folder / "channels")
    model.save_pretrained(folder / "dense")
    return folder


@pytest.fixture
def folder(kept, tmp_path):
    shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    return tmp_path


def change(folder, section=False, **entries):
    file = folder / "config.json"
    config = json.loads(file.read_text())
    (config["optin"] if section else config).update(entries)
    file.write_text(json.dumps(config))


def refused_soon(run):
    start = time.process_time()
    with pytest.raises(OptinError) as refused:
        run()
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 1000
    assert time.process_time() - start < 5  # not the minutes or gigabytes that were asked for


@pytest.mark.parametrize("name", HUGE)
def test_sizes_of_a_pruned_network(name, folder):
    change(folder / "bert", **{name.split()[0]: HUGE[name]})
    refused_soon(lambda: optin.load(folder / "bert"))


@pytest.mark.parametrize("name", ["num_labels", "groups", "num_hidden_layers", "depths", "vocab_size"])
def test_sizes_of_a_dense_network(name, folder):
    change(folder / "dense", **{name: HUGE[name]})
    refused_soon(lambda: Placement().load(str(folder / "dense")))


@pytest.mark.parametrize(
    "arguments",
    [
        {"classes": 10**7},
        {"classes": 10**9},
        {"classes": -1},
        {"classes": "x"},
        {"channels": 10**7},
        {"depth": 10**7},
        {"unknown": 1},
        {"classes": 2.5},
        {"classes": [10**7]},
    ],
)
def test_arguments_of_other_networks(arguments, folder):
    change(folder / "channels", model_args=arguments)
    refused_soon(lambda: optin.load(folder / "channels"))


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("vit_tiny_patch16_224", {"depth": 10**7}),
        ("vit_tiny_patch16_224", {"depth": 900, "embed_dim": 96, "num_heads": 3}),
        ("vit_tiny_patch16_224", {"embed_dim": 3 * 10**6}),
        ("vit_tiny_patch16_224", {"img_size": 10**7}),
        ("vit_tiny_patch16_224", {"num_classes": 10**7}),
        ("swin_tiny_patch4_window7_224", {"depths": [10**7, 1, 1, 1]}),
        ("resnet18", {"channels": [10**7] * 4}),
        ("resnet18", {"layers": [900] * 4}),
        ("../../x", {}),
        ("vit_tiny_patch16_224", {"checkpoint_path": "/etc/passwd"}),
    ],
)
def test_arguments_of_timm(name, arguments, folder):
    file = folder / "channels" / "config.json"
    config = json.loads(file.read_text())
    config |= {"library": "timm", "architecture": name, "model_args": arguments}
    file.write_text(json.dumps(config))
    refused_soon(lambda: optin.load(folder / "channels"))


@pytest.mark.parametrize(
    "groups",
    [
        {ATTENTION[0]: {"size": 10**9, "keep": "0-999999998"}},
        {ATTENTION[0]: {"size": 4, "keep": "0-999999998"}},
        {f"g{index}": {"size": 10**7, "keep": "0"} for index in range(100)},
        {f"g{index}": {"size": 1, "keep": "0"} for index in range(100_000)},
        [],
        {ATTENTION[0]: None},
        {ATTENTION[0]: {"size": "4", "keep": "0"}},
        {ATTENTION[0]: {"size": 4, "keep": [0]}},
        {ATTENTION[0]: {"size": True, "keep": "0"}},
        {ATTENTION[0]: {"size": -1, "keep": ""}},
    ],
)
def test_groups_of_a_plan(groups, folder):
    change(folder / "bert", section=True, groups=groups)
    refused_soon(lambda: optin.load(folder / "bert"))


@pytest.mark.parametrize("section", [None, [], "x", 3, {}, {"format": 1}])
def test_sections_of_other_types(section, folder):
    change(folder / "bert", optin=section)
    refused_soon(lambda: optin.load(folder / "bert"))


@pytest.mark.parametrize("text", ["[]", "3", '"x"', "null", "{", '{"a": 1, "a": 2}', '{"a": NaN}', "[" * 99_999])
@pytest.mark.parametrize("name", ["bert", "dense"])
def test_configurations_of_other_types(name, text, folder):
    (folder / name / "config.json").write_text(text)
    refused_soon(lambda: Placement().load(str(folder / name)))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model.bin", "save_pretrained"),
        ("model.onnx", "ONNX"),
        ("network.pt", "pickled"),
        ("network.pth", "pickled"),
        ("last.ckpt", "pickled"),
        ("tf_model.h5", "another framework"),
        ("notes.txt", "config.json"),
    ],
)
def test_networks_in_other_forms(name, words, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_bytes(b"x")
    for source in (tmp_path, tmp_path / name):
        with pytest.raises(InputError, match=words):
            check_source(str(source))


def test_a_file_of_llama_cpp_in_a_folder_and_one_that_is_none(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.gguf").write_bytes(b"x")
    with pytest.raises(InputError, match="pass the file itself"):
        check_source(str(tmp_path))
    for content in (b"", b"x", b"GGUF", b"GGUF" + bytes(100), b"GGUF\x03" + b"\xff" * 100):
        (tmp_path / "model.gguf").write_bytes(content)
        with pytest.raises(InputError, match="cannot load"):
            Placement().load(str(tmp_path / "model.gguf"))


def test_adapters_and_quantised_networks(folder):
    (folder / "dense" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="merge it"):
        check_source(str(folder / "dense"))
    (folder / "dense" / "adapter_config.json").unlink()
    change(folder / "dense", quantization_config={"quant_method": "gptq", "bits": 4})
    with pytest.raises(CheckpointError, match="floating point"):
        check_source(str(folder / "dense"))


@pytest.mark.parametrize("rule", ["weight_norm", "spectral_norm", "old weight_norm", "old spectral_norm", "mask"])
@pytest.mark.filterwarnings("ignore")
def test_weights_that_are_computed_from_others(rule, bert, tmp_path):
    result = optin.apply(bert, random_plan(bert))
    layer = result.model.bert.encoder.layer[0].intermediate.dense
    if rule == "mask":
        torch.nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    elif rule.startswith("old"):
        getattr(nn.utils, rule.split()[1])(layer)
    else:
        getattr(nn.utils.parametrizations, rule)(layer)
    with pytest.raises(InputError, match=r"layer\.0\.intermediate\.dense.*remove"):
        result.save(tmp_path / "small")
    assert not (tmp_path / "small").exists()


class Mine(nn.Module):
    """Shares one linear map under two names."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 4)
        self.again = self.head

    def forward(self, x):
        return self.again(self.second(self.first(x).relu()).relu().mean((2, 3))) + 0


def test_what_several_names_share_is_saved_and_loaded(tmp_path):
    network, batch = Mine().eval(), {"x": torch.randn(4, 3, 32, 32)}
    small = optin.apply(network, random_plan(network))
    small.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Mine().eval())
    with torch.no_grad():
        assert torch.equal(loaded(**batch), small.model(**batch))
    assert loaded.again is loaded.head


def test_a_class_of_ones_own_is_loaded_into_the_dense_one(tmp_path):
    import transformers

    class Own(transformers.BertPreTrainedModel):
        def __init__(self, config):
            super().__init__(config)
            self.bert, self.head = transformers.BertModel(config), nn.Linear(24, 3)
            self.post_init()

        def forward(self, input_ids, attention_mask=None):
            hidden = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
            return transformers.modeling_outputs.SequenceClassifierOutput(logits=self.head(hidden[:, 0]))

    config = build("bert").config
    network = Own(config).eval()
    small = optin.apply(network, random_plan(network))
    small.save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="into=network"):
        optin.load(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Own(config)).eval()
    with torch.no_grad():
        assert torch.equal(loaded(**tokens(network)).logits, small.model(**tokens(network)).logits)


def test_a_changed_network_of_transformers_is_loaded_into_the_dense_one(bert, tmp_path):
    bert.classifier = nn.Linear(24, 7)  # which no configuration says
    small = optin.apply(bert, random_plan(bert))
    small.save(tmp_path / "small")
    dense = build("bert")
    dense.classifier = nn.Linear(24, 7)
    with pytest.raises(CheckpointError, match="into=network"):
        optin.load(tmp_path / "small")
    with torch.no_grad():
        got = optin.load(tmp_path / "small", into=dense)(**tokens(bert)).logits
        assert torch.equal(got, small.model(**tokens(bert)).logits)


@pytest.mark.parametrize(
    ("name", "arguments", "known"),
    [
        ("regnety_002", {"num_classes": 4}, True),
        ("vit_tiny_patch16_224", {"num_classes": 4, "depth": 2, "img_size": 32}, False),
        ("resnet18", {"num_classes": 4, "act_layer": nn.SiLU}, False),
    ],
)
def test_networks_of_timm_come_back_or_say_how(name, arguments, known, tmp_path):
    """Made by timm itself, so that optin does not know with which arguments."""
    import timm

    model = timm.create_model(name, **arguments).eval()
    batch = torch.randn(2, 3, 32, 32) if "vit" in name else torch.randn(2, 3, 64, 64)
    small = optin.prune(model, [{"x": batch}], "90%", recipe=MAGNITUDE)
    small.save(tmp_path / "small")
    into = {}
    if not known:
        with pytest.raises(CheckpointError, match="into=network"):
            optin.load(tmp_path / "small")
        into = {"into": timm.create_model(name, **arguments).eval()}
    with torch.no_grad():
        assert torch.equal(optin.load(tmp_path / "small", **into)(batch), small.model(batch))


@pytest.mark.parametrize(("name", "pooling"), [("mobilenetv3_small_050", "max"), ("resnet18", "catavgmax")])
def test_the_pooling_of_timm_is_said(name, pooling):
    import timm

    assert describe_creation(timm.create_model(name, global_pool=pooling))["global_pool"] == pooling
