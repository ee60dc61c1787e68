"""The Python API: each verb of the command line is a call that takes keyword arguments.

Every option of the command line is a keyword argument with the last part of its name: `algo.lora_r=8` is `lora_r=8`. Workers
are separate processes: they do not use a notebook's memory, and `nproc=8` works there. `__init__.pyi` has the signatures.
"""

from collections.abc import Callable
from dataclasses import make_dataclass
from inspect import Parameter, Signature, signature
from os import PathLike
from types import MappingProxyType, ModuleType
from typing import Any

import hub.data as data_package
import hub.plan as plan_package
from hub.config.finished import FinishedVerb
from hub.config.schema import PARTS as SECTIONS
from hub.config.schema import AlgoConfig
from hub.keywords import TOP, Data, arguments, finished_arguments, section_of_keyword
from hub.reports import DataReport, Option, Options
from hub.result import Result
from hub.system import timeline
from hub.tasks.verbs import FINISHED


def sft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune all weights of a model. See `run` for the arguments. Needs the plugin hub-sft."""
    return _train_with("sft", model, data, options)


def lora_sft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune a low-rank adapter (LoRA, arXiv 2106.09685) on a model. See `run`. Needs the plugin hub-lora-sft."""
    return _train_with("lora_sft", model, data, options)


