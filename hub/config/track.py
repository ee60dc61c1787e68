"""Options of trackers: where metrics are logged besides metrics.jsonl."""

from dataclasses import dataclass

from hub.config.option import option

TRACKERS = ("none", "tensorboard", "wandb", "mlflow", "trackio", "comet_ml", "swanlab", "clearml", "aim", "dvclive")
"""Values of `track.tool`: all that accelerate knows."""


@dataclass(kw_only=True)
class TrackConfig:
    """Where metrics are logged besides metrics.jsonl. Credentials come from the environment, never from options."""

    tool: str = option("none", choices=TRACKERS)
    """Tracker, through accelerate. docs/runs.md says where each stores what. A resumed run continues the same run of the
    tracker."""

    project: str = "hub"
    """Project, or what the tracker calls it: experiment (mlflow, aim), folder name (tensorboard)."""
