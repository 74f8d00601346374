"""Networks that nothing here knows, by the labels of one forward."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import optin
from optin.accounting import costs
from optin.describing import describe, labels
from optin.describing.classes import Classes
from optin.describing.inputs import example_inputs, image_input
from optin.describing.remembered import likeliest
from optin.describing.rules.table import RULES, rule
from optin.errors import ArchitectureError, InputError
from optin.recipe import Recipe
from optin.running.gating import gated, masks
from optin.running.outputs import answers
from optin.running.surgery import shrink
from optin.space.plans import Cost
from tests import zoo
from tests.networks import plan_of, shaken
from tests.slow import slow_but

RECIPE = Recipe().override(trajectory__draws=8)
TEXT = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
}
GROUPED = TEXT | {"num_key_value_heads": 3, "bos_token_id": 1, "eos_token_id": 2}
SPECIAL = {"cls_token_id": 1, "sep_token_id": 2, "bos_token_id": 1, "eos_token_id": 2}
PATCHES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 20}
PATCHES |= {"image_size": 16, "patch_size": 4}
BART = {"d_model": 24, "vocab_size": 60, "max_position_embeddings": 40}
BART |= {f"{side}_{name}": size for side in ("encoder", "decoder") for name, size in (("layers", 2), ("ffn_dim", 20))}
BART |= {"encoder_attention_heads": 4, "decoder_attention_heads": 4}


class Own(nn.Module):
    """Rms norm, one matrix for queries, keys and values, a gated feed-forward."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = 4
            self.before, self.between = nn.RMSNorm(24), nn.RMSNorm(24)
            self.qkv, self.out = nn.Linear(24, 72, bias=False), nn.Linear(24, 24)
            self.gate, self.up, self.down = nn.Linear(24, 20), nn.Linear(24, 20), nn.Linear(20, 24, bias=False)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            batch, tokens, _ = x.shape
            query, key, value = (
                part.view(batch, tokens, self.heads, -1).transpose(1, 2)
                for part in self.qkv(self.before(x)).chunk(3, -1)
            )
            seen = F.scaled_dot_product_attention(query, key, value)
            x = x + self.out(seen.transpose(1, 2).reshape(batch, tokens, -1))
            y = self.between(x)
            return x + self.down(F.silu(self.gate(y)) * self.up(y))

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 24)
        self.blocks = nn.ModuleList(self.Block() for _ in range(2))
        self.head = nn.Linear(24, 3)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(input_ids)
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def of(name: str, config: str, **options):
    def make() -> nn.Module:
        kind = getattr(transformers, name)
        return kind(getattr(transformers, config)(**options))

    return make