def osft(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Fine-tune in low-importance singular directions (OSFT, arXiv 2504.07097). See `run`. Needs the plugin hub-osft."""
    return _train_with("osft", model, data, options)


def dpo(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Learn from preferences with all weights (DPO, arXiv 2305.18290, and its kin). See `run`. Needs the plugin hub-dpo."""
    return _train_with("dpo", model, data, options)


def lora_dpo(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Learn from preferences with a low-rank adapter. See `run`. Needs the plugin hub-dpo."""
    return _train_with("lora_dpo", model, data, options)


def osft_dpo(*, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Learn from preferences in low-importance singular directions. See `run`. Needs the plugin hub-dpo."""
    return _train_with("osft_dpo", model, data, options)


def _train_with(algo: str, model: str | PathLike[str], data: Data, options: dict[str, Any]) -> Result:
    if "algo" in options:
        raise TypeError(f"{algo}() trains with this algorithm only. For another one type run({options['algo']!r}, ...)")
    return run(algo, model=model, data=data, **options)


def run(
    algo: str | None = None,
    *,
    model: str | PathLike[str] | None = None,
    data: Data | None = None,
    track: str | None = "none",
    **options: Any,
) -> Result:
    """Train with any algorithm, and wait until it ends.

    Args:
        algo: name of an algorithm (`sft`, `lora_sft`, ...), of one of its presets (`qlora_sft`), or of one that `register` has
            made known. Leave it, `model` and `data` out to resume a run with its own options: `run(resume="latest")`.
        model: a preset's name (`"smollm2_135m"`), a folder, or an id of the model hub.
        data: a preset's name (`"tiny"`), a file, a folder, or the id of a dataset of the model hub. Or a list of sources, each
            a path, a `DataSource` or a dictionary with its options: `[{"path": "own.jsonl", "weight": 0.8}, ...]`. Or rows,
            which are written into `output_dir`: any iterable of dictionaries in one of the formats, a `datasets.Dataset`, the
            split train of a `DatasetDict`, a DataFrame of pandas or polars, a pyarrow Table.
        track: a tracker: `none`, `tensorboard`, `wandb`, `mlflow`, or another that `python -m hub --help` lists.
        options: every other option, with the names that `show` prints, without the part before the dot: those of the algorithm,
            of `data.`, `model.`, `launch.` and `track.`, and `output_dir`, `run_name`, `resume`.

    Returns:
        The result: path of the model, losses, run folder. `.metrics` has every logged step.

    Raises:
        TypeError: an option does not exist. The message has the nearest names.
        HubError: a value, the data, the model or the machine is not suitable. A `ConfigError` lists everything in `.problems`.
    """
    from hub.compose.compose import compose
    from hub.launch.launcher import launch

    if algo is None and not options.get("resume"):
        raise TypeError('run() needs an algorithm, e.g. run("lora_sft", model=..., data=...), or resume="latest"')
    timeline.start()
    overrides, values = arguments(algo, model, data, track, options)
    return launch(compose(*overrides, values=values))


def verify(algo: str, *, model: str | PathLike[str], data: Data, **options: Any) -> Result:
    """Check on your own model, data and processes that the layout does not change the gradient. Nothing is trained.

    Args:
        algo: as of `run`, and so are all other arguments.
        model: the model that would be trained.
        data: the data that it would be trained on.
        options: the options that the run would have.

    Returns:
        A result with the status `verified`. `verify.json` in its run folder has every figure.

    Raises:
        VerifyError: a check failed.
        HubError: as of `run`.
    """
    return run(algo, model=model, data=data, task="verify", **options)


def show(
    algo: str | None = None,
    *,
    model: str | PathLike[str] | None = None,
    data: Data | None = None,
    track: str | None = "none",
    **options: Any,
) -> Options:
    """Every option of a run with its value, where that comes from, and what it means. Nothing is started.

    Args:
        algo: as of `run`, and so are all other arguments. Each may be left out.
        model: the model.
        data: the data.
        track: the tracker.
        options: options to set.

    Returns:
        The options by full name: `show("lora_sft")["algo.lora_r"]`. It shows itself as a table. `.problems` has what is still
        missing or wrong.
    """
    from hub.compose.compose import compose, origins
    from hub.config.option import leaves
    from hub.plugins.registry import data_format_names
    from hub.secrets import without_secrets

    overrides, values = arguments(algo, model, data, track, options)
    cfg = compose(*overrides, values=values)
    sources = origins(*overrides)
    sources |= {f"{part}.{name}": "keyword" for part in values if part in SECTIONS for name in values[part]}
    sources |= {name: "keyword" for name in values if name in TOP}
    listed = [
        Option(name, without_secrets(value) if isinstance(value, str) else value, sources.get(name, "default"), meaning)
        for name, value, _, meaning in leaves(cfg)
    ]
    return Options(listed, cfg.problems(data_formats=data_format_names()))


def check_data(data: Data, *, model: str | PathLike[str], algo: str | None = None, **options: Any) -> DataReport:
    """Inspect the data of a run: lengths, trained tokens, errors. Called as `hub.data(...)`.

    Args:
        data: as of `run`.
        model: the model whose tokenizer and chat template would be used.
        algo: the algorithm, if options of it are given too.
        options: the options that the run would have.

    Returns:
        The report, which shows itself as a page.

    Raises:
        HubError: the data can't be read at all.
    """
    from hub.compose.compose import compose
    from hub.launch.preflight import prepare_data

    overrides, values = arguments(algo, model, data, options.pop("track", "none"), options)
    cfg = prepare_data(compose(*overrides, values=values))
    from hub.data.doctor.examine import examine
    from hub.data.doctor.page import page
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.models.load import load_config
    from hub.models.structure import max_positions
    from hub.models.weights import local_tokenizer
    from hub.parallel.session import quiet_libraries

    quiet_libraries()
    path = local_tokenizer(cfg.model, print)
    tokenizer = load_tokenizer(cfg, path)
    examined = examine(cfg, tokenizer, max_positions(load_config(cfg.model, path)))
    return DataReport(examined.report(), page(examined, tokenizer), examined.spoils)


def plan_run(
    algo: str,
    *,
    model: str | PathLike[str],
    data: Data | None = None,
    **options: Any,
) -> Any:
    """Plan a run: memory, layout, time and price, before it runs and on hardware that is not here. Called as `hub.plan(...)`.

    Args:
        algo: as of `run`, and so are all other arguments.
        model: the model. Its config.json is enough.
        data: the data. None: samples of 2,048 tokens are assumed.
        options: the options that the run would have. Those of the plan are a dictionary:
            `plan={"gpu": "rtx4090", "gpus": 2}`.

    Returns:
        The plan, which shows itself as a page. `.as_json()` has every figure.

    Raises:
        HubError: an option, the model, the data or the GPU is wrong.
    """
    from hub.launch.planning import plan as plan_words

    overrides, values = arguments(algo, model, data, options.pop("track", "none"), options)
    return plan_words(overrides, values=values)


class _Signature(Signature):
    """The signature of a call with every option, from which a running notebook completes. Plugins load when it is asked for."""

    def __init__(self, call: Callable[..., Any], algo: str | None = None) -> None:
        of_call = signature(call)
        super().__init__(list(of_call.parameters.values()), return_annotation=of_call.return_annotation)
        self._algo = algo

    @property
    def parameters(self) -> MappingProxyType[str, Parameter]:
        from hub.plugins.registry import registry

        *own, rest = super().parameters.values()
        algorithm = registry().algorithms.get(self._algo or "")
        names = section_of_keyword(algorithm.config if algorithm else AlgoConfig)
        every = {name: Parameter(name, Parameter.KEYWORD_ONLY, default=...) for name in ("track", *names)}
        known = {parameter.name: parameter for parameter in own}
        return MappingProxyType(known | {name: one for name, one in every.items() if name not in known} | {rest.name: rest})


for of_algorithm in (sft, lora_sft, osft, dpo, lora_dpo, osft_dpo):
    vars(of_algorithm)["__signature__"] = _Signature(of_algorithm, of_algorithm.__name__)
for call in (run, verify, show):
    vars(call)["__signature__"] = _Signature(call)


class _CallableData(ModuleType):
    """The package hub.data, which is the verb `data` too."""

    __signature__ = _Signature(check_data)

    def __call__(self, data: Data, *, model: str | PathLike[str], algo: str | None = None, **options: Any) -> DataReport:
        return check_data(data, model=model, algo=algo, **options)

    __call__.__doc__, __call__.__qualname__ = check_data.__doc__, "data"


# The verbs are calls of the same names, and a package has this one. Python lets a module have a class of its own.
data_package.__class__ = _CallableData


class _CallablePlan(ModuleType):
    """The package hub.plan, which is the verb `plan` too."""

    __signature__ = _Signature(plan_run)

    def __call__(self, algo: str, *, model: str | PathLike[str], data: Data | None = None, **options: Any) -> Any:
        return plan_run(algo, model=model, data=data, **options)

    __call__.__doc__, __call__.__qualname__ = plan_run.__doc__, "plan"


plan_package.__class__ = _CallablePlan


def ask(
    verb: str,
    *,
    run: str | PathLike[str] | None = None,
    model: str | PathLike[str] | None = None,
    data: Data | None = None,
    **options: Any,
) -> Any:
    """Do something with a finished model: what `python -m hub VERB` does. `hub.VERB(...)` is the same.

    Args:
        verb: name of the verb.
        run: the run whose model is asked: `"latest"` or a run folder. A `Result` has it as `run_path`.
        model: a preset's name, a folder with a model or an adapter, or an id of the model hub. Leave it out with `run`.
        data: as of `run()`, for a verb that reads data.
        options: the options of the verb, and those of the sections that it reads, each by the last part of its name.

    Returns:
        What the verb found. It shows itself.

    Raises:
        TypeError: an option does not exist.
        HubError: a value, the model or the data is not suitable.
    """
    from hub.launch.finished import ask as ask_finished

    found = FINISHED[verb]
    overrides, values, own = finished_arguments(found, run, model, data, options)
    return ask_finished(found, overrides, values=values, own=own)


def _finished_call(verb: FinishedVerb) -> Callable[..., Any]:
    """The Python call of a verb on finished models."""

    def call(*, run: Any = None, model: Any = None, data: Any = None, **options: Any) -> Any:
        return ask(verb.name, run=run, model=model, data=data, **options)

    call.__name__ = call.__qualname__ = verb.name
    call.__doc__ = f"{verb.summary}\n\n{(ask.__doc__ or '').partition('is the same.')[2].lstrip()}"
    return call


finished_calls = {name: _finished_call(verb) for name, verb in FINISHED.items()}
"""The Python calls of the verbs on finished models. `hub/__init__.py` exports each."""


def register(
    name: str, build: Callable[[Any], Any], *, config: type[AlgoConfig] | None = None, summary: str | None = None
) -> None:
    """Make an algorithm of this program or notebook known, until the process ends. Then `run(name, ...)` trains with it.

    It trains in this process, since others can't import what is defined here. For several processes put it into a plugin
    (docs/plugins.md). To change it, register it again.

    Args:
        name: lower case letters, digits and underscores.
        build: a function of the setup (`hub.recipe.Setup`) that returns a `hub.recipe.Recipe`.
        config: the dataclass of its options, a subclass of `hub.AlgoConfig`. None: the options of every algorithm.
        summary: one line on what it does. None: the first line of the docstring of `build`.

    Raises:
        PluginError: the name is taken by a plugin, or the class or the function does not fit.
    """
    from hub.compose.compose import store_schema
    from hub.plugins.offers import Algorithm
    from hub.plugins.registry import register_here

    options = config or make_dataclass(f"{name.title().replace('_', '')}Config", [], bases=(AlgoConfig,), kw_only=True)
    line = summary if summary is not None else (build.__doc__ or "").strip().partition("\n")[0]
    register_here(Algorithm(name=name, config=options, summary=line), build)
    store_schema(name)
