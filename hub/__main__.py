"""`python -m hub`, and the console script `hub`."""

from typing import NoReturn

from hub.cli import main
from hub.signals import end_process


def run() -> NoReturn:
    """Run the command line of this process and end it."""
    end_process(main())


if __name__ == "__main__":
    run()
