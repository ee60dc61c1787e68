"""Resume a stopped run, and check in advance that the disk has room for its checkpoints."""

import errno
import os
import shlex
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hub.config.option import leaves
from hub.config.schema import AlgoConfig, RunConfig
from hub.data.samples.sample import fingerprint
from hub.errors import ConfigError, DataError, HubError, LaunchError
from hub.parallel.group import barrier, broadcast_text
from hub.parallel.optimizer_state import group_numbers, restore_groups
from hub.parallel.sharded_tensors import local_tensor
from hub.result import Result
from hub.run import Run
from hub.system.memory import three_of_each
from hub.train.checkpoints.checkpoint import checkpoints, damage, load_checkpoint, newest_valid, read_state
from hub.train.checkpoints.set_aside import go_on_from
from hub.train.setup.setup import Setup

FIXED = {
    "algo.best_by": "What was the best so far is a value of the other",
    "model.new_token_init": "The rows of new tokens have their start from the other",
    "data.streaming": "How far the run is in its data is known for the other only",
    "data.shuffle_window": "How far the run is in its stream is known for the other only",
}
"""Options that a resumed run can't change, with the reason. An algorithm has more: `fixed_on_resume`."""


class Resumed(NamedTuple):
    """What a run goes on from."""

    checkpoint: Path
    state: dict[str, Any]
    """Its state.json."""

    changes: dict[str, tuple[str, str]]
    """Options that changed -> their values then and now."""

    same_evaluation: bool
    """Whether the evaluation set is the one of the checkpoint, so that its losses can be compared with those to come."""

    def refuse_complete(self, cfg: RunConfig, run: Run) -> None:
        """Refuse to resume a run that was complete, once it is known that it is so by the options of now, too.

        Raises:
            ConfigError: it has nothing left to train.
        """
        if run.end_before.is_file() and Result.read(run.end_before).status == "completed":
            raise ConfigError(
                f"resume={cfg.resume}: this run is complete after {self.state['step']} steps, and no more are asked for. Type "
                "a larger algo.num_epochs or algo.max_steps, for a run that ended early a larger algo.early_stopping_patience"
            )


def resume(setup: Setup, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Resumed:
    """Load the checkpoint that `resume` names: a checkpoint folder, or the newest valid one of a run folder.

    The hyperparameters of the optimizer stay those of this run's options. An optimizer of another kind begins without state.
    Later checkpoints of the run are set aside.

    Args:
        setup: config, run folder, processes.
        model: receives the weights.
        optimizer: receives its state. The learning rate of the next step is set by `restore_schedule`.

    Raises:
        ConfigError: there is no valid checkpoint, or something changed that may not.
    """
    cfg, run, source = setup.cfg, setup.run, setup.source
    checkpoint = Path(broadcast_text(str(_find(Path(str(cfg.resume)), run)) if run.is_main else ""))
    if checkpoint == Path("."):
        raise ConfigError(
            f"resume={cfg.resume}: there is no valid checkpoint. Start a new run without resume, with algo.save_every_steps=N"
        )
    state = read_state(checkpoint)
    same_evaluation = state.get("evaluation_data", fingerprint(setup.data.evaluation)) == fingerprint(setup.data.evaluation)
    if not cfg.resume_with_changes:
        changed = []
        if state["data"] != source.fingerprint:
            changed.append("the training data (other rows, order, lengths or chat template)")
        if not same_evaluation:
            changed.append("the evaluation set")
        if state["num_steps"] != source.total:
            changed.append(f"the number of steps ({state['num_steps']} then, {source.total} now)")
        if changed:
            raise ConfigError(
                f"resume={cfg.resume}: {' and '.join(changed)} changed since the run began. "
                "Undo that, or type resume_with_changes=true"
            )
    changes = _changed_options(state.get("options", {}), options_of(cfg))
    if fixed := [_words(name, change) for name, change in changes.items() if name in fixed_names(cfg)]:
        raise ConfigError(
            f"resume={cfg.resume}: {'; '.join(fixed)}. The numbers in {checkpoint} mean something else under that. Undo it, or "
            "start a new run without resume"
        )
    if fixed := [f"{_words(name, changes[name])}. {why}" for name, why in FIXED.items() if name in changes]:
        raise ConfigError(f"resume={cfg.resume}: {'; '.join(fixed)}. Undo it, or start a new run without resume")
    if state["step"] > source.total:
        raise ConfigError(
            f"resume={cfg.resume}: {source.total} steps are asked for, and {checkpoint} is of step {state['step']}. Type a "
            "larger algo.max_steps or algo.num_epochs, or an earlier checkpoint"
        )
    asked, same = group_numbers(optimizer), {"algo.optimizer", "algo.seed"} - changes.keys()
    with_optimizer, with_random = "algo.optimizer" in same, "algo.seed" in same
    load_checkpoint(checkpoint, setup.session, model, optimizer, with_optimizer, with_random)
    restore_groups(optimizer, asked)
    run.say(f"resuming after step {state['step']} from {checkpoint}")
    barrier()  # all ranks have read it
    if run.is_main:
        checkpoint = go_on_from(checkpoint, state["step"], run)
    checkpoint = Path(broadcast_text(str(checkpoint)))
    if changes:
        words = "; ".join(_words(name, change) for name, change in changes.items())
        run.say(f"options changed since step {state['step']}: {words}")
    if "algo.optimizer" in changes:
        run.say("the new optimizer begins without moments; weights and schedule continue")
    if not same_evaluation:
        run.say("the evaluation set changed: its losses are not compared with those before")
    return Resumed(checkpoint, state, changes, same_evaluation)


def options_of(cfg: RunConfig) -> dict[str, str]:
    """The options on which the result of a run depends, by full name, as texts: a checkpoint has them."""
    return {name: str(value) for name, value, *_ in leaves(cfg) if name.partition(".")[0] in ("algo", "model", "data")}


def fixed_names(cfg: RunConfig) -> set[str]:
    """The full names of the algorithm's options that a resumed run can't change."""
    return {f"algo.{name}" for name in type(cfg.algo).fixed_on_resume}


def _words(name: str, change: tuple[str, str]) -> str:
    return f"{name}: {change[0]} then, {change[1]} now"


def _changed_options(before: dict[str, str], now: dict[str, str]) -> dict[str, tuple[str, str]]:
    """Name of an option -> its values then and now. Options that only one of the two has are left out."""
    return {name: (before[name], now[name]) for name in now if before.get(name, now[name]) != now[name]}


def ended_by_row(error: DataError, step: int, checkpoint: Path | None, run: Path) -> str:
    """The message of a run on a stream that a row ended, with what to type.

    Args:
        error: about the row.
        step: the last step.
        checkpoint: what was saved. None: it could not be written.
        run: the run folder.
    """
    if checkpoint is None:
        return f"{error}. The run ended after step {step}, and no checkpoint could be written"
    command = f"python -m hub {shlex.quote(f'resume={run}')}"
    return (
        f"{error}. The run ended after step {step}, and all of it is saved: {checkpoint}. To go on without such rows type "
        f"{command} data.on_bad_row=skip. Once the row is corrected, type {command} resume_with_changes=true"
    )


def ended_by_disk(error: BaseException, step: int, run: Run) -> LaunchError | None:
    """The error of a run that can't write into its folder any more, with what to type. None for errors of another kind.

    Args:
        error: what was raised.
        step: the last step.
        run: the run folder.
    """
    if isinstance(error, HubError):
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO):
        reason = error.strerror
    elif os.strerror(errno.ENOSPC) in str(error):  # safetensors raises its own exception
        reason = os.strerror(errno.ENOSPC)
    else:
        return None
    again = "start again with more room, or with output_dir=FOLDER on another disk"
    if saved := checkpoints(run.checkpoints_path):
        again = f"to continue from {saved[-1]} make room and type python -m hub resume={run.path}"
    return LaunchError(f"output_dir={run.path.parent}: can't write there ({reason}). The run ended after step {step}; {again}")


