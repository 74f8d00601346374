"""YAML that people write, read strictly: no key twice, no references, no tags, numbers as they are written."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path

import yaml

from ..errors import CheckpointError, InputError, first_line
from .files import DEEPEST, DIGITS, read_text
from .untyped import Figures, Json

LARGEST = 2**20  # bytes


class _Strict(yaml.SafeLoader):
    """The safe loader of PyYAML with numbers as in YAML 1.2 and without dates."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Json]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key.start_mark)
            if key.value in seen:
                words = f"the option {key.value[:60]!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, words, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


_NUMBERS = {
    "tag:yaml.org,2002:int": re.compile(rf"[-+]?(0|[1-9][0-9]{{0,{DIGITS}}})"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?([0-9]+\.[0-9]*|\.[0-9]+|[0-9]+(?=[eE]))([eE][-+]?[0-9]{1,4})?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
    ),
}
_REPLACED = (*_NUMBERS, "tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:merge", "tag:yaml.org,2002:value")
_Strict.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in found if tag not in _REPLACED]
    for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
for _tag, _pattern in _NUMBERS.items():
    _Strict.add_implicit_resolver(_tag, re.compile(f"(?:{_pattern.pattern})$"), list("-+.0123456789"))


def read_options(path: Path) -> Figures:
    """A mapping of options to values.

    Raises:
        InputError: no file that can be read, not YAML, or YAML beyond plain mappings, lists and words.
    """
    try:
        text = read_text(path, LARGEST, "YAML")
        _check_events(text)
        data = yaml.load(text, Loader=_Strict)
    except InputError as error:
        raise InputError(f"cannot read the recipe {str(path)[:200]}: {error}") from None
    except (CheckpointError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise InputError(f"the recipe {path} is not YAML that optin reads: {_said(error)}") from None
    if not isinstance(data, dict):
        raise InputError(f"the recipe {path} must be a mapping of options to values.")
    return data


def _check_events(text: str) -> None:
    """Before anything is built: what a recipe has no use for, and what could grow."""
    depth = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        line = event.start_mark.line + 1 if event.start_mark else 0
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None):
            raise ValueError(f"line {line}: references (& and *) are not read")
        if tag := getattr(event, "tag", None):
            raise ValueError(f"line {line}: the tag {tag!r:.60} is not read")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"line {line}: more than {DEEPEST} levels")


def _said(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return first_line(error)
    return f"line {mark.line + 1}: {getattr(error, 'problem', None) or getattr(error, 'context', None)}"
