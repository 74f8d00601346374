"""Classes as a network names them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

from ..errors import InputError


def class_names(config: object) -> dict[str, int]:
    """Class indices by name as the configuration spells it, and in small letters where these name one class alone.

    Raises:
        InputError: the configuration's `label2id` is no such table.
    """
    table = getattr(config, "label2id", None) or {}
    if not isinstance(table, Mapping) or not all(type(index) is int for index in table.values()):
        raise InputError("the network's configuration must map class names to numbers in 'label2id'.")
    names = {str(name).strip(): index for name, index in table.items()}
    count = Counter(name.lower() for name in names)
    return {name.lower(): index for name, index in names.items() if count[name.lower()] == 1} | names
