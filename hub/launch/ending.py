"""The result of a run that a signal ended before its worker could write one. Nothing here imports torch."""

from hub.compose import runfile
from hub.plugins.registry import registry
from hub.result import Result
from hub.run import Run
from hub.system.small_files import small_files


def write_interrupted(run: Run, message: str) -> None:
    """Write result.json with the status `interrupted`, unless the run has a result.

    The launcher writes it too, but it may have been killed: whoever of a run's processes ends last leaves a result.

    Args:
        run: the run folder. Nothing is written if this is not its main process.
        message: what ended the run.

    Raises:
        HubError: run.yaml can't be read.
        OSError: the folder can't be written.
    """
    if not run.is_main or run.result_file.is_file() or small_files.latest(run.result_file) is not None:
        return
    cfg = runfile.read(run.config_file)
    run.write_result(
        Result(
            status="interrupted",
            algo=registry().algorithm_of(cfg.algo).name,
            backend=cfg.algo.backend,
            model=cfg.model.path,
            run_path=run.path,
            error=message,
            **run.reached(),
        )
    )
