"""Resume: the config and the folder of an earlier run, and the check that the options are still the same."""

import os
import shlex
import tempfile
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from hub.compose import runfile
from hub.config.data import DataConfig
from hub.config.option import AUTO, leaves
from hub.config.schedule import ADAPTIVE
from hub.config.schema import AlgoConfig, RunConfig
from hub.config.trust import RUN_CODE
from hub.errors import ConfigError, can_not_write
from hub.launch.foreign_run import check_links, without_machine
from hub.launch.lock import hold, release
from hub.launch.past_end import forget_all, forget_end, has_ended
from hub.models.finished import run_of_checkpoint
from hub.plugins.registry import ResolvedRun
from hub.run import ASKED_FOR, Run
from hub.system.files import write_text

MAY_CHANGE = {
    "algo.log_every_steps",
    "algo.eval_every_steps",
    "algo.save_every_steps",
    "algo.save_every_epochs",
    "algo.keep_checkpoints",
    "algo.max_tokens_per_gpu",
    "algo.gradient_checkpointing",
    "algo.torch_compile",
    "model.notes",
    "data.on_bad_row",
}
"""Options of algo, model and data that do not change the result."""

RESUME_OPTIONS = {"resume", "resume_with_changes", "output_dir", "run_name", "data.on_bad_row"}
"""Options that may be set when all others come from the run to resume."""


def config_to_run(cfg: RunConfig) -> RunConfig:
    """The config to run: that of the run to resume if `resume` is set and no algorithm is chosen, else `cfg`.

    Raises:
        ConfigError: there is no such run, or an option can't be combined with it.
    """
    if not cfg.resume:
        return cfg
    if not (task := cfg.chosen_task).takes_steps:
        raise ConfigError(
            f"resume={cfg.resume}: {task.name} trains nothing, so there is nothing to resume. "
            f"To {task.name} on trained weights type model.path=RUN_FOLDER/model"
        )
    folder, start = _folders(cfg)
    before = runfile.read(folder / "run.yaml")
    if not before.chosen_task.takes_steps:
        status = before.chosen_task.status
        raise ConfigError(f"resume={cfg.resume}: {folder} was {status}, not trained. Name the folder of a training run")
    cfg = replace(cfg, resume=str(start))
    if type(cfg.algo) is not AlgoConfig:
        date = before.data.date if cfg.data.date == AUTO else cfg.data.date
        return replace(cfg, data=replace(cfg.data, date=date))
    # These options run code, and a run folder may come from anywhere.
    typed_now = {name: value for name, value, *_ in leaves(cfg)}
    values = [(name, value) for name, value, *_ in leaves(before) if name in RUN_CODE and value and value != typed_now[name]]
    untrusted = [f"{name}={'true' if value is True else value}" for name, value in values]
    untrusted += [option for option in before.evaluate.code if option not in cfg.evaluate.code]
    if untrusted:
        raise ConfigError(
            f"resume={cfg.resume}: that run had {' '.join(untrusted)}, which runs code and is not taken from its folder. "
            "If you trust it, type it again with resume"
        )
    if cfg.data.on_bad_row != DataConfig().on_bad_row:
        before = replace(before, data=replace(before.data, on_bad_row=cfg.data.on_bad_row))
    typed = {name: value for name, value, default, _ in leaves(cfg) if value != default}
    allowed = RESUME_OPTIONS | ({"model.trust_remote_code"} if before.model.trust_remote_code else set())
    allowed |= {option.partition("=")[0] for option in before.evaluate.code} | {"export.repo", "export.python"}
    dropped = [name for name in typed if name not in allowed and not name.startswith("launch.")]
    if dropped:
        changes = [f"{name}={str(typed[name]).lower() if isinstance(typed[name], bool) else typed[name]}" for name in dropped]
        words = [str(folder / "run.yaml"), f"resume={cfg.resume}", *changes, "resume_with_changes=true"]
        raise ConfigError(
            f"resume={cfg.resume} without algo=NAME takes all options from the run, so {', '.join(dropped)} can't be set. "
            f"Leave that out, or type python -m hub {shlex.join(words)}"
        )
    here = {name.removeprefix("launch."): value for name, value in typed.items() if name.startswith("launch.")}
    before = without_machine(before, cfg, folder)
    return replace(
        before, launch=replace(before.launch, **here), resume=cfg.resume, resume_with_changes=cfg.resume_with_changes
    )


