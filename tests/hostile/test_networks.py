"""Networks that cannot be pruned as they are: each is refused by name, before any work, or done right."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune

import optin
from optin.describing.refusals import check_network
from optin.errors import ArchitectureError, CheckpointError, InputError
from optin.recipe import Recipe
from tests.networks import build, inputs, shaken, tokens

RECIPE = Recipe().override(trajectory__draws=8)


def first_layer(model: nn.Module) -> nn.Linear:
    return model.bert.encoder.layer[0].intermediate.dense


def with_adapter(model):
    class Lora(nn.Linear):
        pass

    Lora.__module__ = "peft.tuners.lora.layer"
    model.bert.encoder.layer[0].intermediate.dense = Lora(24, 20)
    return model


def of_package(module: str):
    def make(model):
        kind = type("Layer", (nn.Linear,), {"__module__": module})
        model.bert.encoder.layer[0].intermediate.dense = kind(24, 20)
        return model

    return make


def with_weight_norm(model):
    parametrizations.weight_norm(first_layer(model))
    return model


def with_spectral_norm(model):
    parametrizations.spectral_norm(first_layer(model))
    return model


def with_old_spectral_norm(model):
    nn.utils.spectral_norm(first_layer(model))
    return model


def with_orthogonal_weights(model):
    parametrizations.orthogonal(model.bert.pooler.dense)
    return model


def with_mask(model):
    prune.l1_unstructured(first_layer(model), "weight", 0.5)
    return model


def with_hook(model):
    first_layer(model).register_forward_hook(lambda module, args, output: 2 * output)
    return model


def with_pre_hook(model):
    model.bert.encoder.layer[1].register_forward_pre_hook(lambda module, args: (2 * args[0], *args[1:]))
    return model


def with_forward_of_the_object(model):
    layer = first_layer(model)
    layer.forward = lambda x: nn.functional.linear(x, 2 * layer.weight, layer.bias)
    return model


def with_shared_layer(model):
    model.bert.encoder.layer[1] = model.bert.encoder.layer[0]
    return model


def with_shared_weight(model):
    model.bert.encoder.layer[1].intermediate.dense.weight = first_layer(model).weight
    return model


def in_whole_numbers(model):
    first_layer(model).weight = nn.Parameter(torch.ones(20, 24, dtype=torch.int8), requires_grad=False)
    return model


def in_eight_bits(model):
    weight = first_layer(model).weight.detach().to(torch.float8_e4m3fn)
    first_layer(model).weight = nn.Parameter(weight, requires_grad=False)
    return model


def quantised(model):
    model.config.quantization_config = {"quant_method": "gptq"}
    return model


def compiled_in_place(model):
    model.compile(backend="eager")
    return model


def without_values(model):
    return model.to("meta")


def scripted(model):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))

        def forward(self, x):
            return self.inner(x)

    return Net()


def of_sentences(model):
    kind = type("SentenceTransformer", (nn.Sequential,), {"__module__": "sentence_transformers.SentenceTransformer"})
    return kind(model)


NETWORKS = {
    "nothing": (lambda model: None, "not NoneType"),
    "a path": (lambda model: "folder/of/a/network", "path or a name|no such folder here"),
    "a list": (lambda model: [model], "not list"),
    "a function": (lambda model: model.forward, "not method"),
    "a class": (lambda model: nn.Linear, "is a class"),
    "weights": (lambda model: model.state_dict(), "not OrderedDict"),
    "no weights": (lambda model: nn.Sequential(nn.ReLU()), "no weights"),
    "DataParallel": (nn.DataParallel, "model.module"),
    "torch.compile": (lambda model: torch.compile(model, backend="eager"), "before torch.compile"),
    "compile in place": (compiled_in_place, "compile"),
    "torch.jit": (scripted, "torch.jit"),
    "SentenceTransformer": (of_sentences, "auto_model"),
    "peft": (with_adapter, "merge_and_unload"),
    "bitsandbytes": (of_package("bitsandbytes.nn.modules"), "bitsandbytes"),
    "torchao": (of_package("torchao.quantization.linear"), "torchao"),
    "torch quantised": (of_package("torch.ao.nn.quantized.dynamic.modules.linear"), "quantised by torch"),
    "quanto": (of_package("optimum.quanto.nn.qlinear"), "quanto"),
    "awq": (of_package("awq.modules.linear"), "AWQ"),
    "old spectral norm": (with_old_spectral_norm, "remove_spectral_norm"),
    "mask of torch": (with_mask, "prune.remove"),
    "forward hook": (with_hook, "a hook on 'bert.encoder.layer.0.intermediate.dense'"),
    "forward pre-hook": (with_pre_hook, "a hook on 'bert.encoder.layer.1'"),
    "forward of the object": (with_forward_of_the_object, "was replaced on the object"),
    "int8": (in_whole_numbers, "are int8"),
    "float8": (in_eight_bits, "are float8"),
    "quantised configuration": (quantised, "is quantised"),
    "meta": (without_values, "not loaded"),
}


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_cannot_be_pruned_is_refused_by_name(case, bert, batches):
    make, said = NETWORKS[case]
    model = make(bert)
    with pytest.raises(optin.OptinError, match=said):
        optin.prune(model, batches, "60%")


def test_hooks_that_only_look_do_no_harm(bert, batches):
    expected = optin.prune(copy.deepcopy(bert), batches, "60%").plan.keep
    seen = []
    first_layer(bert).register_forward_hook(lambda module, args, output: seen.append(output.shape))
    assert optin.prune(bert, batches, "60%").plan.keep == expected and seen
    assert len(first_layer(bert)._forward_hooks) == 1


def test_a_plain_network_passes_every_check(architecture):
    check_network(build(architecture))


@pytest.mark.parametrize("recipe", ["alpha", 3])
def test_a_recipe_of_another_type_is_refused(recipe, bert, batches):
    for call in (
        lambda: optin.prune(bert, batches, "60%", recipe=recipe),
        lambda: optin.score(bert, batches, recipe=recipe),
    ):
        with pytest.raises(optin.InputError, match=r"an optin\.Recipe"):
            call()


class Masked(nn.Module):
    """Says of one class that it can be no answer."""

    def __init__(self):
        super().__init__()
        self.bert = build("bert", "SequenceClassification").bert
        self.config, self.head = self.bert.config, nn.Linear(24, 3)

    def forward(self, input_ids, attention_mask=None, token_type_ids=None):
        logits = self.head(self.bert(input_ids, attention_mask).last_hidden_state[:, 0])
        return logits.masked_fill(torch.tensor([False, False, True]), -torch.inf)


class Channels(nn.Module):
    def __init__(self, masked=False, result=None):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 4)
        self.masked, self.result = masked, result

    def forward(self, x):
        logits = self.c(self.b(self.a(x).relu()).relu().mean((2, 3)))
        if self.masked:
            logits = torch.cat([logits, torch.full_like(logits[:, :1], -torch.inf)], 1)
        return logits if self.result is None else self.result(logits)


@pytest.mark.parametrize("criterion", ["compensated", "exact", "sketch"])
def test_a_class_that_the_network_masks_is_no_defect(criterion):
    model = Channels(masked=True).eval()
    images = [{"x": torch.randn(4, 3, 32, 32)} for _ in range(4)]
    recipe = optin.Recipe(criterion=criterion)
    result = optin.prune(model, images, "60%", recipe=recipe)
    assert all(parameter.isfinite().all() for parameter in result.model.parameters())
    scores = optin.score(model, images, recipe=recipe)
    assert all(curve.cost.isfinite().all() for curve in scores.curves.values())


UNREADABLE = {
    "a dictionary of whole numbers": (lambda y: {"classes": y.argmax(-1)}, "a dict of classes"),
    "a list of other lengths": (lambda y: [{"boxes": y[:1]}], "a list of 1"),
    "nothing": (lambda y: torch.Size(y.shape), "Size"),
}


@pytest.mark.parametrize("case", UNREADABLE)
@pytest.mark.parametrize("criterion", ["compensated", "magnitude"])
def test_an_output_that_nobody_can_read_is_refused_before_any_work(case, criterion):
    result, said = UNREADABLE[case]
    model = Channels(result=result).eval()
    with pytest.raises(optin.OptinError, match=said):
        optin.score(model, [{"x": torch.randn(4, 3, 32, 32)}], recipe=optin.Recipe(criterion=criterion))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_an_output_that_is_not_finite_is_refused(value):
    model = Channels(result=lambda logits: logits * value).eval()
    with pytest.raises(optin.NumericalError, match="NaN or infinity"):
        optin.score(model, [{"x": torch.randn(4, 3, 32, 32)}])


@pytest.mark.parametrize(
    "text",
    ["CUDA out of memory. Tried to allocate 3 GiB", "[enforce fail] DefaultCPUAllocator: can't allocate memory", ""],
)
def test_out_of_memory_is_out_of_memory(text, monkeypatch):
    model = Channels().eval()
    batches = [{"x": torch.randn(4, 3, 32, 32)}]
    optin.inspect(model)

    def exhausted(x):
        raise RuntimeError(text) if text else MemoryError

    monkeypatch.setattr(Channels, "forward", lambda self, x: exhausted(x))
    with pytest.raises(optin.InputError, match="memory ran out") as caught:
        optin.score(model, batches)
    assert isinstance(caught.value.__cause__, (RuntimeError, MemoryError))


def test_a_fault_of_the_network_itself_keeps_its_cause(monkeypatch):
    model = Channels().eval()
    optin.inspect(model)

    def broken(self, x):
        return {}["the user's key"]

    monkeypatch.setattr(Channels, "forward", broken)
    with pytest.raises(optin.InputError, match="does not take the inputs") as caught:
        optin.score(model, [{"x": torch.randn(4, 3, 32, 32)}])
    assert isinstance(caught.value.__cause__, KeyError)


IDS = {
    "beyond the vocabulary": ({"input_ids": torch.full((4, 9), 60)}, "outside the model's vocabulary"),
    "negative": ({"input_ids": torch.full((4, 9), -1)}, "outside the model's vocabulary"),
    "a third kind of segment": (
        {"input_ids": torch.full((4, 9), 7), "token_type_ids": torch.full((4, 9), 2)},
        "'token_type_ids' holds 2",
    ),
    "too long": ({"input_ids": torch.full((4, 99), 7)}, "beyond the 40 tokens"),
    "only padding": (
        {"input_ids": torch.full((4, 9), 7), "attention_mask": torch.zeros(4, 9, dtype=torch.long)},
        "only padding",
    ),
    "unknown argument": (
        {"input_ids": torch.full((4, 9), 7), "offset": torch.zeros(4, 9)},
        "makes no use of the input 'offset'. Leave it out",
    ),
    "misspelled": (
        {"input_ids": torch.full((4, 9), 7), "attention_masks": torch.ones(4, 9)},
        "'attention_masks'.*Did you mean 'attention_mask'",
    ),
    "reals for words": ({"input_ids": torch.zeros(4, 9)}, "does not take the inputs"),
    "images for words": ({"pixel_values": torch.zeros(4, 3, 8, 8)}, "does not take the inputs"),
}


@pytest.mark.parametrize("case", IDS)
def test_inputs_that_the_network_does_not_take(case, bert):
    batch, said = IDS[case]
    with pytest.raises(optin.InputError, match=said):
        optin.prune(bert, [batch], "60%")


def test_merging_tokens_of_a_network_that_merges_some():
    model = build("vit", "ImageClassification")
    recipe = optin.PRESETS["tau"]
    batches = [inputs(model, seed=seed) for seed in range(4)]
    once = optin.prune(model, batches, "70%", recipe=recipe.override(tokens__merge="constant")).model
    with pytest.raises(optin.InputError, match="merges tokens already"):
        optin.prune(once, batches, "70%", recipe=recipe)
    with pytest.raises(optin.InputError, match="refit.enabled: false"):
        optin.prune(once, batches, "90%", recipe=optin.PRESETS["beta"])
    alone = optin.PRESETS["beta"].override(refit__enabled=False)
    twice = optin.prune(once, batches, "90%", recipe=alone)
    assert twice.plan.pruned.macs <= 0.9 * twice.plan.dense.macs


@pytest.mark.parametrize("change", [with_weight_norm, with_spectral_norm, with_shared_layer, with_shared_weight])
def test_what_cannot_be_cut_stays_and_the_rest_is_pruned(bert, change, tmp_path):
    """Weights that are computed or shared; the result is of one's own making: no configuration tells of them."""
    dense = change(bert)
    small = optin.prune(dense, [inputs(dense)], "80%", recipe=RECIPE)
    assert "bert.encoder.layer.0.intermediate.dense" not in small.plan.kept
    small.save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="of your own making"):
        optin.load(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=dense)
    with torch.inference_mode():
        assert torch.equal(loaded(**inputs(dense)).logits, small.model(**inputs(dense)).logits)


