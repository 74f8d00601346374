"""Lets the Auto classes of transformers load a pruned network (trust_remote_code=True): lies beside its weights.

Needs the package: pip install optin. `optin.load(folder)` does the same and runs no code of this folder.
"""


def __getattr__(name: str) -> object:
    """The class of transformers of that name, whose objects are cut to the plan in their config.json."""
    from optin.checkpoint import shrinking
    from optin.errors import ArchitectureError

    try:
        return shrinking(name)
    except ArchitectureError as error:
        raise AttributeError(str(error)) from None
