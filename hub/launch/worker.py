"""One process of a run: `python -m hub.launch.worker RUN_FOLDER`. Reads run.yaml, calls the backend, writes how it ended.

The backend's training module is the first heavy import of the process, so that it decides in which order libraries come
(Unsloth must come before transformers).
"""

import inspect
import logging
import os
import shlex
import sys
import time
import traceback
import warnings
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from signal import Signals
from typing import Any

from hub.compose import runfile
from hub.config.bounds import use_bounds
from hub.config.schema import RunConfig
from hub.config.trust import machine_options
from hub.errors import LOST_CONNECTION, ConfigError, HubError, Interrupted, LaunchError, ModelError, PluginError, one_line
from hub.launch.ending import write_interrupted
from hub.launch.past_end import restore_end
from hub.plugins.offers import Backend
from hub.plugins.registry import ResolvedRun, registry, resolve
from hub.result import Outcome, Result
from hub.run import Failure, Run
from hub.secrets import without_secrets
from hub.system import timeline
from hub.system.cache import cache_dir
from hub.system.early import make_gpu_context, read_ahead, without_collector
from hub.system.saying import drop_what_nobody_reads, say_error
from hub.system.signals import end_process, end_with_parent, stop_request
from hub.system.small_files import may_pass

_OF_A_LOST_CONNECTION = ("Connection closed by peer", "Connection reset by peer", "Broken pipe", "remote process exited")
"""Words of the messages of gloo and NCCL. The type is RuntimeError, or below it, as of other errors."""


def work(resolved: ResolvedRun, run: Run) -> Result:
    """Run the task in this process and write result.json. In a group of processes only rank 0 writes it.

    Raises:
        Interrupted: a signal ended training early; what was reached is saved and in result.json.
        HubError: a user error, or a failure that was foreseen.
    """
    started = time.monotonic()
    stop_request.in_loop = False
    use_bounds(resolved.config.launch)
    # Where the package kernels is installed, transformers would fetch code from the model hub and run it.
    os.environ.setdefault("USE_HUB_KERNELS", "0")
    # Torch's own place for what it has compiled is the folder for temporary files, which is empty after a restart.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_dir() / "compiled"))
    cfg, algorithm, backend = resolved.config, resolved.algorithm, resolved.backend
    run.write_plan(algorithm=algorithm.name, backend=backend.name)

    def result(status: str, error: str | None = None, outcome: Outcome | None = None) -> Result:
        reached = {} if outcome is None else {name: value for name, value in vars(outcome).items() if name != "stopped_by"}
        return Result(
            status=status,
            algo=algorithm.name,
            backend=backend.name,
            model=cfg.model.path,
            run_path=run.path,
            seconds=round(time.monotonic() - started, 3),
            error=error,
            **reached,
        )

    observe = registry().observe
    try:
        outcome = _run_task(cfg, run, algorithm.name, backend)
    except BaseException as caught:
        stopped = _stopped_before_training(caught)
        stop_request.in_loop = True  # from here on a signal is only noted, so that result.json is written whole
        error = _cause(stopped, run) or _at_fault(_foreseen(_as_interrupted(stopped, run), cfg), cfg, run)
        status = "interrupted" if isinstance(error, Interrupted | KeyboardInterrupt) else "failed"
        reached = getattr(caught, "outcome", None)
        with suppress(OSError):  # a full disk may be why it failed, and the reason must not be lost
            if not restore_end(run):
                run.write_result(result(status, without_secrets(str(error)) or type(error).__name__, reached))
        if run.is_main:
            observe("hub_run_end", run=run, result=None, error=error)
        if error is caught:
            raise
        raise error from None
    if cfg.chosen_task.takes_steps:
        run.begin()  # a backend with a trainer of its own does not
    if outcome.stopped_by is not None:
        signal_name = Signals(outcome.stopped_by).name
        typed_again = (f"{name}={value}" for name, value in machine_options(cfg))  # a run's folder does not decide them
        command = f"To continue, type {shlex.join(['python', '-m', 'hub', f'resume={run.path}', *typed_again])}"
        if not run.has_checkpoint:
            command = "No checkpoint could be written"
        message = f"stopped by {signal_name} after step {outcome.num_steps}. {command}"
        final = result("interrupted", error=message, outcome=outcome)
    else:
        final = result(cfg.chosen_task.status, outcome=outcome)
    run.write_result(final)
    if run.is_main:
        _write_card(run)
        observe("hub_run_end", run=run, result=final, error=None)
    if outcome.stopped_by is not None:
        raise Interrupted(final.error or "", outcome.stopped_by)
    return final


