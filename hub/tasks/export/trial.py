"""The trial of an export before training: an untrained model, cut to its first layers, goes through all of it.

So that nobody trains for days a model that can't be written: names, shapes, template, tokenizer, tools, disk, token and
repository are those of the run. It runs in a process of its own, on the CPU: `python -m hub.tasks.export.trial FOLDER`.
"""

import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from hub.compose import runfile
from hub.config.export import ExportConfig
from hub.config.schema import DataConfig, RunConfig
from hub.errors import HubError, ModelError
from hub.models.finished import ADAPTER_CONFIG, Asked, Finished
from hub.system.leash import end_with_parent, leash
from hub.tasks.export.checks import problems_of
from hub.tasks.export.export import export_to
from hub.tasks.export.exporters import in_order
from hub.tasks.export.room import check_room
from hub.tasks.export.verb import ExportOptions

NUM_LAYERS = 2
FOLDER = ".export-trial"
_BASE, _ADAPTER, _CONFIG, _OUT = "base", "adapter", "run.yaml", "exports"


def try_export(cfg: RunConfig, run_path: Path, base: Path, adapter: Path | None) -> str:
    """Export an untrained model, cut to a few layers.

    Args:
        cfg: of the run.
        run_path: gets a temporary folder.
        base: folder of the base weights.
        adapter: folder of the untrained adapter, as the run saves it. None: the model is whole.

    Returns:
        A line for the user.

    Raises:
        ModelError: the model could not be exported after training.
        ConfigError: there is no room for it.
    """
    from hub.models.cut import cut_adapter, cut_model

    begin = time.monotonic()
    check_room(cfg.export, {one.name for one in in_order(cfg.export.to)}, base, run_path)
    folder = run_path / FOLDER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    try:
        total = cut_model(base, folder / _BASE, NUM_LAYERS)
        if adapter is not None:
            cut_adapter(adapter, folder / _ADAPTER, total, NUM_LAYERS)
        (folder / _CONFIG).write_text(runfile.to_text(cfg), encoding="utf-8")
        env = os.environ | {"CUDA_VISIBLE_DEVICES": "", "TOKENIZERS_PARALLELISM": "true", "PYTHONSAFEPATH": "1"}
        for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID"):
            env.pop(name, None)
        with leash() as stdin:
            found = subprocess.run(
                [sys.executable, "-m", "hub.tasks.export.trial", str(folder)],
                env=env,
                stdin=stdin,
                capture_output=True,
                encoding="utf-8",
                errors="replace",
                check=False,
            )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    names = ", ".join(cfg.export.to)
    if found.returncode:
        lines = [line.removeprefix("hub: ") for line in found.stderr.splitlines() if line.strip()]
        why = "\n".join(lines) if found.returncode == HubError.exit_code else (lines or ["it gave no reason"])[-1]
        raise ModelError(
            f"export.to={names}: the trial before training failed, so nothing is trained: {why.rstrip('.')}. To train without "
            "it, leave export.to out"
        )
    return f"export.to={names}: tried before training with {NUM_LAYERS} layers, {time.monotonic() - begin:.0f} s"


def _try(folder: Path) -> None:
    """Run the trial in this process."""
    cfg = runfile.read(folder / _CONFIG)
    adapter = folder / _ADAPTER if (folder / _ADAPTER / ADAPTER_CONFIG).is_file() else None
    base = replace(cfg.model, path=str(folder / _BASE), revision=None)
    data = DataConfig(template=cfg.data.template, date=cfg.data.date)
    wanted: ExportConfig = replace(cfg.export, num_calibration_rows=2, num_check_rows=2, num_check_tokens=64, force=False)
    if problems := list(problems_of(replace(cfg, export=wanted))):
        raise ModelError("\n".join(problems))
    asked = Asked(
        options=ExportOptions(),
        cfg=replace(cfg, model=base, data=data, export=wanted),
        finished=Finished(name="the untrained model", base=base, adapter=adapter),
    )
    (folder / _OUT).mkdir()
    export_to(asked, folder / _OUT, tiny=True)


if __name__ == "__main__":
    end_with_parent()
    try:
        _try(Path(sys.argv[1]))
    except HubError as error:
        print(error, file=sys.stderr)
        sys.exit(HubError.exit_code)
