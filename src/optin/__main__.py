"""`python -m optin`."""

from .cli import main

main()
