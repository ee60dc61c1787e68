"""What each tracker needs beyond accelerate's interface: options to open a run, where the run is, how it ends.

A run in a tracker has the name of the run folder. Local files are in the run folder, but aim's, which compares the runs of one
repository: that is beside the run folders.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hub.run import Run

Options = dict[str, Any]


@dataclass(frozen=True)
class End:
    """How a run ended."""

    stopped_by: int | None
    """The signal that stopped it, if one did."""

    failed: bool


@dataclass(frozen=True)
class Tool:
    """One tracker."""

    remedy: str
    """What to do if it can't be started."""

    options: Callable[[Run, str, str | None], Options] = lambda run, project, earlier: {}
    """Keyword arguments of the library, from the run, the project and the id of the run to continue."""

    place: Callable[[Any, Run, str], tuple[str | None, str]] = lambda handle, run, project: (None, "")
    """The run's id in the tracker and where to find it, from the library's object, the run and the project."""

    end: Callable[[Any, End], None] | None = None
    """Closes the library's object. None: accelerate does."""

    folder: Callable[[Run], Path] = lambda run: run.path
    """Where accelerate lets it store files."""


def _wandb(run: Run, project: str, earlier: str | None) -> Options:
    folder = {} if "WANDB_DIR" in os.environ else {"dir": str(run.path)}
    return {"name": run.path.name, **folder, **({"id": earlier, "resume": "allow"} if earlier else {})}


def _wandb_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    folder = os.path.dirname(handle.dir)
    return handle.id, handle.url or f"stored in {folder}. To upload it type wandb sync {folder}"


def _mlflow_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    import mlflow  # type: ignore[import-not-found,unused-ignore]

    return handle.info.run_id, f"run {run.path.name} in experiment {project} of {mlflow.get_tracking_uri()}"


def _mlflow_end(handle: Any, end: End) -> None:
    import mlflow

    mlflow.end_run("KILLED" if end.stopped_by else "FAILED" if end.failed else "FINISHED")


def _trackio(run: Run, project: str, earlier: str | None) -> Options:
    return {"name": earlier or run.path.name, "resume": "allow" if earlier else "never", "embed": False}


def _trackio_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    return handle.name, f'run {handle.name}. To view it type trackio show --project "{project}"'


def _trackio_end(handle: Any, end: End) -> None:
    import trackio  # type: ignore[import-not-found,unused-ignore]

    trackio.finish()  # accelerate ends the run alone: trackio would end it again when Python ends, and print that


def _comet(run: Run, project: str, earlier: str | None) -> Options:
    from comet_ml import ExperimentConfig  # type: ignore[import-not-found,unused-ignore]

    config = ExperimentConfig(
        name=run.path.name,
        offline_directory=str(run.path / "comet"),
        display_summary_level=0,
        log_code=False,
        log_env_details=True,
        auto_metric_logging=False,
        auto_param_logging=False,
        auto_output_logging="",
        parse_args=False,
    )
    return {
        "experiment_config": config,
        **({"experiment_key": earlier, "mode": "get_or_create"} if earlier else {"mode": "create"}),
    }


def _comet_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    folder = run.path / "comet"
    return handle.get_key(), _url(handle) or f"stored in {folder}. To upload it type comet upload {folder}/*.zip"


def _url(handle: Any) -> str | None:
    """The address of a run. None if it has none, as without a connection."""
    try:
        return getattr(handle, "url", None)
    except ValueError:  # swanlab
        return None


def _comet_end(handle: Any, end: End) -> None:
    if end.stopped_by or end.failed:
        handle.log_other("status", "stopped" if end.stopped_by else "failed")
    handle.end()


def _aim(run: Run, project: str, earlier: str | None) -> Options:
    return {"experiment": project, "run_hash": earlier, "capture_terminal_logs": False}


def _aim_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    handle.name = run.path.name  # accelerate puts the project's name there
    return handle.hash, f"run {run.path.name}. To view it type aim up --repo {run.path.parent}"


def _clearml(run: Run, project: str, earlier: str | None) -> Options:
    return {
        "project_name": os.environ.get("CLEARML_PROJECT", project),
        "task_name": os.environ.get("CLEARML_TASK", run.path.name),
        "reuse_last_task_id": False,
        "continue_last_task": earlier if earlier and not earlier.startswith("offline") else False,
        "auto_connect_arg_parser": False,
        "auto_connect_frameworks": False,
        "auto_connect_streams": False,
    }


