"""The verb `evaluate`: loads models, measures them on the same rows, writes evaluation.json.

What can be wrong is checked before torch is imported.
"""

import json
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.compose.compose import compose, groups
from hub.compose.runfile import read
from hub.config.evaluate import NONE
from hub.config.option import AUTO
from hub.config.schema import DataConfig, ModelConfig, RunConfig
from hub.errors import ConfigError, HubError, Interrupted
from hub.models.finished import (
    LATEST,
    Asked,
    Finished,
    adapter_folder,
    finished_adapter,
    finished_model,
    finished_run,
    named_apart,
    run_folder,
)
from hub.system.files import write_json
from hub.tasks.evaluate import checks, harness_tasks, metrics
from hub.tasks.evaluate.report import Evaluation
from hub.tasks.evaluate.stored import store
from hub.tasks.evaluate.verb import EvaluateOptions

if TYPE_CHECKING:
    from hub.tasks.evaluate.measure import Measurement
    from hub.tasks.evaluate.plan import EvaluationPlan
    from hub.tasks.loading import Loaded

BASE = "base"
FILE = "evaluation.json"
SECONDS_BETWEEN_LINES = 15.0


def evaluate(asked: Asked) -> Evaluation:
    """Measure the model that is asked for, and the one that it is compared with.

    Returns:
        The result, which is written to the run folder or to `out`.

    Raises:
        HubError: what can't be measured, one line each.
        Interrupted: Ctrl-C. Nothing is written.
    """
    options = asked.options
    assert isinstance(options, EvaluateOptions)
    held_out = held_out_config(asked)
    _check(asked, held_out)
    other = _compared_with(asked)
    file = _file(asked, options)
    try:
        found = _measured(asked, held_out, other)
    except KeyboardInterrupt:
        raise Interrupted("stopped: nothing was measured to the end, and nothing is written", signal.SIGINT) from None
    if file is not None:
        try:
            if options.out is None:
                file, found.note = store(file, found.as_json())
            else:
                write_json(file, found.as_json())
        except OSError as error:
            raise ConfigError(f"{file}: can't write there ({error.strerror}). Type out=FILE.json in another folder") from None
        found.written = file
    return found


def held_out_config(asked: Asked) -> RunConfig | None:
    """The config whose `data` says which rows are the held-out set. None: there are none.

    Data that is typed is measured whole. Otherwise it is the evaluation set of the run, with the seed of the run.
    """
    data = replace(asked.cfg.data, streaming=False)  # the rows that are measured are read as a whole
    cfg = replace(asked.cfg, data=data)
    typed = {name for name in ("path", "mix", "eval_path") if getattr(data, name)} - {
        name.removeprefix("data.").partition(".")[0] for name in asked.from_run if name.startswith("data.")
    }
    if "eval_path" in typed:
        return cfg
    if typed:
        from_run = any(name.startswith("data.eval_fraction") for name in asked.from_run)
        keep = 0.0 if from_run or not data.eval_fraction else data.eval_fraction
        return replace(cfg, data=replace(data, eval_path=None, eval_fraction=keep))
    return cfg if data.eval_path or data.eval_fraction else None


def _check(asked: Asked, held_out: RunConfig | None) -> None:
    """Refuse what can't be measured. Nothing slow is imported."""
    wanted = asked.cfg.evaluate
    problems = [*checks.problems(asked.cfg), *_code_of_the_run(asked)]
    nothing = wanted.retention == NONE and not wanted.also and not wanted.tasks
    if held_out is None and (nothing or (wanted.metrics and not wanted.also)):
        whose = "this run has no evaluation set" if asked.options.run is not None else "no rows are named"
        problems.append(
            f"{whose}, so there is nothing to measure. Type data.path=FILE, evaluate.retention=auto or evaluate.tasks=[NAME]"
        )
    if wanted.every_steps is not None and "evaluate.every_steps" not in asked.from_run:
        problems.append("evaluate.every_steps is for hub train. Leave it out")
    sections = {".".join(name.split(".")[:2]) for name in asked.from_run}
    if asked.cfg.data.eval_fraction and sections & {"data.path", "data.mix"} and "data.eval_fraction" not in sections:
        problems.append(
            "data.eval_fraction: rows that this run was trained on would be measured as held-out. Leave it out, or type "
            "data.path=FILE"
        )
    of_tasks = {"num_fewshot": wanted.num_fewshot is not None, "apply_chat_template": wanted.apply_chat_template}
    problems += [
        f"evaluate.{name} is for tasks of lm-eval. Leave it out, or type evaluate.tasks=[NAME]"
        for name, is_set in of_tasks.items()
        if is_set and not wanted.tasks and f"evaluate.{name}" not in asked.from_run
    ]
    if problems:
        raise ConfigError(problems)


