"""Tasks of lm-eval by name or YAML file: loaded once, run on any number of models."""

import contextlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.config.evaluate import EvaluateConfig
from hub.errors import ConfigError, HubError, did_you_mean, first_line
from hub.system.cache import cache_dir, make_once
from hub.system.files import write_json
from hub.system.network import answers

if TYPE_CHECKING:
    from hub.tasks.evaluate.statistics import Floats

OLDEST = (0, 4, 13)
"""Version of lm-eval whose model interface harness.py implements."""

NAMES = "tasks.json"

NUM_RESAMPLES = 1000
"""Of lm-eval's own bootstrap, for figures that are no means."""


@dataclass(frozen=True)
class TaskFigure:
    """One figure of one task."""

    task: str
    metric: str
    """With the filter, if it is not the only one: `exact_match (strict-match)`."""

    better: str
    n: int
    value: float
    stderr: float | None
    keys: tuple[int, ...]
    """Numbers of the documents."""

    values: "Floats | None"
    """(n,) of each document. None: the figure is no mean of numbers."""


def problems(tasks: Sequence[str]) -> list[str]:
    """One line if lm-eval is missing or too old, and for each YAML file that is not there. Nothing slow is imported."""
    if not tasks:
        return []
    install = "Type pip install finetune-hub[eval]"
    if find_spec("lm_eval") is None:
        return [f"evaluate.tasks={','.join(tasks)} needs lm-eval, which is not installed. {install}"]
    try:
        found = version("lm_eval")
    except PackageNotFoundError:
        return []
    if tuple(int(part) for part in found.split(".")[:3] if part.isdigit()) < OLDEST:
        return [f"evaluate.tasks needs lm-eval {'.'.join(map(str, OLDEST))} or newer, but {found} is installed. {install}"]
    files = [task for task in tasks if is_file_name(task)]
    lines = [f"evaluate.tasks={file}: there is no such file" for file in files if not Path(file).expanduser().is_file()]
    return [*lines, *_unknown(tasks, _known_names())]


def load_tasks(cfg: EvaluateConfig) -> dict[str, Any]:
    """Load the tasks and their data, with the few-shot examples as the config has them.

    Returns:
        What `lm_eval.evaluate` takes as `task_dict`.

    Raises:
        ConfigError: a task does not exist, or its data can't be loaded.
    """
    for library in ("lm_eval", "huggingface_hub"):  # the first lists every task, the second its retries
        logging.getLogger(library).setLevel(logging.ERROR)
    from lm_eval.tasks import TaskManager

    wanted = list(dict.fromkeys(cfg.tasks))
    names = [str(Path(task).expanduser()) if is_file_name(task) else task for task in wanted]
    manager = TaskManager(include_defaults=not all(map(is_file_name, names)))
    if lines := _unknown(names, manager.all_tasks):
        raise ConfigError(lines)
    if manager.all_tasks:
        with contextlib.suppress(HubError):  # without a cache they are looked for again
            make_once(_names_folder(), lambda folder: write_json(folder / NAMES, manager.all_tasks))
    loaded: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
    with _without_retries() as is_set:
        for asked, name in zip(wanted, names, strict=True):
            try:
                with contextlib.redirect_stderr(io.StringIO()):
                    of_name = manager.load([name])
            except Exception as error:
                raise ConfigError(_no_data(asked, error, is_set)) from None
            for part in loaded:
                loaded[part] |= of_name.get(part, {})
    for task in loaded["tasks"].values():
        _set_few_shot(task, cfg)
    return loaded


@contextlib.contextmanager
def _without_retries() -> Iterator[bool]:
    """If the model hub does not answer: without trying again for half a minute. What is in the cache is found all the same.

    Yields whether HF_HUB_OFFLINE is set.
    """
    from huggingface_hub import constants

    before = constants.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = before or not answers(constants.ENDPOINT)  # read at each request
    try:
        yield before
    finally:
        constants.HF_HUB_OFFLINE = before


def run_tasks(lm: Any, loaded: dict[str, Any], cfg: EvaluateConfig) -> list[TaskFigure]:
    """Run tasks on a model.

    Args:
        lm: a model of lm-eval.
        loaded: the tasks, from `load_tasks`.
        cfg: `limit`, `apply_chat_template` and `seed` are read.

    Raises:
        ConfigError: a task can't be run.
    """
    import numpy as np
    from lm_eval.evaluator import evaluate

    np.random.seed(cfg.seed)
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            results: Any = evaluate(
                lm=lm,
                task_dict=loaded,
                limit=cfg.limit,
                bootstrap_iters=NUM_RESAMPLES,
                log_samples=True,
                apply_chat_template=cfg.apply_chat_template,
                fewshot_as_multiturn=cfg.apply_chat_template,
            )
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ConfigError(f"evaluate.tasks={','.join(cfg.tasks)}: lm-eval can't run it: {first_line(error)}") from None
    figures = []
    for task, found in results["results"].items():
        better = results["higher_is_better"].get(task, {})
        n = results["n-samples"].get(task, {}).get("effective", 0)
        figures += _figures(task, found, better, n, results["samples"].get(task, []))
    for group, found in results.get("groups", {}).items():
        figures += _figures(group, found, results["higher_is_better"].get(group, {}), 0, [])
    return figures