def _clearml_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    if handle.is_offline():
        folder = handle.get_offline_mode_folder()
        upload = f"""python -c "from clearml import Task; Task.import_offline_session('{folder}.zip')\""""
        return handle.id, f"stored in {folder}. To upload it type {upload}"
    return handle.id, handle.get_output_log_web_page()


def _clearml_end(handle: Any, end: End) -> None:
    if end.stopped_by and not handle.is_offline():
        handle.mark_stopped(force=True)
    elif end.failed and not handle.is_offline():
        handle.mark_failed(force=True)
    handle.close()


def _dvclive(run: Run, project: str, earlier: str | None) -> Options:
    # Without these two it writes into the current folder, and into its git repository.
    own = {"dvcyaml": None, "save_dvc_exp": False}
    return {"dir": str(run.path / "dvclive"), "resume": earlier is not None, **own}


def _swanlab(run: Run, project: str, earlier: str | None) -> Options:
    folder = {} if {"SWANLAB_LOG_DIR", "SWANLAB_LOGDIR"} & os.environ.keys() else {"log_dir": str(run.path / "swanlog")}
    return {"name": run.path.name, **folder, **({"id": earlier, "resume": "allow"} if earlier else {})}


def _swanlab_place(handle: Any, run: Run, project: str) -> tuple[str, str]:
    folder = Path(os.environ.get("SWANLAB_LOG_DIR") or os.environ.get("SWANLAB_LOGDIR") or run.path / "swanlog")
    todo = f"view it type swanlab watch {folder}"
    if os.environ.get("SWANLAB_MODE") == "offline":
        todo = f"upload it type swanlab sync {folder}/run-*"
    return handle.id, _url(handle) or f"stored in {folder}. To {todo}"


def _swanlab_end(handle: Any, end: End) -> None:
    if end.stopped_by:
        handle.finish(state="aborted")
    elif end.failed:
        handle.finish(state="crashed", error="the run failed")
    else:
        handle.finish()


TOOLS = {
    "tensorboard": Tool(
        remedy="Or type track=none",
        place=lambda handle, run, project: (None, f"to view it type tensorboard --logdir {run.path.parent}"),
        end=lambda handle, end: handle.close(),
    ),
    "wandb": Tool(
        remedy="Type wandb login, set WANDB_API_KEY, or set WANDB_MODE=offline to upload later; or type track=none",
        options=_wandb,
        place=_wandb_place,
        end=lambda handle, end: handle.finish(exit_code=128 + end.stopped_by if end.stopped_by else int(end.failed)),
    ),
    "mlflow": Tool(
        remedy=(
            "Check that MLFLOW_TRACKING_URI names a store that can be reached, set MLFLOW_HTTP_REQUEST_MAX_RETRIES and "
            "MLFLOW_HTTP_REQUEST_TIMEOUT to wait longer for it, or type track=none"
        ),
        options=lambda run, project, earlier: {"run_name": run.path.name, "run_id": earlier},
        place=_mlflow_place,
        end=_mlflow_end,
    ),
    "trackio": Tool(
        remedy="Check TRACKIO_DIR, TRACKIO_SPACE_ID and TRACKIO_SERVER_URL, or type track=none",
        options=_trackio,
        place=_trackio_place,
        end=_trackio_end,
    ),
    "comet_ml": Tool(
        remedy="Type comet login, set COMET_API_KEY, or set COMET_START_ONLINE=0 to upload later; or type track=none",
        options=_comet,
        place=_comet_place,
        end=_comet_end,
    ),
    "aim": Tool(remedy="Or type track=none", options=_aim, place=_aim_place, folder=lambda run: run.path.parent),
    "clearml": Tool(
        remedy="Type clearml-init, set CLEARML_API_ACCESS_KEY and CLEARML_API_SECRET_KEY, or set CLEARML_OFFLINE_MODE=1; "
        "or type track=none",
        options=_clearml,
        place=_clearml_place,
        end=_clearml_end,
    ),
    "dvclive": Tool(
        remedy="Or type track=none",
        options=_dvclive,
        place=lambda handle, run, project: ("dvclive", f"stored in {run.path / 'dvclive'}"),
    ),
    "swanlab": Tool(
        remedy="Type swanlab login, set SWANLAB_API_KEY, or set SWANLAB_MODE=local; or type track=none",
        options=_swanlab,
        place=_swanlab_place,
        end=_swanlab_end,
    ),
}
"""`track.tool` -> what it needs."""
