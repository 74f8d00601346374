"""Small random networks: three layers, width 24, 4 heads of 6, 20 neurons."""

from __future__ import annotations

from typing import Any

import torch
import transformers
from torch import nn

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
HEADS = ("Model", "SequenceClassification", "TokenClassification", "QuestionAnswering", "MaskedLM")
EAGER_ONLY = ("mpnet", "deberta-v2", "deberta-v2-shared")


def build(
    architecture: str, head: str = "SequenceClassification", attention: str = "eager", **changes: Any
) -> nn.Module:
    """A random network in evaluation mode; weights large enough for differences to show."""
    prefix, options = ARCHITECTURES[architecture]
    name = f"{prefix}{head}" if head == "Model" else f"{prefix}For{head}"
    cls = getattr(transformers, name)
    labels = {"num_labels": 2} if head == "QuestionAnswering" else {}
    config = cls.config_class(**(options | labels | changes))
    config._attn_implementation = attention
    generator = torch.Generator().manual_seed(1)
    model = cls(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def tokens(model: nn.Module, batch: int = 4, length: int = 9, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random token ids; the second half of the batch is padded."""
    generator = torch.Generator().manual_seed(seed)
    padding = model.config.pad_token_id or 0
    ids = torch.randint(5, 60, (batch, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[batch // 2 :, length - 3 :] = 0
    ids[mask == 0] = padding
    return {"input_ids": ids, "attention_mask": mask}


WORDS = ("good", "fine", "bad", "awful", "film", "plot", "the", "a", "is", "not")


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
