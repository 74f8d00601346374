"""Small random networks: three layers, width 24, 4 heads of 6, 20 neurons."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import transformers
from torch import nn

from optin.accounting import costs
from optin.describing import describe
from optin.space.plans import Cost, Plan
from optin.storage.timm_models import create

_COMMON = {
    "vocab_size": 60,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "num_labels": 3,
}
_DISTILBERT = {
    "vocab_size": 60,
    "dim": 24,
    "n_layers": 3,
    "n_heads": 4,
    "hidden_dim": 20,
    "max_position_embeddings": 40,
    "num_labels": 3,
}
_DEBERTA = {
    "relative_attention": True,
    "pos_att_type": ["c2p", "p2c"],
    "position_biased_input": False,
    "position_buckets": 8,
    "max_relative_positions": -1,
    "norm_rel_ebd": "layer_norm",
    "conv_kernel_size": 3,
}

# architecture -> (prefix of its classes, options of its configuration)
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("Bert", _COMMON),
    "roberta": ("Roberta", _COMMON),
    "xlm-roberta": ("XLMRoberta", _COMMON),
    "camembert": ("Camembert", _COMMON),
    "electra": ("Electra", _COMMON | {"embedding_size": 12}),
    "distilbert": ("DistilBert", _DISTILBERT),
    "mpnet": ("MPNet", _COMMON),
    "albert": ("Albert", _COMMON | {"embedding_size": 12}),
    "albert-grouped": ("Albert", _COMMON | {"embedding_size": 12, "num_hidden_groups": 2, "inner_group_num": 2}),
    "deberta-v2": ("DebertaV2", _COMMON | _DEBERTA),
    "deberta-v2-shared": ("DebertaV2", _COMMON | _DEBERTA | {"share_att_key": True, "conv_kernel_size": 0}),
}
_VIT = {
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 20,
    "image_size": 16,
    "patch_size": 4,
    "num_labels": 3,
}
_SWIN = {
    "image_size": 32,
    "patch_size": 2,
    "embed_dim": 12,
    "depths": [1, 2, 1],
    "num_heads": [2, 4, 4],
    "window_size": 4,
    "num_labels": 3,
}
_TEXT_TOWER = {key: _COMMON[key] for key in _COMMON if key not in ("type_vocab_size", "num_labels")}
_TEXT_TOWER |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 4}
_TOWERS = {"vision_config": _VIT, "text_config": _TEXT_TOWER, "projection_dim": 10, "num_labels": 3}

# architecture -> (prefix of its classes, options of its configuration, heads)
VISION: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "vit": ("ViT", _VIT, ("Model", "ImageClassification")),
    "deit": ("DeiT", _VIT, ("Model", "ImageClassification", "ImageClassificationWithTeacher")),
    "dinov2": ("Dinov2", _VIT | {"mlp_ratio": 1}, ("Model", "ImageClassification")),
    "dinov2-gated": ("Dinov2", _VIT | {"use_swiglu_ffn": True}, ("Model", "ImageClassification")),
    "dinov2-registers": ("Dinov2WithRegisters", _VIT | {"mlp_ratio": 1}, ("Model", "ImageClassification")),
    "beit": ("Beit", _VIT | {"use_relative_position_bias": True}, ("Model", "ImageClassification")),
    "beit-shared": (
        "Beit",
        _VIT | {"use_relative_position_bias": True, "use_shared_relative_position_bias": True},
        ("ImageClassification",),
    ),
    "swin": ("Swin", _SWIN, ("Model", "ImageClassification")),
    "swinv2": ("Swinv2", _SWIN, ("Model", "ImageClassification")),
    "clip": ("CLIP", _TOWERS, ("Model", "ImageClassification")),
    "clip-vision": ("CLIP", _VIT | {"projection_dim": 10}, ("VisionModel", "VisionModelWithProjection")),
    "clip-text": ("CLIP", _TEXT_TOWER | {"projection_dim": 10}, ("TextModel", "TextModelWithProjection")),
    "siglip": ("Siglip", _TOWERS, ("Model", "ImageClassification")),
    "siglip-vision": ("Siglip", _VIT, ("VisionModel",)),
    "siglip-text": ("Siglip", _TEXT_TOWER, ("TextModel",)),
}
_TIMM = {"img_size": 16, "embed_dim": 24, "num_heads": 4, "mlp_ratio": 1, "num_classes": 3}
# architecture -> (name of the model, what it is created with)
TIMM: dict[str, tuple[str, dict[str, Any]]] = {
    "timm-vit": ("vit_tiny_patch16_224", _TIMM | {"patch_size": 4, "depth": 3}),
    "timm-deit": ("deit_tiny_distilled_patch16_224", _TIMM | {"patch_size": 4, "depth": 3}),
    "timm-deit3": ("deit3_small_patch16_224", _TIMM | {"patch_size": 4, "depth": 3, "init_values": 0.5}),
    "timm-swin": (
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 4,
            "embed_dim": 12,
            "depths": (2, 2),
            "num_heads": (2, 4),
            "num_classes": 3,
        },
    ),
}
HEADS = ("Model", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
HEADS_OF = (
    dict.fromkeys(ARCHITECTURES, HEADS)
    | dict.fromkeys(TIMM, ("timm",))
    | {name: heads for name, (_, _, heads) in VISION.items()}
)
# One of every kind, for what is slow: plain, shared blocks, relative positions, windows, two towers, another library.
REPRESENTATIVE = (
    "bert",
    "albert-grouped",
    "deberta-v2",
    "distilbert",
    "vit",
    "dinov2-gated",
    "beit-shared",
    "swin",
    "clip",
    "timm-vit",
)
EAGER_ONLY = ("mpnet", "deberta-v2", "deberta-v2-shared", "swinv2", "timm-swin")


def build(architecture: str, head: str | None = None, attention: str = "eager", **changes: Any) -> nn.Module:
    """A random network in evaluation mode, a classifier by default; weights large enough for differences to show."""
    if architecture in TIMM:
        name, arguments = TIMM[architecture]
        model = create(name, **arguments)
        for attention_module in (module for module in model.modules() if hasattr(module, "fused_attn")):
            attention_module.fused_attn = attention == "sdpa"
        return shaken(model)
    head = head or HEADS_OF[architecture][1 if len(HEADS_OF[architecture]) > 1 else 0]
    prefix, options = (VISION[architecture] if architecture in VISION else ARCHITECTURES[architecture])[:2]
    name = f"{prefix}{head}" if "Model" in head else f"{prefix}For{head}"
    cls = getattr(transformers, name)
    labels = {"num_labels": 2} if head == "QuestionAnswering" else {}
    config = cls.config_class(**(options | labels | changes))
    config._attn_implementation = attention
    return shaken(cls(config))


def shaken(model: nn.Module) -> nn.Module:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def inputs(model: nn.Module, batch: int = 4, seed: int = 0) -> dict[str, torch.Tensor]:
    """What a network takes: images, tokens of which some are padding, or both."""
    names = inspect.signature(model.forward).parameters
    found = tokens(model, batch, seed=seed) if "input_ids" in names else {}
    if "pixel_values" in names:
        config = getattr(model.config, "vision_config", model.config)
        generator = torch.Generator().manual_seed(seed)
        found["pixel_values"] = torch.randn(batch, 3, config.image_size, config.image_size, generator=generator)
    if "x" in names:
        found["x"] = torch.randn(batch, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(seed))
    return found


def tokens(model: nn.Module, batch: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids; the second half of the batch is padded."""
    generator = torch.Generator().manual_seed(seed)
    padding = getattr(model.config, "pad_token_id", None) or 0
    ids = torch.randint(5, 60, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[batch // 2 :, length - 3 :] = 0
    ids[mask == 0] = padding
    return {"input_ids": ids, "attention_mask": mask}


# Names of the groups of BERT with a head.
ATTENTION = [f"bert.encoder.layer.{index}.attention.output.dense.heads" for index in range(3)]
NEURONS = [f"bert.encoder.layer.{index}.intermediate.dense" for index in range(3)]
WORDS = ("good", "fine", "bad", "awful", "film", "plot", "the", "a", "is", "not")


def plan_of(
    model: nn.Module, keep: Mapping[str, Sequence[int]], length: int = 16, tokens: tuple[int, ...] = ()
) -> Plan:
    """A plan by hand, with its true costs."""
    space = describe(model)
    macs, parameters = costs(model, space, length)
    kept = {name: len(units) for name, units in keep.items()}
    dense, pruned = Cost(macs.dense, parameters.dense), Cost(macs.merged(tokens)(kept), parameters(kept))
    units = {name: tuple(chosen) for name, chosen in keep.items()}
    return Plan(space.architecture, space.sizes, units, dense, pruned, length, tokens=tokens)


def tokenizer() -> Any:
    """Words of ten kinds, ids 5 and up, with the special tokens of BERT."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {name: index for index, name in enumerate(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        model_max_length=40,
    )
