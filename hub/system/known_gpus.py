"""The GPUs that the hub knows, here or not: memory, bandwidth, peaks. Their table is known_gpus.yaml. No torch."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from hub.errors import ConfigError, did_you_mean, first_line

GIB = 2**30
TYPES = ("bf16", "fp16", "tf32", "fp8", "fp32")
"""Types of factors whose peak may be known."""
_SHIPPED = Path(__file__).with_suffix(".yaml")
_FIELDS = ("names", "memory", "is_label", "bandwidth", "tflops", "capability", "link", "watts", "source")
_NEEDED = ("memory", "bandwidth", "tflops", "capability")


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """One kind of GPU."""

    name: str
    """What is typed as `plan.gpu=`."""

    names: tuple[str, ...] = ()
    """What the driver calls it (`torch.cuda.get_device_name`)."""

    memory_bytes: int
    """What a process may allocate: torch's `total_memory`. The CUDA context is part of it."""

    memory_is_label: bool = False
    """Whether the memory is from the box less 2.5 %, and not as a driver reports it."""

    bandwidth: float
    """Bytes per second of its memory."""

    peak: Mapping[str, float]
    """Type of the factors (one of `TYPES`) -> operations per second of dense products, with sums in float32."""

    compute_capability: tuple[int, int]
    """The generation of its instructions, as CUDA counts them: (9, 0) for Hopper."""

    link: float | None = None
    """Bytes per second between GPUs of one machine by NVLink, both directions together. None: PCI Express."""

    watts: float | None = None
    """Power limit as shipped."""

    source: str = ""
    """Where the figures of speed are from."""

    def __hash__(self) -> int:
        return hash((self.name, self.memory_bytes))

    @property
    def has_bfloat16(self) -> bool:
        """Whether it has instructions for bfloat16. Others compute it by float32, many times slower."""
        return self.compute_capability >= (8, 0)


def config_dir() -> Path:
    """`$XDG_CONFIG_HOME/finetune-hub`, else `~/.config/finetune-hub`. It need not exist."""
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config").absolute() / "finetune-hub"


def own_file() -> Path:
    """The user's own table of GPUs, read on top of the hub's. It need not exist."""
    return config_dir() / "gpus.yaml"


def known_gpus(file: str | Path | None = None) -> dict[str, Gpu]:
    """All known GPUs by name, from the least memory to the most.

    Args:
        file: a further table. It wins over the user's own (`own_file`), which wins over the hub's.

    Raises:
        ConfigError: one of the files is missing or has a mistake.
    """
    found = dict(shipped_gpus())
    if own_file().is_file():
        found |= read_gpus(own_file())
    if file is not None:
        path = Path(file).expanduser()
        if not path.is_file():
            raise ConfigError(f"plan.gpus_file={file}: there is no such file")
        found |= read_gpus(path)
    return dict(sorted(found.items(), key=lambda item: (item[1].memory_bytes, item[0])))


@cache
def shipped_gpus() -> Mapping[str, Gpu]:
    """The hub's own table, by name."""
    return read_gpus(_SHIPPED)


def by_driver_name(name: str, gpus: Mapping[str, Gpu], memory_bytes: float | None = None) -> Gpu | None:
    """The GPU that a driver calls by this name. None: unknown.

    Args:
        name: as the driver writes it.
        gpus: those to choose from.
        memory_bytes: of the GPU, if it is known. Of several kinds of the same name the nearest is taken.
    """
    wanted = name.strip().lower()
    found = [gpu for gpu in gpus.values() if wanted in (other.lower() for other in gpu.names)]
    return min(found, key=lambda gpu: abs(gpu.memory_bytes - (memory_bytes or 0)), default=None)


def find_gpu(typed: str, gpus: Mapping[str, Gpu]) -> Gpu:
    """The GPU that a user has typed: `rtx4090`, `4090`, `RTX 4090`, or the driver's name.

    Raises:
        ConfigError: there is none of that name, or there are several. It has the nearest ones.
    """
    wanted = _plain(typed)
    names = {_plain(gpu.name): gpu for gpu in gpus.values()}
    for gpu in gpus.values():
        for other in gpu.names:
            names.setdefault(_plain(other), gpu)
    if wanted in names:
        return names[wanted]
    holding = {gpu.name: gpu for plain, gpu in names.items() if wanted and plain.endswith(wanted)}
    if len(holding) == 1:
        return next(iter(holding.values()))
    near = holding or {gpu.name: gpu for plain, gpu in names.items() if wanted and wanted in plain}
    near = near or {names[plain].name: names[plain] for plain in get_close_matches(wanted, names, n=3, cutoff=0.6)}
    hint = f"Did you mean {' or '.join(list(near)[:4])}?" if near else f"Known: {', '.join(gpus)}."
    raise ConfigError(
        f"plan.gpu={typed}: no GPU of that name is known. {hint} Others can be added in {own_file()} or plan.gpus_file=FILE"
    )


def read_gpus(file: Path) -> dict[str, Gpu]:
    """The GPUs of a YAML file, by name.

    Raises:
        ConfigError: what is wrong with it, in one line.
    """
    import yaml  # type: ignore[import-untyped]

    try:
        held = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    except OSError as error:
        raise ConfigError(f"{file}: can't be read ({error.strerror})") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is not valid YAML: {first_line(error)}") from None
    if not isinstance(held, dict):
        raise ConfigError(f"{file} must hold GPUs by name, each with {', '.join(_NEEDED)}")
    return {str(name): _gpu(str(name), values, file) for name, values in held.items()}


def _gpu(name: str, values: Any, file: Path) -> Gpu:
    where = f"{file}: {name}"
    if not isinstance(values, dict):
        raise ConfigError(f"{where} must have {', '.join(_NEEDED)}")
    for key in values:
        if key not in _FIELDS:
            near = did_you_mean(str(key), _FIELDS)
            raise ConfigError(f"{where}: {key} is not one of {', '.join(_FIELDS)}.{near}")
    if missing := [key for key in _NEEDED if key not in values]:
        raise ConfigError(f"{where} has no {' and no '.join(missing)}")
    tflops, names = values["tflops"], values.get("names", [])
    if not isinstance(tflops, dict) or not tflops or set(tflops) - set(TYPES):
        raise ConfigError(f"{where}.tflops must be a number for some of {', '.join(TYPES)}, like {{bf16: 312}}")
    if not isinstance(names, list):
        raise ConfigError(f"{where}.names must be a list, like [NVIDIA L4]")
    capability = _number(f"{where}.capability", values["capability"])
    return Gpu(
        name=name,
        names=tuple(str(other) for other in names),
        memory_bytes=round(_number(f"{where}.memory", values["memory"]) * GIB),
        memory_is_label=bool(values.get("is_label", False)),
        bandwidth=_number(f"{where}.bandwidth", values["bandwidth"]) * 1e9,
        peak={kind: _number(f"{where}.tflops.{kind}", value) * 1e12 for kind, value in tflops.items()},
        compute_capability=(int(capability), round(capability * 10) % 10),
        link=_number(f"{where}.link", values["link"]) * 1e9 if "link" in values else None,
        watts=_number(f"{where}.watts", values["watts"]) if "watts" in values else None,
        source=str(values.get("source", "")),
    )


def _number(where: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ConfigError(f"{where}={value} must be a number above 0")
    return float(value)


def _plain(name: str) -> str:
    """A name as people type it: without case, maker and whatever lies between letters and digits."""
    words = name.lower().replace("nvidia", "").replace("geforce", "")
    return "".join(letter for letter in words if letter.isalnum())
