"""`python -m optin`, and the command `optin`: nothing is imported before interrupts are taken care of."""

from .interrupts import handled


def main() -> None:
    """Run the command line."""
    with handled():
        from .cli import main as run

        run()


if __name__ == "__main__":
    main()
