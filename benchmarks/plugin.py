"""Makes a module here a plugin of the hub, in the runs of a benchmark only."""

import os
from pathlib import Path


def as_plugin(folder: Path, module: str) -> dict[str, str]:
    """Return the environment variables with which the hub finds the plugin.

    Args:
        folder: folder for the metadata of a distribution.
        module: module with the hooks, e.g. `benchmarks.step_probe`.
    """
    info = folder / "hub_benchmark_probe-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: hub-benchmark-probe\nVersion: 1.0\n", encoding="utf-8")
    (info / "entry_points.txt").write_text(f"[hub]\nprobe = {module}\n", encoding="utf-8")
    paths = [str(folder), str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}