def _write_card(run: Run) -> None:
    """Write the card of the model that was saved. A card that can't be written takes nothing from the model."""
    from hub.tasks.export.card import write_card_of_run

    with suppress(OSError):
        write_card_of_run(run.path)


def _cause(error: BaseException, run: Run) -> LaunchError | None:
    """The failure of another rank because of which this one ends: by a signal of its parent, or by a lost connection.

    A rank writes its failure to a file before it ends. A failure after a signal is not its cause, and an unforeseen failure may
    itself come from a lost connection.
    """
    first = next(iter(Failure.read_all(run)), None)
    if first is None or first.signal_number is not None:
        return None
    by_signal = isinstance(error, Interrupted) and first.time <= stop_request.time
    if not by_signal and (isinstance(error, HubError) or first.traceback is not None):
        return None
    cause = LaunchError(first.text)
    cause.exit_code = first.exit_code
    return cause


def _stopped_before_training(error: BaseException) -> BaseException:
    """The error, or the signal before training that it came of: a library may raise another in place of `Interrupted`."""
    number = stop_request.signal_number
    if number is None or stop_request.in_loop or isinstance(error, Interrupted):
        return error
    return Interrupted.before_training(number)


def _as_interrupted(error: BaseException, run: Run) -> BaseException:
    """The error, or the signal that stopped all ranks if another has ended for it already and this one has lost it."""
    first, number = next(iter(Failure.read_all(run)), None), stop_request.signal_number
    if isinstance(error, HubError) or number is None or first is None or first.signal_number is None:
        return error
    return Interrupted(f"stopped by {Signals(number).name}", number)


def _foreseen(error: BaseException, cfg: RunConfig | None = None) -> BaseException:
    """The error, or one line.

    Of a process that has ended, of which gloo and NCCL tell, of memory that ran out, and of a disk that is full or broken.
    """
    if isinstance(error, HubError) or not isinstance(error, Exception):
        return error
    if cfg is not None and "torch" in sys.modules:
        from hub.train.setup.less_memory import out_of_memory

        if (ended := out_of_memory(error, cfg)) is not None:
            return ended
    if isinstance(error, RuntimeError) and any(words in str(error) for words in _OF_A_LOST_CONNECTION):
        return LaunchError(LOST_CONNECTION)
    if may_pass(error) and not isinstance(error, TimeoutError):  # that is a network's
        what = one_line(error)
        return LaunchError(f"a disk is full or broken: {what}. Make room there, or type output_dir=FOLDER on another disk")
    return error


def _at_fault(error: BaseException, cfg: RunConfig, run: Run) -> BaseException:
    """The error, or one line: the run folder is gone, or a field of config.json makes the model fail before its first step."""
    if isinstance(error, FileNotFoundError) and not run.path.is_dir():
        return LaunchError(f"{run.path}: the run folder is gone, it was removed or renamed while the run was at work")
    path = run.plan().get("base_model_path")
    unforeseen = not isinstance(error, HubError) or (type(error) is ModelError and isinstance(error.__cause__, Exception))
    if path is None or not unforeseen or "torch" not in sys.modules or run.metrics_file.is_file():
        return error
    from hub.models.blame import field_at_fault

    try:
        return field_at_fault(cfg.model, Path(path), error) or error
    except Exception:
        return error  # which is what the user must see


def failure_of(rank: int, error: BaseException) -> Failure:
    """What a rank writes to its error file when an error ends it."""
    if isinstance(error, HubError):
        return Failure(
            rank=rank,
            message=str(error),
            exit_code=error.exit_code,
            time=time.time(),
            signal_number=error.signal_number if isinstance(error, Interrupted) else None,
            smaller_bound=getattr(error, "smaller_bound", None),
        )
    text = without_secrets("".join(traceback.format_exception(error)))
    message = without_secrets(one_line(error))
    return Failure(rank=rank, message=message, exit_code=1, time=time.time(), traceback=text)


