"""`python -m optin`, and the command `optin`: nothing is imported before interrupts are taken care of."""

from .support.interrupts import handled


def main() -> None:
    """Run the command line."""
    with handled():
        from .app.cli import main as run

        run()


if __name__ == "__main__":
    main()
