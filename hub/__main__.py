"""`python -m hub`, and the console script `hub`."""

from typing import NoReturn

from hub.cli.main import main
from hub.system.signals import end_process


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    end_process(main())


if __name__ == "__main__":
    run()