def open_run(resolved: ResolvedRun, run_path: Path | None = None) -> Run:
    """Make the run folder, or reopen the one to resume, and write run.yaml into it.

    Why the backend was chosen goes into plan.json here: workers get it by name.

    Args:
        resolved: the run, checked, with absolute paths.
        run_path: an existing folder to use instead of a new one. What a run without a checkpoint left there is removed.

    Raises:
        ConfigError: the run to resume is complete already, or was another one; or the folder can't be written.
    """
    cfg, because = resolved.config, resolved.backend_because
    if cfg.launch.node_rank > 0:
        # Machine 0 has the run folder. This one only hands its config to its own workers.
        run = Run(Path(tempfile.mkdtemp(prefix="hub-machine-")))
    elif cfg.resume:
        run = Run(_folders(cfg)[0])
        hold(run.path)
        try:
            _check_same(cfg, run)
        except BaseException:
            release(run.path)
            raise
        forget_end(run)
    elif run_path:
        run = Run(run_path)
        hold(run.path)
        forget_all(run)
        if run_path.parent == Path(cfg.output_dir):  # not of a sweep
            run.take_latest()
    else:
        run = Run.create(cfg.output_dir, cfg.run_name)
        hold(run.path)
    try:
        write_text(run.config_file, runfile.to_text(cfg))
    except OSError as error:
        release(run.path)
        raise can_not_write(run.path, error) from None
    # The run.yaml of a run to resume always names the backend: plan.json knows why it was chosen.
    if not (cfg.resume and because == ASKED_FOR and run.plan().get("backend") == cfg.algo.backend):
        run.write_plan(backend_because=because)
    return run


def _folders(cfg: RunConfig) -> tuple[Path, Path]:
    """The run folder, and the path that `resume` names: that folder or one of its checkpoints."""
    path = f"{cfg.output_dir}/latest" if cfg.resume == "latest" else str(cfg.resume)
    place = Path(os.path.realpath(os.path.expanduser(path)))
    folder = (run_of_checkpoint(place) or place) if os.path.isfile(place / "state.json") else place
    if not os.path.isfile(folder / "run.yaml"):
        if cfg.resume == "latest":
            hint = f"there is no run in {cfg.output_dir} yet. Type output_dir=FOLDER with runs, or resume=RUN_FOLDER"
        else:
            hint = f"{folder} is not a run folder. Type resume={_meant(cfg, folder)}"
        raise ConfigError(f"resume={cfg.resume}: {hint}")
    check_links(folder, str(cfg.resume))
    return folder, place


def _meant(cfg: RunConfig, folder: Path) -> str:
    """The run that was probably meant: one that the path lies in, or one in `output_dir` of this or a similar name."""
    for parent in folder.parents[:3]:
        if os.path.isfile(parent / "run.yaml"):
            return str(parent)
    runs = sorted(file.parent.name for file in Path(os.path.expanduser(cfg.output_dir)).glob("*/run.yaml"))
    if near := get_close_matches(folder.name, runs, n=1):
        return f"{cfg.output_dir}/{near[0]}"
    latest = "latest, or " if Run(Path(os.path.expanduser(cfg.output_dir), "latest")).has_checkpoint else ""
    return f"{latest}a folder in {cfg.output_dir}" if runs else f"RUN_FOLDER. There is no run in {cfg.output_dir}"


def _check_same(cfg: RunConfig, run: Run) -> None:
    if not cfg.resume_with_changes and has_ended(run, "completed"):
        further = f"To train it further type model.path={run.model_path} for another run on it"
        if run.has_checkpoint:
            more = "a larger algo.num_epochs or algo.max_steps"
            further += f", or the run's command with resume, {more}, and resume_with_changes=true"
        raise ConfigError(f"resume={cfg.resume}: this run is complete. Its model is in {run.model_path}. {further}")
    if not run.has_checkpoint:
        again = f"python -m hub {shlex.quote(str(run.config_file))}"
        raise ConfigError(
            f"resume={cfg.resume}: {run.path} has no checkpoint to go on from. To begin again type {again}. With "
            "algo.save_every_steps=N a run has checkpoints before its end"
        )
    if cfg.resume_with_changes:
        return
    before = {name: value for name, value, *_ in leaves(runfile.read(run.config_file))}
    after = {name: value for name, value, *_ in leaves(cfg)}
    free = MAY_CHANGE - {"algo.eval_every_steps"} if cfg.algo.lr_scheduler in ADAPTIVE else MAY_CHANGE
    names = [n for n in after if n.split(".")[0] in ("algo", "model", "data") and n not in free]
    changed = [f"{n}: {before.get(n)} then, {after[n]} now" for n in names if before.get(n) != after[n]]
    if changed:
        raise ConfigError(
            [
                f"resume={cfg.resume}: options differ from those of the original run. Undo that, or type "
                "resume_with_changes=true",
                *changed,
            ]
        )