class Sized(nn.Module):
    """Maps whose forward says a size of its own, as many tutorials do."""

    def __init__(self, middle) -> None:
        super().__init__()
        self.first, self.second, self.last = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(8, 3)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.middle(self.first(x).relu())
        return self.last(self.second(y).relu().mean((2, 3)))


MIDDLES = {
    "view": lambda y: y.reshape(-1, 8, *y.shape[2:]),
    "own count": lambda y: y / y.shape[1],
    "pooled": lambda y: nn.functional.adaptive_avg_pool2d(y.permute(0, 2, 3, 1), (30, 8)).permute(0, 3, 1, 2),
    "clamp": lambda y: torch.clamp(y, max=torch.linspace(0.1, 1, 8)[:, None, None]),
}


@pytest.mark.parametrize("name", MIDDLES)
def test_sizes_written_into_a_forward_keep_their_channels_whole(name):
    images = [{"x": torch.randn(4, 3, 32, 32)} for _ in range(2)]
    result = optin.prune(shaken(Sized(MIDDLES[name])), images, "75%", recipe=RECIPE)
    assert list(result.plan.sizes) == ["second"]


def test_a_buffer_that_changes_at_every_forward():
    class Counting(Sized):
        def __init__(self) -> None:
            super().__init__(lambda y: y)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls += 1
            return super().forward(x)

    model = Counting().eval()
    optin.inspect(model)
    before = float(model.calls)
    with pytest.raises(InputError, match="the buffer 'calls' .* changes at every forward"):
        optin.prune(model, [{"x": torch.randn(4, 3, 32, 32)}], "75%", recipe=RECIPE)
    assert float(model.calls) == before


