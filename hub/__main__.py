"""`python -m hub`, and the console script `hub`."""

import sys
from typing import NoReturn

from hub.system.interrupt import EXIT_CODE, one_line_on_interrupt, print_stopped


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    try:
        with one_line_on_interrupt():
            from hub.cli.main import main
            from hub.system.signals import end_process
        exit_code = main()
        # Where Ctrl-C came within code run by exec, as in namedtuple, CPython ends with the signal at last, though it was
        # handled (`_Py_UnhandledKeyboardInterrupt`). Any other code run by exec makes it forget that.
        exec("")
        end_process(exit_code)
    except KeyboardInterrupt:
        print_stopped()
        sys.exit(EXIT_CODE)


if __name__ == "__main__":
    run()