def _code_of_the_run(asked: Asked) -> list[str]:
    """One line for each option of the run that names code. Code is run only if its user has typed its name."""
    from_run = {".".join(name.split(".")[:2]) for name in asked.from_run}
    named = {"metrics": metrics.is_function, "tasks": harness_tasks.is_file_name}
    return [
        f"evaluate.{option}={value}: the config of the run names a file with code, which is run only if you type it. Type "
        f"evaluate.{option}=[{value}] if you trust it, else evaluate.{option}=[]"
        for option, is_code in named.items()
        if f"evaluate.{option}" in from_run
        for value in getattr(asked.cfg.evaluate, option)
        if is_code(value)
    ]


def _compared_with(asked: Asked) -> Finished | str | None:
    """The model to compare with. `base`: the same weights without the adapter. None: none."""
    options, finished, cfg = asked.options, asked.model, asked.cfg
    assert isinstance(options, EvaluateOptions)
    against = options.against
    if against == NONE:
        return None
    if against in (AUTO, BASE):
        if finished.adapter is not None:
            return BASE
        if finished.before is not None and finished.run_path is not None:
            return Finished(name="before training", base=finished.before)
        if against == AUTO:
            return None
        raise ConfigError(
            f"against=base: {finished.name} is a whole model whose base is not known. Type against=FOLDER, a run, or none"
        )
    try:
        return _named(against, cfg)
    except HubError as error:
        raise type(error)(str(error).replace(f"run={against}", f"against={against}", 1)) from None


def _named(against: str, cfg: RunConfig) -> Finished:
    """The model of a run, a folder, a preset or the model hub."""
    place = Path(os.path.expanduser(against))
    if against == LATEST or _is_run(place) or _is_run(Path(os.path.expanduser(cfg.output_dir)) / against):
        folder = run_folder(against, cfg.output_dir)
        return finished_run(against, cfg.output_dir, read(folder / "run.yaml"))
    if against in groups()["model"] and not place.exists():
        return finished_model(compose(f"model={against}").model)
    if (adapter := adapter_folder(against)) is not None:
        return finished_adapter(adapter, ModelConfig())
    looks_local = against.startswith(("/", ".", "~")) or "/" not in against
    if looks_local and not place.exists() and not against.startswith(("tiny:", "pypi:")):
        raise ConfigError(f"against={against}: there is no such run, folder or preset. Type base, none, a run or a folder")
    return finished_model(replace(ModelConfig(), path=str(place.absolute()) if place.exists() else against))


def _is_run(place: Path) -> bool:
    return any((folder / "run.yaml").is_file() for folder in (place, place.parent, *place.parents[1:2]))


def _file(asked: Asked, options: EvaluateOptions) -> Path | None:
    """Where the result goes. A checkpoint has no place for one."""
    if options.out is not None:
        file = Path(os.path.expanduser(options.out)).absolute()
        if not file.parent.is_dir():
            raise ConfigError(f"out={options.out}: there is no folder {file.parent}. Type out=FILE.json in one that exists")
    elif (run := asked.model.run_path) is not None and "/" not in asked.model.name:
        file = run / FILE
    else:
        return None
    if file.exists() and not _is_result(file):
        raise ConfigError(f"{file} is there already and holds no evaluation, so it is not overwritten. Type out=OTHER.json")
    if not os.access(file.parent, os.W_OK):
        raise ConfigError(f"{file.parent}: can't write there. Type out=FILE.json in another folder")
    return file


