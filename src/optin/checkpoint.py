"""Where the `modeling_optin.py` in folders that optin 0.1.0 wrote finds what it needs."""

from .storage.checkpoint import shrinking

__all__ = ["shrinking"]
