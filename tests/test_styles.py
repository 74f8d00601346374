"""Ways in which people write networks of their own: layers in lists of lists, outputs in objects, counts anywhere."""

from __future__ import annotations

import dataclasses
import types
import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

import optin
from optin.errors import ArchitectureError
from optin.recipe import Recipe
from optin.running.gating import gated, masks
from optin.running.surgery import shrink
from optin.running.twins import twinned
from optin.space.plans import Cost, Plan
from tests.networks import shaken

RECIPE = Recipe().override(trajectory__draws=8)
WIDTH, INNER, HEADS = 16, 24, 4


class Attention(nn.Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.heads, self.qkv, self.out = HEADS, nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Lists(nn.Module):
    """Layers as lists in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layers, self.head = nn.ModuleList(map(self.layer, range(2))), nn.Linear(WIDTH, 3)

    def layer(self, place):
        mlp = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))
        return nn.ModuleList([Attention(WIDTH), mlp])

    def forward(self, x):
        for attend, feed in self.layers:
            x = x + attend(x)
            x = x + feed(x)
        return self.head(x.mean(1))


class Dicts(Lists):
    """Layers as dictionaries in a list."""

    def layer(self, place):
        return nn.ModuleDict(
            {"attend": Attention(WIDTH), "up": nn.Linear(WIDTH, INNER), "down": nn.Linear(INNER, WIDTH)}
        )

    def forward(self, x):
        for layer in self.layers:
            x = x + layer["attend"](x)
            x = x + layer["down"](F.gelu(layer["up"](x)))
        return self.head(x.mean(1))


class Structs(Dicts):
    """Layers as modules that hold others and have no forward."""

    def layer(self, place):
        found = nn.Module()
        found.attend = Attention(WIDTH)
        found.up, found.down = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        return found

    def forward(self, x):
        for layer in self.layers:
            x = x + layer.attend(x)
            x = x + layer.down(F.gelu(layer.up(x)))
        return self.head(x.mean(1))


class TorchAttention(Lists):
    """torch's attention with the weights that it returns thrown away."""

    def layer(self, place):
        mlp = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))
        return nn.ModuleList([nn.MultiheadAttention(WIDTH, HEADS, batch_first=True), mlp])

    def forward(self, x):
        for attend, feed in self.layers:
            x = x + attend(x, x, x)[0]
            x = x + feed(x)
        return self.head(x.mean(1))


class Unflattened(nn.Module):
    """Heads by `nn.Unflatten`, which keeps their number."""

    def __init__(self) -> None:
        super().__init__()

        def maker() -> nn.Module:
            return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Unflatten(-1, (HEADS, WIDTH // HEADS)))

        self.query, self.key, self.value = maker(), maker(), maker()
        self.out, self.head = nn.Sequential(nn.Flatten(-2), nn.Linear(WIDTH, WIDTH)), nn.Linear(WIDTH, 3)

    def forward(self, x):
        q, k, v = (part(x).transpose(1, 2) for part in (self.query, self.key, self.value))
        return self.head((x + self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2))).mean(1))