def _find(place: Path, run: Run) -> Path | str:
    if (place / "state.json").is_file():
        if problem := damage(place):
            raise ConfigError(f"resume={place}: this checkpoint is damaged: {problem}. Type resume={run.path}")
        return place
    return newest_valid(place / "checkpoints", run.say) or ""


def saves_while_training(algo: AlgoConfig) -> bool:
    """Whether there will be checkpoints before the end of training."""
    return algo.saves_regularly or algo.keep_best


def sizes_on_disk(setup: Setup, model: torch.nn.Module) -> tuple[int, int]:
    """Bytes that the saved model takes, and a checkpoint."""
    trained = [p for p in model.parameters() if p.requires_grad]
    is_adapter = any(not p.requires_grad for p in model.parameters())
    saved_model = sum(p.numel() for p in trained) * (4 if is_adapter else setup.session.compute_dtype.itemsize)
    return saved_model, saved_model + three_of_each(trained)


def check_disk(setup: Setup, model: torch.nn.Module) -> None:
    """Report the size of checkpoints, and refuse a run that the disk has no room for.

    Raises:
        ConfigError: the disk is too small for the model and the checkpoints to keep.
    """
    algo, run = setup.cfg.algo, setup.run
    if not run.is_main:
        return
    trained = [p for p in model.parameters() if p.requires_grad]
    saved_model, checkpoint = sizes_on_disk(setup, model)
    saves = saves_while_training(algo)
    # A new one is written before the oldest is removed, and the best one is kept too.
    needed = saved_model + (checkpoint * (algo.keep_checkpoints + 2) if saves else 0)
    free = shutil.disk_usage(run.path).free
    if saves:
        copied = three_of_each(local_tensor(p) for p in trained)
        run.say(
            f"a checkpoint takes about {_size(checkpoint)}; the {algo.keep_checkpoints} newest and the best are kept. "
            f"It is written while training continues, from a copy of {_size(copied)} in CPU memory"
        )
    if needed > free:
        raise ConfigError(
            f"output_dir={run.path.parent} has {free / 2**30:.1f} GB free, the run needs about {needed / 2**30:.1f} GB. "
            "Type output_dir=FOLDER on a larger disk, a smaller algo.keep_checkpoints, or save less often"
        )


def _size(num_bytes: float) -> str:
    """In GB of 2**30 bytes; of less than a tenth of one, in MB."""
    return f"{num_bytes / 2**30:.2f} GB" if num_bytes >= 0.1 * 2**30 else f"{num_bytes / 2**20:.1f} MB"
