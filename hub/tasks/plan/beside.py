"""The prediction of a run's memory beside the run: `python -m hub.tasks.plan.beside RUN_FOLDER`, with facts on standard input.

A process of its own, without a GPU, so that neither the run's memory nor its first step changes.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from hub.compose import runfile
from hub.plugins.registry import resolve
from hub.system.known_gpus import Gpu

PREDICTED = "predicted.json"


def main(run_path: Path, facts: dict[str, Any]) -> None:
    """Predict, and write what was predicted into the run folder.

    Args:
        run_path: the run folder.
        facts: `memory_bytes`, `capability`, `world`, `longest`, `loads`, `num_tokens`, `loss_share`, and `folder` of the model.
    """
    from hub.plan.build import compute_dtype
    from hub.plan.memory import Planner
    from hub.system.files import write_json

    resolved = resolve(runfile.read(run_path / "run.yaml"), check_needs=False)
    gpu = Gpu(
        name="this", memory_bytes=facts["memory_bytes"], bandwidth=1.0, peak={}, compute_capability=tuple(facts["capability"])
    )
    planner = Planner(resolved, Path(facts["folder"]), compute_dtype(resolved.config, gpu))
    about = [facts[name] for name in ("world", "longest", "loads", "num_tokens", "loss_share")]
    plan = planner.plan(resolved.config, gpu, *about)
    write_json(run_path / PREDICTED, plan.as_json())


if __name__ == "__main__":
    os.nice(10)
    main(Path(sys.argv[1]), json.load(sys.stdin))