def _run_task(cfg: RunConfig, run: Run, algorithm: str, backend: Backend) -> Outcome:
    """Prepare the setup, let the backend build its recipe, and run the task on it."""
    timeline.begin("imports")
    # tqdm complains in a notebook without ipywidgets. The hub shows its own table.
    warnings.filterwarnings("ignore", message="IProgress not found")
    build, task = backend.build, cfg.chosen_task
    with without_collector(freeze=cfg.launch.mode != "inline"):
        build_recipe, name = (_imported(build), build) if isinstance(build, str) else (build, f"{backend.algorithm}:build")
        check_takes_setup(build_recipe, name)

        from hub.recipe import Recipe
        from hub.tasks.evaluate.metrics import load_metrics, reader
        from hub.train.setup.setup import set_up

        run_task = _imported(task.function)
    reads = reader(load_metrics(cfg.evaluate.metrics if task.takes_steps else ()))
    setup = set_up(cfg, run, algorithm, registry().observe, reads)
    if setup.cfg.model.quantization != cfg.model.quantization and (problems := list(backend.problems(setup.cfg))):
        raise ConfigError(problems)  # of a model from the model hub it is known only now how it is stored
    timeline.begin("model")
    recipe = build_recipe(setup)
    if isinstance(recipe, Outcome) and task.takes_steps:
        return recipe  # the backend has a trainer of its own, which has done all
    if not isinstance(recipe, Recipe):
        raise PluginError(f"{name} must return hub.recipe.Recipe, not {recipe!r:.60}")
    outcome: Outcome = run_task(setup, recipe)
    return outcome


def check_takes_setup(function: Any, name: str) -> None:
    """Refuse a function that can't be called with the setup alone, before the setup takes its time.

    Raises:
        PluginError: it takes other arguments.
    """
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # it can't be looked into: the call will tell
        return
    try:
        signature.bind(object())
    except TypeError:
        raise PluginError(
            f"{name}{signature} can't be called with the setup alone. Write `def {name.rpartition(':')[2]}(setup)`, which "
            "returns a hub.recipe.Recipe"
        ) from None


def _imported(name: str) -> Any:
    module, _, function = name.partition(":")
    try:
        return getattr(import_module(module), function)
    except (ImportError, AttributeError) as error:
        raise PluginError(f"{name} can't be imported: {error}") from error


def _joined(run: Run) -> tuple[RunConfig, Run]:
    """What to run, and where: on several machines rank 0's config and folder, on one machine those that were given."""
    if int(os.environ.get("GROUP_WORLD_SIZE", "1")) == 1:
        return runfile.read(run.config_file), run
    from hub.parallel.group import broadcast_text, start_group

    start_group()
    shared = Path(broadcast_text(str(run.path)))
    text = broadcast_text(run.config_file.read_text(encoding="utf-8") if run.is_main else "")
    if not shared.is_dir():
        raise ConfigError(
            f"the run folder {shared} can't be seen here. Type output_dir=FOLDER on a disk that all machines share"
        )
    if shared != run.path:
        run.joined_file.write_text(str(shared), encoding="utf-8")
    return runfile.from_text(text), Run(shared, is_main=run.is_main)


def main(run_path: Path) -> int:
    """Run one worker to its end. Returns the exit code; a failure is written for the launcher to show."""
    rank = int(os.environ.get("RANK", "0"))
    run, spare_dir, minutes = Run(run_path, is_main=rank == 0), None, 0.0
    drop_what_nobody_reads()
    timeline.take_over(run.say if run.is_main else None)
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    try:
        stop_request.last_words = partial(_last_words, run)
        stop_request.install()
        end_with_parent()
        cfg, run_here = _joined(run)
        spare_dir = cfg.launch.spare_dir
        _begin_early(cfg)
        work(resolve(cfg), run_here)
        minutes = cfg.launch.wait_for_disk_minutes
        return 0
    except Exception as caught:
        error = _foreseen(_stopped_before_training(caught))
        failure = failure_of(rank, error)
        with suppress(OSError):
            run.write_failure(failure)
        if isinstance(error, Interrupted):
            with suppress(HubError, OSError):  # the launcher writes it, too
                write_interrupted(run, str(error))
        if not run.failure_file(rank).is_file():  # the launcher can't know it
            say_error(f"hub: {failure.message}")
        if failure.traceback is not None:
            say_error(failure.traceback)
        return failure.exit_code
    finally:
        timeline.close()
        if lost := run.write_what_waits(spare_dir, minutes):
            say_error(f"hub: {lost}")


def _begin_early(cfg: RunConfig) -> None:
    """Begin what needs no library, while these are imported."""
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    make_gpu_context(local_rank)
    if local_rank == 0 and os.path.isdir(cfg.model.path):
        read_ahead(Path(cfg.model.path))


def _last_words(run: Run, number: int) -> None:
    """Write how this process ends, before a signal ends it from outside its main thread. Takes the number of the signal."""
    error = Interrupted(f"stopped by {Signals(number).name}", number)
    run.write_failure(failure_of(int(os.environ.get("RANK", "0")), error))
    write_interrupted(run, str(error))


if __name__ == "__main__":
    end_process(main(Path(sys.argv[1])))
