"""`python -m hub`, and the console script `hub`."""

from typing import NoReturn

from hub.system.interrupt import end_interrupted, one_line_on_interrupt


def run() -> NoReturn:
    """Run the command line, and end the process with its exit code."""
    try:
        with one_line_on_interrupt():
            from hub.cli.main import main
            from hub.system import timeline
            from hub.system.signals import end_process
        timeline.start(timeline.process_started())
        end_process(main())
    except KeyboardInterrupt:
        end_interrupted()


if __name__ == "__main__":
    run()
