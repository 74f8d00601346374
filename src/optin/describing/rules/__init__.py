"""What each operation does with labels; to teach one, `@rule("name")`."""

from . import axes, entries, maps, moving
from .table import RULES, rule, rule_of

__all__ = ["RULES", "axes", "entries", "maps", "moving", "rule", "rule_of"]