def task_versions(loaded: dict[str, Any]) -> dict[str, Any]:
    """The version of each task, and its few-shot examples, for the settings of an evaluation."""
    return {
        name: {"version": getattr(task, "VERSION", None), "num_fewshot": task.get_config("num_fewshot")}
        for name, task in loaded["tasks"].items()
    }


def _names_folder() -> Path:
    """Where the names of all tasks are: lm-eval takes many seconds to find them."""
    return cache_dir() / "lm_eval" / version("lm_eval")


def _known_names() -> list[str]:
    """The names of all tasks, as an earlier evaluation found them. Empty: not known yet."""
    file = _names_folder() / NAMES
    names: list[str] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else []
    return names


def _unknown(tasks: Sequence[str], known: Sequence[str]) -> list[str]:
    """One line for each name of a task that does not exist. None if the names are not known."""
    names = set(known)
    return [
        f"evaluate.tasks={name}: lm-eval has no such task.{did_you_mean(name, known)} Type a name that lm-eval lists "
        "(lm-eval ls tasks), or FILE.yaml"
        for name in tasks
        if known and not is_file_name(name) and name not in names
    ]


def _figures(
    task: str, found: dict[str, Any], better: dict[str, Any], n: int, samples: list[dict[str, Any]]
) -> list[TaskFigure]:
    import numpy as np

    keys = [key for key in found if "," in key and not key.partition(",")[0].endswith("_stderr")]
    filters = {key.partition(",")[2] for key in keys}
    figures = []
    for key in keys:
        metric, _, filter_name = key.partition(",")
        if not isinstance(found[key], int | float):
            continue
        stderr = found.get(f"{metric}_stderr,{filter_name}")
        rows = [sample for sample in samples if sample.get("filter") == filter_name and metric in sample]
        numbers = [sample[metric] for sample in rows]
        whole = bool(numbers) and all(isinstance(number, int | float | np.number) for number in numbers)
        values = np.array(numbers, np.float64) if whole else None
        if values is not None and not np.isclose(values.mean(), found[key]):
            values = None  # an aggregate of another kind, such as a correlation
        figures.append(
            TaskFigure(
                task,
                metric if len(filters) == 1 else f"{metric} ({filter_name})",
                "lower" if better.get(metric) is False else "higher",
                n or len(numbers),
                float(found[key]),
                float(stderr) if isinstance(stderr, int | float) else None,
                tuple(int(sample["doc_id"]) for sample in rows),
                values,
            )
        )
    return figures


def _set_few_shot(task: Any, cfg: EvaluateConfig) -> None:
    """As `lm_eval.simple_evaluate` does: a task that forbids examples keeps none."""
    default = task.get_config("num_fewshot")
    if cfg.num_fewshot is not None and default != 0:
        task.set_config(key="num_fewshot", value=cfg.num_fewshot)
    elif default is None:
        task.set_config(key="num_fewshot", value=0)
    task.set_fewshot_seed(seed=cfg.seed)


def is_file_name(task: str) -> bool:
    """Whether it is a YAML file, which may name functions beside it."""
    return task.endswith((".yaml", ".yml"))


def _no_data(task: str, error: Exception, is_set: bool) -> str:
    """The line on a task that can't be loaded. `is_set`: whether its user has set HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    name, text = type(error).__name__, first_line(error)
    network = isinstance(error, ConnectionError | TimeoutError) or any(
        word in f"{name} {text}" for word in ("Offline", "offline", "Connection", "connect", "reach", "resolve", "Timeout")
    )
    if not network:
        return f"evaluate.tasks={task}: it can't be loaded ({name}: {text})"
    local = "type a YAML file of a task with local data"
    if is_set:
        return f"evaluate.tasks={task}: its data is not in the cache, and HF_HUB_OFFLINE is set. Unset it once, or {local}"
    where = f"on the model hub, and {constants.ENDPOINT} can't be reached ({name})"
    return f"evaluate.tasks={task}: its data is {where}. Connect this machine once, set HF_ENDPOINT to a mirror, or {local}"