def _is_result(file: Path) -> bool:
    """Whether a file is an evaluation.json, of any version."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(values, dict) and {"version", "models", "rows"} <= values.keys()


def _measured(asked: Asked, held_out: RunConfig | None, other: Finished | str | None) -> Evaluation:
    from hub.tasks.evaluate.measure import measure, result_rows

    cfg = asked.cfg
    tasks = harness_tasks.load_tasks(cfg.evaluate) if cfg.evaluate.tasks else None
    begin = time.monotonic()
    asked_for = asked.model
    if isinstance(other, Finished):
        asked_for, other = named_apart([asked_for, other])
    loaded = load_measurable(asked, asked_for)
    plan = _plan(cfg, loaded, held_out, tasks)
    first = measure(loaded, plan, _Lines(loaded.name))
    models = [_description(asked_for, loaded)]
    second: Measurement | None = None
    if other == BASE:
        name = "base"
        with loaded.without_adapter():
            second = measure(loaded, plan, _Lines(name))
        models.append({**_description(asked_for, loaded), "name": name, "path": asked_for.base.path, "adapter": None})
    elif isinstance(other, Finished):
        tokenizer = loaded.tokenizer
        del loaded
        _free()
        loaded = load_measurable(asked, other)
        same = _same_tokens(tokenizer, loaded.tokenizer)
        second = measure(loaded, plan if same else _plan(cfg, loaded, held_out, tasks), _Lines(loaded.name))
        models.append(_description(other, loaded))
    settings = {
        **plan.settings,
        "layouts": first.layouts,
        "device": str(loaded.device.type),
        "against": models[1]["name"] if second is not None else None,
        "data": _data_of(held_out.data) if held_out is not None else None,
    }
    rows = result_rows(first, second, cfg.evaluate.seed)
    return Evaluation(models, settings, rows, time.monotonic() - begin)


def _plan(cfg: RunConfig, loaded: "Loaded", held_out: RunConfig | None, tasks: dict[str, Any] | None) -> "EvaluationPlan":
    from hub.tasks.evaluate.plan import prepare_plan
    from hub.tasks.evaluate.sets import Encoding

    folder = loaded.base_path if not loaded.has_adapter else None
    encoding = Encoding(loaded.tokenizer, loaded.max_positions, folder, _say)
    return prepare_plan(cfg, encoding, held_out, tasks=tasks)


def load_measurable(asked: Asked, finished: Finished) -> "Loaded":
    """Load a model, as it was when training began if a run says so."""
    from hub.models.causality import check_causal
    from hub.models.structure import text_config
    from hub.models.tokens import resize_embeddings, vocabulary_of
    from hub.tasks.loading import load_finished

    cfg = replace(asked.cfg, model=finished.base)
    loaded = load_finished(replace(asked, cfg=cfg), finished, _say)
    if finished.adapter is None and finished.base.changes_vocab:
        vocabulary = vocabulary_of(finished.base, loaded.base_path, loaded.tokenizer)
        if vocabulary is not None:
            model: Any = loaded.model
            resize_embeddings(model, vocabulary, finished.base, _say)
    check_causal(loaded.model, text_config(loaded.model).vocab_size, loaded.device, loaded.dtype)
    return loaded


def _same_tokens(one: Any, other: Any) -> bool:
    return bool(one.get_vocab() == other.get_vocab() and one.chat_template == other.chat_template)


def _free() -> None:
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _description(finished: Finished, loaded: "Loaded") -> dict[str, Any]:
    return {
        "name": finished.name,
        "path": str(finished.folder or finished.base.path),
        "base": finished.base.path,
        "adapter": None if finished.adapter is None else str(finished.adapter),
        "dtype": str(loaded.dtype).removeprefix("torch."),
    }


def _data_of(data: DataConfig) -> dict[str, Any]:
    names = ("path", "eval_path", "eval_split", "eval_fraction", "split", "subset", "format", "loss_on", "max_seq_len")
    return {name: getattr(data, name) for name in names} | {"mix": [source.path for source in data.mix]}


def _say(line: str) -> None:
    print(line, flush=True)


class _Lines:
    """Prints how far a measurement is, now and then."""

    def __init__(self, model: str) -> None:
        self._model, self._last = model, time.monotonic()

    def __call__(self, what: str, done: int, total: int) -> None:
        if time.monotonic() - self._last >= SECONDS_BETWEEN_LINES and done < total:
            self._last = time.monotonic()
            _say(f"{self._model}: {what}, {done:,} of {total:,}")