class Normalised(nn.Sequential):
    """Instance norms with weights make sure of the number of channels."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 16, 3), nn.InstanceNorm2d(16, affine=True), nn.ReLU(), nn.Conv2d(16, 12, 3), nn.ReLU(),
            nn.Conv2d(12, 3, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        )  # fmt: skip


class Grouped(nn.Module):
    """Four heads of keys for eight of queries, counted in attributes whose names say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.h, self.kv, self.hd = 8, 4, 32
        self.query, self.out = nn.Linear(WIDTH, 256), nn.Linear(256, WIDTH)
        self.key, self.value, self.head = nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 128), nn.Linear(WIDTH, 3)

    def forward(self, x):
        batch, length, _ = x.shape
        q = self.query(x).view(batch, length, self.h, self.hd).transpose(1, 2)
        k, v = (part(x).view(batch, length, self.kv, self.hd).transpose(1, 2) for part in (self.key, self.value))
        k, v = (part.repeat_interleave(self.h // self.kv, 1) for part in (k, v))
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head((x + self.out(attended)).mean(1))


class Reshaped(nn.Module):
    """Sizes of reshapes are computed from the count of heads and the width."""

    def __init__(self) -> None:
        super().__init__()
        self.count, self.up = HEADS, nn.Sequential(nn.Linear(WIDTH, 32), nn.LayerNorm(32))
        self.qkv, self.out, self.head = nn.Linear(32, 96), nn.Linear(32, 32), nn.Linear(32, 3)

    def forward(self, x):
        x = self.up(x)
        batch, length, width = x.shape
        parts = self.qkv(x).view(batch, length, 3, self.count, width // self.count)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = ((q @ k.mT).softmax(-1) @ v).transpose(1, 2).reshape(batch, length, width)
        return self.head((x + self.out(attended)).mean(1))


class Complex(nn.Module):
    """Features are turned by complex numbers, stored and not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down, self.head = nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH), nn.Linear(WIDTH, 3)
        for name, kept in (("turn", True), ("back", False)):
            angles = torch.arange(float(WIDTH // 2)) + kept
            self.register_buffer(name, torch.polar(torch.ones(WIDTH // 2), angles), persistent=kept)

    def forward(self, x):
        hidden = self.down(F.relu(self.up(x))).unflatten(-1, (-1, 2)).contiguous()
        turned = torch.view_as_complex(hidden) * self.turn * self.back
        return self.head(torch.view_as_real(turned).flatten(-2).mean(1))


class Siamese(nn.Module):
    """One tower for two inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Lists().layers

    def tower(self, x):
        for attend, feed in self.blocks:
            x = x + attend(x)
            x = x + feed(x)
        return x.mean(1)

    def forward(self, a, b):
        return torch.cosine_similarity(self.tower(a), self.tower(b))


class Pair(nn.Module):
    """Siamese, with blocks that are modules."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attend = Attention(WIDTH)
            self.feed = nn.Sequential(nn.Linear(WIDTH, INNER), nn.GELU(), nn.Linear(INNER, WIDTH))

        def forward(self, x):
            x = x + self.attend(x)
            return x + self.feed(x)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(self.Block(), self.Block())

    def forward(self, a, b):
        return torch.cosine_similarity(self.blocks(a).mean(1), self.blocks(b).mean(1))


@dataclasses.dataclass
class Answer:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Returns(nn.Module):
    """A feed-forward network that returns an object."""

    def __init__(self, kind, shows_hidden: bool, inner: int = INNER) -> None:
        super().__init__()
        self.kind, self.shows_hidden = kind, shows_hidden
        self.up, self.down, self.head = nn.Linear(WIDTH, inner), nn.Linear(inner, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        hidden = F.relu(self.up(x))
        logits = self.head((x + self.down(hidden)).mean(1))
        return self.kind(logits=logits, hidden=hidden if self.shows_hidden else None)


class Heads(nn.Module):
    """Attention that keeps the number of its heads under any name, and what multiplies its keys in any shape."""

    def __init__(self, name: str, shape=(1,)) -> None:
        super().__init__()
        setattr(self, name, HEADS)
        self.name, self.gamma = name, nn.Parameter(torch.rand(shape) + 0.5)
        self.qkv, self.out, self.head = nn.Linear(WIDTH, 6 * WIDTH), nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        batch, tokens, width = *x.shape[:2], 2 * WIDTH
        heads = getattr(self, self.name)
        q, k, v = self.qkv(x).reshape(batch, tokens, 3, heads, width // heads).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, F.normalize(k, dim=-1) * self.gamma, v)
        return self.head((x + self.out(attended.transpose(1, 2).reshape(batch, tokens, width))).mean(1))


class Graph(nn.Module):
    """Attention by two vectors a head (GAT)."""

    def __init__(self) -> None:
        super().__init__()
        self.heads = HEADS
        self.lin, self.out, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 3)
        self.one, self.two = (nn.Parameter(torch.randn(HEADS, WIDTH // HEADS)) for _ in range(2))

    def forward(self, x):
        nodes = self.lin(x).unflatten(-1, (self.heads, -1))
        edges = (nodes * self.one).sum(-1)[:, :, None] + (nodes * self.two).sum(-1)[:, None]
        made = torch.einsum("bijh,bjhd->bihd", F.leaky_relu(edges, 0.2).softmax(2), nodes)
        return self.head((x + self.out(made.flatten(2))).mean(1))


class TwoAttentions(nn.Module):
    """One map reads the heads of two, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(WIDTH, 3 * WIDTH) for _ in range(2))
        self.out, self.head = nn.Linear(2 * WIDTH, WIDTH), nn.Linear(WIDTH, 3)

    def forward(self, x):
        made = []
        for qkv in self.qkv:
            q, k, v = (part.unflatten(-1, (-1, WIDTH // HEADS)).transpose(1, 2) for part in qkv(x).chunk(3, -1))
            made.append(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return self.head((x + self.out(torch.cat(made, -1))).mean(1))


class Tables(nn.Module):
    """One map reads three embeddings, one behind the other."""

    def __init__(self) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(20, size) for size in (12, 8, 8))
        self.mix, self.up, self.head = nn.Linear(28, 16), nn.Linear(16, INNER), nn.Linear(INNER, 3)

    def forward(self, ids):
        read = torch.cat([table(ids[..., place]) for place, table in enumerate(self.tables)], -1)
        return self.head(F.relu(self.up(self.mix(read))).mean(1))


class BothWays(nn.Module):
    """A map whose weight is used the other way round as well; and another that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.tied, self.up, self.down = nn.Linear(WIDTH, INNER), nn.Linear(WIDTH, INNER), nn.Linear(INNER, WIDTH)
        self.head = nn.Linear(WIDTH, 3)

    def forward(self, x):
        x = x + self.down(F.relu(self.up(x)))
        return self.head((x + F.linear(F.gelu(self.tied(x)), self.tied.weight.t())).mean(1))


class Trunk(nn.Module):
    """Convolutions that read and make the same channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 3)
        self.convolutions = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))

    def forward(self, input):
        x = self.stem(input)
        for convolution in self.convolutions:
            x = x + convolution(F.relu(x))
        return self.head(x.mean((2, 3)))


def words(batch: int = 4) -> dict[str, torch.Tensor]:
    return {"x": torch.randn(batch, 6, WIDTH)}


class Projected(nn.Module):
    """Attention with maps of their own, in which heads count as many as the features of each."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.head, self.count = nn.Linear(WIDTH, 3), HEADS

    def forward(self, x):
        return self.head((x + self.attend(x, *x.shape)).mean(1))


class Folded(Projected):
    """Heads are further examples, as in fairseq."""

    def attend(self, x, b, t, width):
        parts = (map_(x).view(b, t, self.count, width // self.count) for map_ in (self.q, self.k, self.v))
        q, k, v = (part.permute(0, 2, 1, 3).reshape(b * self.count, t, width // self.count) for part in parts)
        mixed = torch.bmm(torch.bmm(q, k.mT).softmax(-1), v).view(b, self.count, t, width // self.count)
        return self.out(mixed.permute(0, 2, 1, 3).reshape(b, t, width))


class Square(Projected):
    """Heads and their features by the width, as in nanoGPT."""

    def attend(self, x, b, t, width):
        parts = (map_(x).view(b, t, self.count, width // self.count) for map_ in (self.q, self.k, self.v))
        q, k, v = (part.transpose(1, 2) for part in parts)
        return self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).contiguous().view(b, t, width))


class Rotary(Projected):
    """Turned by complex numbers, as in Meta's Llama."""

    def attend(self, x, b, t, width):
        angles = torch.outer(torch.arange(t), torch.tensor([1.0, 0.1]))
        turns = torch.polar(torch.ones_like(angles), angles)[:, None]
        q, k, v = (map_(x).view(b, t, self.count, -1) for map_ in (self.q, self.k, self.v))
        q, k = (
            torch.view_as_real(torch.view_as_complex(part.reshape(b, t, self.count, -1, 2)) * turns).flatten(3)
            for part in (q, k)
        )
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        return self.out(((q @ k.mT).softmax(-1) @ v).transpose(1, 2).flatten(2))


class Convolution(nn.Module):
    """Nodes of a dense graph, each the sum of its neighbours."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(WIDTH, INNER), nn.Linear(INNER, INNER), nn.Linear(INNER, 3)

    def forward(self, x, edges):
        x = (edges @ self.one(x)).relu()
        return self.head((edges @ self.two(x)).relu().mean(1))


class Thirds(nn.Module):
    """What one map makes is cut in three equal parts."""

    def __init__(self) -> None:
        super().__init__()
        self.make, self.head = nn.Linear(WIDTH, 3 * INNER), nn.Linear(8, 3)
        self.parts = nn.ModuleList(nn.Sequential(nn.Linear(INNER, 20), nn.ReLU(), nn.Linear(20, 8)) for _ in range(3))

    def forward(self, x):
        parts = zip(self.parts, self.make(x).relu().chunk(3, -1), strict=True)
        return self.head(torch.stack([part(value) for part, value in parts]).sum(0).mean(1))


def graphs(batch: int = 4) -> dict[str, torch.Tensor]:
    return words(batch) | {"edges": torch.rand(batch, 6, 6)}


def codes(batch: int = 4) -> dict[str, torch.Tensor]:
    return {"ids": torch.randint(0, 20, (batch, 6, 3))}


def images(batch: int = 4) -> dict[str, torch.Tensor]:
    return {"input": torch.randn(batch, 3, 12, 12)}


def pairs(batch: int = 4) -> dict[str, torch.Tensor]:
    return {name: torch.randn(batch, 6, WIDTH) for name in ("a", "b")}


# network -> (how it is made, its inputs, the kinds of its groups)
STYLES = {
    "lists": (Lists, words, {"head", "neuron"}),
    "dicts": (Dicts, words, {"head", "neuron"}),
    "structs": (Structs, words, {"head", "neuron"}),
    "torch attention": (TorchAttention, words, {"head", "neuron"}),
    "unflatten": (Unflattened, words, {"head"}),
    "grouped": (Grouped, words, {"head"}),
    "reshaped": (Reshaped, words, {"head"}),
    "complex": (Complex, words, {"neuron"}),
    "siamese": (Siamese, pairs, {"head", "neuron"}),
    "pair": (Pair, pairs, {"head", "neuron"}),
    "instance norm": (Normalised, images, {"channel"}),
    "dataclass": (lambda: Returns(Answer, False), words, {"neuron"}),
    "namespace": (lambda: Returns(types.SimpleNamespace, False), words, {"neuron"}),
    "named heads": (lambda: Heads("heads"), words, {"head"}),
    "gains of heads": (lambda: Heads("count", (HEADS, 1, 2 * WIDTH // HEADS)), words, {"head"}),
    "graph": (Graph, words, {"head"}),
    "two attentions": (TwoAttentions, words, {"head"}),
    "tables": (Tables, codes, {"neuron"}),
    "both ways": (BothWays, words, {"neuron"}),
    "trunk": (Trunk, images, {"channel"}),
    "folded heads": (Folded, words, {"head"}),
    "square heads": (Square, words, {"head"}),
    "rotary": (Rotary, words, {"head"}),
    "graph convolution": (Convolution, graphs, {"neuron"}),
    "thirds": (Thirds, words, {"neuron"}),
}


@torch.inference_mode()
def run(model, batch):
    found = model(**batch)
    return found if isinstance(found, torch.Tensor) else found.logits


@pytest.mark.parametrize("name", STYLES)
def test_shrunk_equals_gated(name):
    make, inputs, kinds = STYLES[name]
    model, batch = shaken(make()), inputs()
    space = optin.describe(model, batch)
    assert {group.kind for group in space} == kinds
    keep = {group.name: tuple(range(group.size - group.size // 3)) for group in space}
    plan = Plan(space.architecture, space.sizes, keep, Cost(1, 1), Cost(1, 1), 1)
    with twinned(model), gated(model, space, masks(model, plan)):
        expected = run(model, batch)
    assert (expected - run(model, batch)).abs().max() > 0.01 * expected.abs().max(), "the plan must change something"
    shrink(model, space, plan)
    torch.testing.assert_close(run(model, batch), expected, atol=float(1e-4 * expected.abs().max()), rtol=0)


@pytest.mark.parametrize("name", STYLES)
def test_the_whole_job(name, tmp_path):
    make, inputs, _ = STYLES[name]
    model, batches = shaken(make()).train(), [inputs() for _ in range(4)]
    result = optin.prune(model, batches, "80%", recipe=RECIPE)
    assert result.plan.pruned.macs <= 0.8 * result.plan.dense.macs
    assert model.training and not any(module.training for module in result.model.modules())
    result.save(tmp_path / "small")
    assert "into=network" in (tmp_path / "small" / "README.md").read_text()
    loaded = optin.load(tmp_path / "small", into=make())
    assert torch.equal(run(loaded, batches[0]), run(result.model, batches[0]))


def test_a_network_that_is_made_otherwise_is_said_when_it_is_loaded(tmp_path):
    """Of the same tensors, with another number of heads, which nothing else would tell."""
    result = optin.prune(shaken(Square()), [words() for _ in range(4)], "80%", recipe=RECIPE)
    result.save(tmp_path / "small")
    other = Square()
    other.count = 2
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        optin.load(tmp_path / "small", into=Square())
        assert not said
        optin.load(tmp_path / "small", into=other)
    assert "answers otherwise than the network that was saved" in str(said[0].message)


def test_groups_that_one_map_reads_have_names_of_their_own():
    assert optin.describe(TwoAttentions(), words()).sizes == {"qkv.0.to.out": HEADS, "qkv.1.to.out": HEADS}
    assert optin.describe(Tables(), codes()).sizes["tables.0.to.mix"] == 12


def test_equal_parts_of_what_one_map_makes_stay_whole():
    space = optin.describe(shaken(Thirds()), words())
    assert space.sizes.keys() == {"parts.0.0", "parts.1.0", "parts.2.0", "parts.0.2"}
    assert {f"make.to.parts.{place}.0" for place in range(3)} <= set(space.whole)


class Differences(nn.Module):
    """All channels of one map leave together, heads lie in parameters of the network, a cell reads the third."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.one, self.two = nn.Parameter(torch.randn(WIDTH, 4, 4)), nn.Linear(16, 12), nn.Linear(11, 8)
        self.up, self.down, self.cell, self.head = nn.Linear(8, 9), nn.Linear(9, 8), nn.LSTM(8, 5), nn.Linear(5, 3)

    def forward(self, x):
        x = self.one(torch.einsum("btd,dhe->bthe", x, self.table).flatten(2)).relu()
        x = self.two(x[..., 1:] - x[..., :-1]).relu()
        return self.head(self.cell(x + self.down(self.up(x).relu()))[0].mean(1))


def test_what_stays_whole_says_why():
    whole = optin.describe(shaken(Differences()), words()).whole
    assert "leaves together" in whole["two"] and "nothing is seen" in whole["table"]
    assert all(reason.count("in 'cell'") == 1 for reason in whole.values() if "rnn" in reason)
    assert any("is not understood in 'cell'" in reason for reason in whole.values())


def test_a_weight_that_is_used_both_ways_stays_whole():
    space = optin.describe(BothWays(), words())
    assert space.sizes == {"up": INNER} and "no plain map" in space.whole["tied"]


@pytest.mark.parametrize("share", [0.95, 0.85, 0.66, 0.57, 0.48, 0.33])
def test_a_budget_holds_where_costs_grow_with_squares(share):
    model, batches = Trunk(), [images() for _ in range(4)]
    scores = optin.score(model, batches, recipe=RECIPE)
    for search in ("lagrange", "paper"):
        plan = optin.plan(model, scores, share, recipe=RECIPE.override(search=search))
        assert plan.pruned.macs <= share * plan.dense.macs


@pytest.mark.parametrize("kind", [Answer, types.SimpleNamespace, dict])
def test_what_an_object_returns_is_not_cut(kind):
    with pytest.raises(ArchitectureError, match="what the network returns"):
        optin.describe(Returns(kind, True), words())


class Nested(nn.Module):
    """One of its nested inputs is handed on beside what is compared."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Returns(Answer, False)

    def forward(self, batch):
        return Answer(self.net(batch["x"]).logits, batch["extra"][0] * 1.0)


def test_a_nested_input_that_is_handed_on_is_used():
    batches = [{"batch": {"x": torch.randn(4, 6, WIDTH), "extra": [torch.randn(4, 2)]}} for _ in range(4)]
    assert optin.prune(Nested(), batches, "80%", recipe=RECIPE).plan.pruned.macs > 0


def test_units_of_a_parametrised_layer_stay_whole_with_the_reason():
    """And a network of nothing else is refused with it."""
    net = nn.Sequential(weight_norm(nn.Linear(8, 16)), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))
    space = optin.describe(net, {"input": torch.randn(4, 8)})
    assert space.sizes == {"2": 16} and "computed in the forward" in space.whole["0"]
    with pytest.raises(ArchitectureError, match="computed in the forward"):
        optin.describe(net[:3], {"input": torch.randn(4, 8)})


class Opaque:
    __slots__ = ("logits",)

    def __init__(self, logits, hidden):
        self.logits = logits


def test_an_output_without_anything_to_see_is_refused():
    with pytest.raises(ArchitectureError, match="no tensor can be seen in what Returns returns, a Opaque"):
        optin.describe(Returns(Opaque, False), words())


class ReadsWeights(TorchAttention):
    """What the heads attend to on the mean goes on."""

    def forward(self, x):
        for attend, feed in self.layers:
            mixed, weights = attend(x, x, x)
            x = x + mixed * weights.amax(-1, keepdim=True)
            x = x + feed(x)
        return self.head(x.mean(1))


def test_attention_whose_weights_are_read_stays_whole():
    space = optin.describe(shaken(ReadsWeights()), words())
    assert {group.kind for group in space} == {"neuron"}
    assert {"layers.0.0.out_proj.heads", "layers.1.0.out_proj.heads"} <= set(space.whole)


class Paired(Returns):
    """Takes an even number of features."""

    def forward(self, x):
        hidden = F.relu(self.up(x))
        return self.head((x + self.down(hidden[..., : hidden.shape[-1] // 2 * 2])).mean(1))


@pytest.mark.parametrize("inner", [22, 24])
def test_a_width_that_must_be_even_is_tried_odd(inner):
    with pytest.raises(ArchitectureError, match="no count"):
        optin.describe(Paired(None, False, inner), words())


class Narrow(Returns):
    """Does something else from some width on."""

    def forward(self, x):
        hidden = F.relu(self.up(x))
        if hidden.shape[-1] < INNER // 2:
            hidden = hidden * 2
        return self.head((x + self.down(hidden)).mean(1))


def test_a_forward_that_depends_on_the_width_is_refused_by_name():
    with pytest.raises(optin.OptinError, match="exclude the modules that this is about"):
        optin.prune(shaken(Narrow(None, False)), [words() for _ in range(4)], "40%", recipe=RECIPE)
