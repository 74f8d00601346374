"""Where the `modeling_optin.py` in every folder that optin wrote finds what it needs: this name does not change."""

from .storage.planned import shrinking

__all__ = ["shrinking"]