# network -> (how it is made, the kinds of its groups)
NETWORKS = {
    "llama": (of("LlamaForCausalLM", "LlamaConfig", **GROUPED), {"head", "neuron"}),
    "qwen3": (of("Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=4), {"head", "neuron"}),
    "gemma2": (of("Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=4), {"head", "neuron"}),
    "gpt2": (of("GPT2LMHeadModel", "GPT2Config", n_embd=24, n_layer=2, n_head=4, vocab_size=60), {"head", "neuron"}),
    "gpt-neox": (of("GPTNeoXForCausalLM", "GPTNeoXConfig", **TEXT), {"head", "neuron"}),
    # It reads the numbers of its heads off its configuration, which all layers share: each gets one of its own.
    "phi3": (of("Phi3ForCausalLM", "Phi3Config", **GROUPED), {"head", "neuron"}),
    "modernbert": (
        of("ModernBertForSequenceClassification", "ModernBertConfig", **TEXT, **SPECIAL),
        {"head", "neuron"},
    ),
    "nomic-bert": (of("NomicBertModel", "NomicBertConfig", **TEXT), {"head", "neuron"}),
    "big-bird": (
        of("BigBirdForSequenceClassification", "BigBirdConfig", **TEXT, attention_type="original_full"),
        {"head", "neuron"},
    ),
    "fnet": (
        of(
            "FNetForSequenceClassification",
            "FNetConfig",
            **{name: TEXT[name] for name in ("vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")},
        ),
        {"neuron"},
    ),
    "t5-encoder": (
        of("T5EncoderModel", "T5Config", d_model=24, d_kv=6, d_ff=20, num_layers=2, num_heads=4, vocab_size=60),
        {"head", "neuron"},
    ),
    "bart": (of("BartForConditionalGeneration", "BartConfig", **BART), {"head", "neuron"}),
    "vit-msn": (of("ViTMSNForImageClassification", "ViTMSNConfig", **PATCHES), {"head", "neuron"}),
    "dinov3": (of("DINOv3ViTModel", "DINOv3ViTConfig", **PATCHES | {"num_attention_heads": 3}), {"head", "neuron"}),
    "sam": (
        of(
            "SamVisionModel",
            "SamVisionConfig",
            **{name: size for name, size in PATCHES.items() if name != "intermediate_size"},
            mlp_dim=20,
            window_size=2,
            global_attn_indexes=[1],
            output_channels=8,
        ),
        {"head", "neuron"},
    ),
    "own": (Own, {"head", "neuron"}),
}
FAST = ("llama", "gpt2", "modernbert", "t5-encoder", "dinov3", "own")


def built(name: str) -> nn.Module:
    torch.manual_seed(0)
    return shaken(NETWORKS[name][0]())


def sample(model: nn.Module, batch: int = 4) -> dict[str, torch.Tensor]:
    return example_inputs(model, 16 if image_input(model) else 9, batch)


@torch.inference_mode()
def run(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    return answers(model(**batch))


@pytest.mark.parametrize("name", NETWORKS)
def test_shrunk_equals_gated(name):
    model = built(name)
    space, batch = describe(model), sample(model)
    assert {group.kind for group in space} == NETWORKS[name][1]
    plan = plan_of(model, {group.name: range(group.size - group.size // 3) for group in space})
    with gated(model, space, masks(model, plan)):
        expected = run(model, batch)
    moved = (expected - run(model, batch)).abs().max()
    assert moved > 0.01 * expected.abs().max(), "the plan must change something"
    shrink(model, space, plan)
    torch.testing.assert_close(run(model, batch), expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", slow_but(FAST, NETWORKS))
def test_the_whole_job(name, tmp_path):
    model = built(name)
    batches = [sample(model) for _ in range(4)]
    before = run(model, batches[0])
    result = optin.prune(model, batches, "80%", recipe=RECIPE)
    assert torch.equal(run(model, batches[0]), before)
    plan = result.plan
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        result.model(**example_inputs(model, plan.length, 1))
    assert plan.pruned.macs == counter.get_total_flops() // 2 <= 0.8 * plan.dense.macs
    assert plan.pruned.parameters == sum(parameter.numel() for parameter in result.model.parameters())
    result.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=built(name) if name == "own" else None)
    assert torch.equal(run(loaded, batches[0]), run(result.model, batches[0]))


def padded(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """With the last tokens of the first example masked out."""
    masked = {name: value.clone() for name, value in batch.items() if name.endswith("attention_mask")}
    for mask in masked.values():
        mask[0, -2:] = 0
    return batch | masked


MASKED = [name for name, kind in zoo.NETWORKS.items() if kind.attends and "attention_mask" in kind.inputs()]


@pytest.mark.parametrize("name", slow_but(("t5",), MASKED))
def test_padding_hides_nothing(name):
    """A mask may be added to what several layers share: of T5, a table of zeros for all cross-attentions."""
    batch = zoo.NETWORKS[name].inputs()
    sizes = describe(zoo.built(name), batch).sizes
    assert describe(zoo.built(name), padded(batch)).sizes == sizes


def test_labels_that_are_joined_are_of_one_class():
    classes = Classes()
    first, second = classes.new(3), classes.new(3)
    classes.join(first, second.flip(0))
    classes.join(first[:1], first[1:2])
    roots = classes.roots().tolist()
    assert roots[0] == roots[1] == roots[4] == roots[5] and roots[2] == roots[3] != roots[0]


class Two(nn.Module):
    """A feed-forward with something between its maps."""

    def __init__(self, between) -> None:
        super().__init__()
        self.up, self.down, self.between = nn.Linear(6, 12), nn.Linear(12, 4), between

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.between(self.up(x)))


VALUES = {"x": torch.randn(2, 5, 6)}


@pytest.mark.parametrize(
    "between",
    [
        torch.relu,
        lambda x: x * x.sigmoid(),
        lambda x: torch.cat([x[..., :6], x[..., 6:]], -1),
        lambda x: torch.where(x > 0, x, 2 * x),
    ],
)
def test_what_lies_between_two_maps(between):
    space = labels.describe(shaken(Two(between)), VALUES, "two")
    assert [group.size for group in space] == [12]


@pytest.mark.parametrize(
    ("between", "reason"),
    [
        (lambda x: x.softmax(-1), "softmax over it"),
        (lambda x: x - x.mean(-1, keepdim=True), "mean over it"),
        (lambda x: x + torch.arange(12.0), "a constant of this extent"),
        (lambda x: F.layer_norm(x, (12,)), "normalised together"),
        (lambda x: x.cumsum(-1), "cumsum along it"),
        (lambda x: torch.fft.fft(x).real, "_fft_r2c is not understood"),
        (lambda x: x.view(2, 5, 4, 3).flatten(2), "no whole slice of one axis"),
        (lambda x: x + x.flip(-1), "do not lie evenly"),
    ],
)
def test_what_cannot_be_cut_says_why(between, reason):
    with pytest.raises(ArchitectureError, match=f"nothing can be cut.*{reason}"):
        labels.describe(shaken(Two(between)), VALUES, "two")


class Bessel(nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


@pytest.mark.parametrize(
    ("between", "where"), [(torch.special.bessel_j0, "the network's forward"), (Bessel(), "'1'")], ids=["", "module"]
)
def test_what_is_not_understood_is_named_beside_what_is_cut(between, where):
    parts = [nn.Linear(6, 12), between, nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)]
    model = nn.Sequential(*parts) if isinstance(between, nn.Module) else Straight(parts)
    space = labels.describe(shaken(model), {"x" if isinstance(model, Straight) else "input": torch.randn(2, 6)}, "")
    assert len(space) == 1
    assert list(space.whole.values()) == [f"special_bessel_j0 is not understood in {where}"]


class Straight(nn.Module):
    """One after the other, functions too."""

    def __init__(self, parts):
        super().__init__()
        self.parts = parts
        self.maps = nn.ModuleList(part for part in parts if isinstance(part, nn.Module))

    def forward(self, x):
        for part in self.parts:
            x = part(x)
        return x


def test_a_rule_teaches_an_operation(monkeypatch):
    def between(x):
        return torch.special.bessel_j0(x) + x

    with pytest.raises(ArchitectureError, match="bessel_j0 is not understood"):
        labels.describe(shaken(Two(between)), VALUES, "two")
    monkeypatch.setitem(RULES, "special_bessel_j0", None)  # taken out again behind the test
    rule("special_bessel_j0")(RULES["relu"])
    assert len(labels.describe(shaken(Two(between)), VALUES, "two")) == 1


def test_a_rule_that_is_added_later_is_used(monkeypatch):
    model = shaken(
        Straight([nn.Linear(6, 12), torch.special.bessel_j0, nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)])
    )
    assert len(labels.describe(model, {"x": torch.randn(2, 6)}, "")) == 1
    monkeypatch.setitem(RULES, "special_bessel_j0", RULES["relu"])
    assert len(labels.describe(model, {"x": torch.randn(2, 6)}, "")) == 2


def test_describing_draws_nothing_from_the_generator_of_the_caller():
    for model in (built("own"), nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))):
        state = torch.get_rng_state()
        describe(model)
        assert torch.equal(torch.get_rng_state(), state)


def test_a_network_that_draws_at_random_is_refused():
    model = transformers.ViTMAEModel(transformers.ViTMAEConfig(**PATCHES))
    with pytest.raises(InputError, match="two forwards .* differ"):
        optin.prune(model, [{"pixel_values": torch.randn(4, 3, 16, 16)}], "80%", recipe=RECIPE)


class Halves(nn.Module):
    """What one convolution makes is cut in half, and a map reads what is made of both, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.one, self.two = nn.Conv2d(3, 16, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(16, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = self.make(x).relu().chunk(2, 1)
        return self.head(torch.cat([self.one(left).relu(), self.two(right).relu()], 1).mean((2, 3)))


def test_what_is_read_one_behind_the_other_is_cut_and_equal_halves_stay(tmp_path):
    torch.manual_seed(0)
    model, batches = Halves().eval(), [{"x": torch.randn(8, 3, 12, 12)} for _ in range(4)]
    space = optin.describe(model, batches[0])
    assert space.sizes == {"one": 8, "two": 8}
    assert [gate.start for name in ("one", "two") for gate in space[name].gates] == [0, 8]
    assert {"make.to.one", "make.to.two"} <= set(space.whole), "halves of other sizes would be cut elsewhere"
    once = optin.prune(model, batches, "80%", recipe=RECIPE)
    twice = optin.prune(once.model, batches, "90%", recipe=RECIPE)
    twice.save(tmp_path / "small")
    loaded = optin.load(tmp_path / "small", into=Halves().eval())
    assert torch.equal(run(loaded, batches[0]), run(twice.model, batches[0]))


def test_pairs_and_tensors_of_a_loader_are_taken():
    torch.manual_seed(0)
    data = [(torch.randn(3, 12, 12), index % 3) for index in range(16)]
    loader = torch.utils.data.DataLoader(data, batch_size=4)
    result = optin.prune(Halves().eval(), loader, "60%", recipe=RECIPE)
    assert result.plan.provenance["data"]["left_out"] == ["the labels of each pair"]
    assert set(result.plan.provenance["data"]["inputs"]) == {"x"}
    optin.prune(Halves().eval(), [images for images, _ in loader], "60%", recipe=RECIPE)


def test_sets_of_roles_come_once_and_the_likeliest_first():
    odds = {("", str(place), None): value for place, value in enumerate((3, 1, 0.5, -0.2, -2))}
    found = [tuple(needed) for needed in likeliest(odds)]
    assert len(found) == len(set(found)) == 32
    chances = [sum(odds[role] for role in needed) for needed in found]
    assert chances == pytest.approx(sorted(chances, reverse=True))


def test_names_stay_where_a_group_is_left_with_one_unit(tmp_path):
    torch.manual_seed(0)
    model = built("bart")
    batches = [{**sample(model), "decoder_input_ids": torch.randint(5, 60, (4, 6))} for _ in range(4)]
    space = optin.describe(model, batches[0])
    keep = {group.name: tuple(range(group.size)) for group in space}
    alone = next(name for name in keep if "encoder_attn" in name)
    scores = optin.score(model, batches, recipe=RECIPE)
    plan = dataclasses.replace(optin.plan(model, scores, "90%", recipe=RECIPE), keep=keep | {alone: (1,)})
    macs, parameters = costs(model, space, plan.length, None, plan)
    plan = dataclasses.replace(plan, pruned=Cost(macs(plan.kept), parameters(plan.kept)))
    once = optin.apply(model, plan, batches, recipe=RECIPE)
    assert set(optin.describe(once.model, batches[0]).sizes) == set(space.sizes) - {alone}
    twice = optin.prune(once.model, batches, "80%", recipe=RECIPE)
    assert twice.model.config.optin["dense"]["macs"] == plan.dense.macs
    twice.save(tmp_path / "small")
    assert torch.equal(run(optin.load(tmp_path / "small"), batches[0]), run(twice.model, batches[0]))


def test_other_inputs_are_described_anew():
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 4))
            self.two = nn.Sequential(nn.Linear(6, 10), nn.ReLU(), nn.Linear(10, 4))

        def forward(self, x: torch.Tensor, y: torch.Tensor | None = None) -> torch.Tensor:
            return self.one(x) if y is None else self.one(x) + self.two(y)

    model, x = Towers().eval(), torch.randn(2, 6)
    assert len(optin.describe(model, {"x": x})) == 1
    assert len(optin.describe(model, {"x": x, "y": x})) == 2
