"""The verb `plan`: the options are checked as for a run, then `hub.tasks.plan` plans it. Nothing here imports torch."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.compose.compose import compose
from hub.compose.runfile import from_text, to_text
from hub.config.option import AUTO
from hub.config.paths import is_hub_id
from hub.config.schema import AlgoConfig, RunConfig
from hub.data.samples.length import length_limit
from hub.data.samples.mix import sources_of
from hub.errors import ConfigError, PluginError
from hub.launch.launcher import launch
from hub.launch.preflight import check_data, check_paths, refuse_resume, with_absolute_paths
from hub.models.storage import with_storage
from hub.models.weights import local_tokenizer
from hub.plan.gpus import check_measurable, planned_gpu
from hub.plugins.registry import data_format_names, registry, resolve
from hub.result import Result
from hub.system import timeline
from hub.system.garbage import not_collected

if TYPE_CHECKING:
    from hub.tasks.plan.planning import Planned


def plan(
    words: Sequence[str],
    config_dir: str | None = None,
    values: Mapping[str, Any] | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> "Planned":
    """Plan a run: its memory, layout, time and disk. Nothing is started, and no weights are needed.

    Args:
        words: overrides as typed.
        config_dir: a further folder with config groups.
        values: nested values of the config that are set last, of a Python call.
        say: receives lines for the user.

    Raises:
        HubError: what is wrong, one line each.
    """
    # Where the package kernels is installed, transformers would fetch code from the model hub.
    os.environ.setdefault("USE_HUB_KERNELS", "0")

    def composed(more: Sequence[str]) -> RunConfig:
        return _checked(compose(*words, *more, values=values, config_dir=config_dir))

    cfg = composed(())
    with not_collected():
        folder = _model_folder(cfg, say)
        from hub.parallel.session import quiet_libraries
        from hub.tasks.plan.planning import plan_run

        quiet_libraries()
        timeline.begin("plan")
        name = next((word.partition("=")[2] for word in reversed(words) if word.startswith("algo=")), "")
        return plan_run(cfg, composed, say, name, folder, _train_quietly)


def _model_folder(cfg: RunConfig, say: Callable[[str], None]) -> Path:
    """The folder with the model's config, which is read. A mistake in it shows before the libraries of a plan are imported.

    Raises:
        ModelError: no source has it, or it can't be read.
        ConfigError: `data.max_seq_len` is more than the model can hold.
    """
    folder = local_tokenizer(cfg.model, say)
    with_storage(cfg, folder)
    from hub.models.load import load_config
    from hub.models.structure import max_positions

    length_limit(cfg, max_positions(load_config(cfg.model, folder)))
    return folder


def _train_quietly(cfg: RunConfig) -> Result:
    """Run a config to its end in a process of its own, whose output is not shown.

    Raises:
        ConfigError: it failed. Its last line.
    """
    file = Path(cfg.output_dir) / f"{cfg.run_name}.yaml"
    file.write_text(to_text(cfg), encoding="utf-8")
    done = subprocess.run([sys.executable, "-m", "hub.launch.planning", str(file)], capture_output=True, text=True, check=False)
    result = Path(cfg.output_dir) / str(cfg.run_name) / "result.json"
    if done.returncode or not result.is_file():
        raise ConfigError((done.stderr.strip().splitlines() or [f"it ended with exit code {done.returncode}"])[-1])
    return Result.read(result)


def _checked(cfg: RunConfig) -> RunConfig:
    """Check the options, and make paths absolute. A plan may have no data, and be for a machine that has what this one lacks.

    Raises:
        ConfigError: options are wrong.
    """
    refuse_resume(cfg, "plans a run")
    if cfg.plan.gpu != AUTO:
        planned_gpu(cfg.plan)
    if cfg.plan.measure:
        check_measurable(cfg.plan, cfg.launch.nproc_per_node, cfg.launch.nnodes)
    if type(cfg.algo) is AlgoConfig:
        raise ConfigError(f"hub plan: no algorithm is named. Type algo={' or algo='.join(registry().algorithms)}")
    has_data = bool(cfg.data.path or cfg.data.mix)
    parts = {"algo", "model", "launch", *(("data",) if has_data else ())}
    if problems := cfg.problems(parts, data_format_names()):
        raise ConfigError(list(dict.fromkeys(problems)))
    cfg = with_absolute_paths(cfg)
    if has_data:
        check_paths(cfg)
    cfg = replace(cfg, algo=replace(cfg.algo, backend=_backend(cfg)))
    if has_data and not any(is_hub_id(source.path) for source in sources_of(cfg.data)):
        check_data(cfg, resolve(cfg, check_needs=False))
    return cfg


def _backend(cfg: RunConfig) -> str:
    """The backend of a run on a machine that has what it needs: what was asked for, else the hub's own."""
    if cfg.algo.backend != "auto":
        return cfg.algo.backend
    name = registry().algorithm_of(cfg.algo).name
    offered = registry().backends.get(name, {})
    if not offered:
        raise PluginError(f"algo={name} has no backend")
    return "native" if "native" in offered else max(offered.values(), key=lambda backend: backend.priority).name


if __name__ == "__main__":
    launch(from_text(Path(sys.argv[1]).read_text(encoding="utf-8"), sys.argv[1]))
