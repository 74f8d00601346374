"""Whether a tokenizer is the network's: its vocabulary fits the embeddings, and it knows the words of the texts.

transformers makes an empty tokenizer where a folder has none. Every word is then unknown, and every figure wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from ..errors import InputError
from ..support.untyped import Foreign
from .data import Examples

# Checkpoints pad their embeddings to round numbers, and a few keep rows of languages that the tokenizer lost; none
# has ten times the rows that its tokenizer can name.
LEAST = 0.1  # ordinary tokens over rows of embeddings
UNKNOWN = 0.2  # share of the tokens of the texts
CHECKED = 256  # texts at most whose tokens are counted


def check_files(folder: Path, tokenizer: object) -> None:
    """Refuse a tokenizer that was made of nothing.

    Raises:
        InputError: no file of the folder holds a vocabulary, and tokenizers of this kind have one.
    """
    names = set(getattr(tokenizer, "vocab_files_names", {}).values())
    if names and not any((folder / name).is_file() for name in {*names, "tokenizer.json"}):
        raise InputError(
            f"{folder} holds no tokenizer ({', '.join(sorted(names))}): put the files of the network's own there, "
            "with tokenizer.save_pretrained(folder)."
        )


def check_vocabulary(model: nn.Module, tokenizer: Foreign) -> None:
    """Refuse a tokenizer with more tokens than the network has embeddings, or with hardly any of them.

    Raises:
        InputError: says both numbers.
    """
    rows = rows_of(model)
    if rows is None:
        return
    tokens = tokenizer.get_vocab()
    highest = max(tokens.values(), default=-1)
    if highest >= rows:
        raise InputError(
            f"the tokenizer has {highest + 1:,} tokens and the network {rows:,} embeddings: "
            "it is another network's. Put the network's own beside it."
        )
    ordinary = len(tokens.keys() - set(tokenizer.all_special_tokens))
    # Tokenizers of bytes have no list of tokens.
    if ordinary < LEAST * rows and getattr(tokenizer, "vocab_files_names", None):
        raise InputError(
            f"the tokenizer has {ordinary:,} tokens beside its special ones and the network {rows:,} embeddings: it "
            "is empty, or another network's. Put the network's own beside it."
        )


def check_texts(tokenizer: Foreign, examples: Examples, indices: Sequence[int]) -> None:
    """Refuse a tokenizer that does not know the texts.

    Args:
        indices: of the examples to look at; the first `CHECKED` are.

    Raises:
        InputError: more than a fifth of the tokens are unknown ones.
    """
    unknown = getattr(tokenizer, "unk_token_id", None)
    special = set(getattr(tokenizer, "all_special_ids", ()))
    others = {getattr(tokenizer, f"{name}_token_id", None) for name in ("pad", "bos", "eos", "cls", "sep")}
    if unknown is None or unknown in others:  # tokenizers of bytes know all texts
        return
    part = examples.select(indices[:CHECKED])
    words = isinstance(part.texts[0], list | tuple)
    found = tokenizer(part.texts, part.pairs, is_split_into_words=words, truncation=True, max_length=512)["input_ids"]
    tokens = [token for row in found for token in row if token == unknown or token not in special]
    strange = tokens.count(unknown)
    if strange > UNKNOWN * len(tokens):
        raise InputError(
            f"the tokenizer does not know {strange:,} of the {len(tokens):,} tokens of {len(part):,} texts: it is "
            "not the network's, or the texts are in a language that the network was not trained on."
        )


def rows_of(model: object) -> int | None:
    """Tokens that a network has embeddings of; None where it does not say."""
    config = getattr(model, "config", None)
    rows = getattr(getattr(config, "text_config", config), "vocab_size", None)
    return rows if isinstance(rows, int) else None