def changed_activation(model):
    for layer in model.bert.encoder.layer:
        layer.intermediate.intermediate_act_fn = nn.ReLU()


def changed_epsilon(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = 0.1


def changed_scaling(model):
    for layer in model.bert.encoder.layer:
        layer.attention.self.scaling = 0.9


@pytest.mark.parametrize("change", [changed_activation, changed_epsilon, changed_scaling])
def test_a_network_that_is_no_longer_what_its_configuration_says(change, tmp_path):
    def made():
        model = build("bert", attention="sdpa")
        change(model)
        return model

    model = made()
    result = optin.prune(model, [tokens(model)], "60%", recipe=RECIPE)
    result.save(tmp_path / "small")
    with pytest.raises(CheckpointError, match="into=network"):
        optin.load(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=made())
    with torch.inference_mode():
        assert torch.equal(loaded(**tokens(model)).logits, result.model(**tokens(model)).logits)


def test_a_hook_that_changes_a_value_in_place(bert):
    def doubled(module, given, output) -> None:
        output.mul_(2)

    bert.bert.encoder.layer[0].output.dense.register_forward_hook(doubled)
    with pytest.raises(ArchitectureError, match="a hook on .* changes what the network computes"):
        optin.prune(bert, [tokens(bert)], "60%", recipe=RECIPE)


def test_checkpointing_of_gradients():
    model = build("timm-vit")
    model.set_grad_checkpointing()
    with pytest.raises(ArchitectureError, match="set_grad_checkpointing"):
        optin.prune(model, [inputs(model)], "60%", recipe=RECIPE)


def test_a_wrapper_that_passes_weights_on(bert):
    class Adapted(nn.Module):
        def __init__(self, base) -> None:
            super().__init__()
            self.base = base

        def forward(self, x):
            return self.base(x)

        weight = property(lambda self: self.base.weight)
        bias = property(lambda self: self.base.bias)

    for layer in bert.bert.encoder.layer:
        layer.intermediate.dense = Adapted(layer.intermediate.dense)
    small = optin.prune(bert, [tokens(bert)], "60%", recipe=RECIPE)
    kept = [len(layer.intermediate.dense.base.weight) for layer in small.model.bert.encoder.layer]
    assert sum(kept) < 60


def test_a_network_made_in_inference_mode():
    with torch.inference_mode():
        model = build("bert")
    with pytest.raises(InputError, match="inference_mode"):
        optin.prune(model, [tokens(model)], "60%", recipe=RECIPE)


ODD = {
    "meta": lambda ids: ids.to("meta"),
    "sparse": lambda ids: ids.to_sparse(),
    "nested": lambda ids: torch.nested.nested_tensor([row[:4] for row in ids]),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ODD)
def test_tensors_of_odd_kinds(name, bert):
    batch = tokens(bert)
    batch["attention_mask"] = ODD[name](batch["attention_mask"])
    with pytest.raises(InputError, match="'attention_mask' of a calibration batch is no plain tensor"):
        optin.prune(bert, [batch], "60%", recipe=RECIPE)


def test_arrays_of_odd_kinds(bert):
    batch = {name: value.numpy() for name, value in tokens(bert).items()}
    odd = {
        "input_ids": batch["input_ids"].astype(">i8"),
        "attention_mask": batch["attention_mask"].astype("longdouble"),
    }
    scores, expected = (optin.score(bert, [given], recipe=RECIPE) for given in (odd, batch))
    for name, curve in expected.curves.items():
        assert torch.equal(scores.curves[name].cost, curve.cost)


def test_a_keyword_that_is_no_number_and_a_sweep_over_one_budget(bert):
    with pytest.raises(InputError, match="'scale' of calibration batch 1 is nan"):
        optin.score(bert, [{**tokens(bert), "scale": float("nan")}], recipe=RECIPE)
    for budgets in (None, 0.5, "50%"):
        with pytest.raises(InputError, match="a list of budgets"):
            list(optin.sweep(bert, [tokens(bert)], budgets))


def test_autocast_of_the_caller_changes_nothing(bert):
    batches = [tokens(bert, seed=seed) for seed in range(2)]
    expected = optin.prune(bert, batches, "60%", recipe=RECIPE)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = optin.prune(bert, batches, "60%", recipe=RECIPE)
    assert found.plan.keep == expected.plan.keep
    for name, value in expected.model.state_dict().items():
        assert torch.equal(value, found.model.state_dict()[name])


def test_operations_in_place_that_no_gradient_can_pass():
    class Twice(Sized):
        def forward(self, x):
            y = self.second(self.first(x).relu()).sigmoid_().mul_(2)
            return self.last(y.mean((2, 3)))

    with pytest.raises(InputError, match="an operation in place overwrites what a gradient needs"):
        optin.prune(shaken(Twice(None)), [{"x": torch.randn(4, 3, 32, 32)} for _ in range(2)], "75%", recipe=RECIPE)
