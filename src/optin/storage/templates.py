"""The templates of what people read."""

from __future__ import annotations


def filled(name: str, /, **values: object) -> str:
    """A template by the name of its file, filled in. In HTML everything that is filled in is text."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    html = ".html" in name
    environment = Environment(
        loader=PackageLoader("optin", "storage"),
        undefined=StrictUndefined,
        autoescape=html,
        trim_blocks=html,
        keep_trailing_newline=not html,
    )
    text: str = environment.get_template(name).render(**values)
    return text
