"""`python -m hub`, and the console script `hub`."""

from typing import NoReturn

from hub.cli.main import main
from hub.system.signals import end_process


def run() -> NoReturn:
    """Run the command line of this process and end it."""
    end_process(main())


if __name__ == "__main__":
    run()
