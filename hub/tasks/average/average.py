"""The verb `average`: one model from several, measured on held-out rows beside those that it is made of."""

import json
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.compose import runfile
from hub.config.option import leaves
from hub.config.schema import RunConfig
from hub.errors import ConfigError, HubError
from hub.models.finished import (
    Asked,
    Finished,
    adapter_folder,
    finished_adapter,
    finished_model,
    finished_run,
    named_apart,
    output_folder,
    run_folder,
)
from hub.result import Result
from hub.run import Run
from hub.tables import as_columns, as_html
from hub.tasks.average.verb import AverageOptions

if TYPE_CHECKING:
    from hub.tasks.average.measured import Meter
    from hub.tasks.evaluate.losses import Losses

HALF = 0.5
"""Weight of the base beside a single model."""


@dataclass(repr=False)
class Averaged:
    """What was averaged, and what it is worth. In a terminal and in a notebook it is a table."""

    models: list[dict[str, Any]]
    """Each model: `name`, `weight` in the average, the loss on each set (`losses`). The last one is the average."""

    gain: dict[str, Any] | None
    """The difference of the held-out loss to the best single model, with its interval. None: it was not measured."""

    path: Path
    """Folder of the result."""

    notes: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return {"models": self.models, "gain": self.gain, "path": str(self.path)}

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = list(self.models[-1]["losses"])
        rows = []
        for model in self.models:
            weight = "" if model["weight"] is None else f"{model['weight']:.3g}"
            losses = [f"{model['losses'][name]:.4f}" if name in model["losses"] else "" for name in names]
            rows.append([model["name"], weight, *losses])
        return ["model", "weight", *(f"{name} loss" for name in names)], rows

    def __repr__(self) -> str:
        head, rows = self._cells()
        return "\n".join([*as_columns([head, *rows]), "", *self.notes, f"averaged model: {self.path}"])

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        return as_html(rows, head)


def average(asked: Asked) -> Averaged:
    """Average models, and measure the result beside them.

    Raises:
        ConfigError: there is nothing to average, or the models do not fit together.
    """
    options = asked.options
    assert isinstance(options, AverageOptions)
    asked, models = _models(asked, options)
    models = named_apart(models)
    share = options.base if options.base is not None else (HALF if len(models) == 1 else 0.0)
    _check(models, options, share)
    weights = options.weights or [1.0] * len(models)
    weights = [weight / sum(weights) * (1 - share) for weight in weights]
    first = models[0]
    folders = [_folder(model) for model in models]
    out = output_folder(options.out, (first.run_path or folders[0].parent) / "averaged", folders)
    found = _average(asked, options, models, weights, out)
    _tell_runs(models, found)
    return found


def _tell_runs(models: Sequence[Finished], found: Averaged) -> None:
    """Write the average into plan.json of each run that it is made of, for the report."""
    for path in dict.fromkeys(model.run_path for model in models if model.run_path is not None):
        try:
            Run(path).write_plan(averaged=found.as_json())
        except OSError as error:
            found.notes.append(f"{path}: can't write plan.json there ({error.strerror}), so its report does not show this")


def _models(asked: Asked, options: AverageOptions) -> tuple[Asked, list[Finished]]:
    """The models that are averaged; and what is asked, with the config of the first run if `runs` names them."""
    if options.run is not None:
        found = [asked.model]
        if options.last is not None:
            found = _last(asked.model, options.last, asked.cfg)
        return asked, found
    if not options.runs:
        if asked.finished is None:
            raise ConfigError("nothing is named. Type run=latest for a run and its base, or runs=[RUN,RUN,...]")
        return asked, [asked.finished]
    if asked.finished is not None:
        raise ConfigError("runs= and model= name different models. Leave one of them out")
    found, config = [], None
    for run in options.runs:
        if folder := adapter_folder(run):
            found.append(finished_adapter(folder, asked.cfg.model))
        elif _is_whole_model(Path(os.path.expanduser(run))):
            found.append(finished_model(replace(asked.cfg.model, path=os.path.abspath(os.path.expanduser(run)))))
        else:
            try:
                cfg = runfile.read(run_folder(run, asked.cfg.output_dir) / "run.yaml")
                found.append(finished_run(run, asked.cfg.output_dir, cfg))
            except HubError as error:
                raise type(error)(str(error).replace(f"run={run}", f"runs={run}", 1)) from None
            config = config or cfg
    return _with_data_of(asked, found[0], config), found


def _is_whole_model(place: Path) -> bool:
    """Whether a place is a folder with a model that is not the one of a run folder."""
    return (place / "config.json").is_file() and not (place.name == "model" and (place.parent / "run.yaml").is_file())


def _with_data_of(asked: Asked, first: Finished, run: RunConfig | None) -> Asked:
    """With the data of the first run, unless data is typed."""
    cfg = replace(asked.cfg, model=first.base)
    if run is None or cfg.data.path or cfg.data.mix or cfg.data.eval_path:
        return replace(asked, cfg=cfg, finished=first)
    for name, value, default, _ in leaves(cfg.data, "data."):
        if value != default and name != "data.date":  # that of the day, if none is typed
            raise ConfigError(
                f"{name}={value} is for data that you name, and the rows are those of {first.name}. Type data.path=FILE too"
            )
    names = frozenset({"data.path", "data.mix", "data.eval_path", "data.eval_fraction"})
    return replace(asked, cfg=replace(cfg, data=run.data, algo=run.algo), finished=first, from_run=names)


def _last(model: Finished, number: int, cfg: RunConfig) -> list[Finished]:
    """The last models of a run, the newest first: its result and its checkpoints."""
    assert model.run_path is not None
    if model.folder != model.run_path / "model":
        raise ConfigError(
            f"last={number} takes the last models of a run, and {model.name} is one of them. Type run={model.run_path}"
        )
    result = Result.read(model.run_path / "result.json")
    own = f"step-{result.best_step or result.num_steps:08d}"
    states = sorted((model.run_path / "checkpoints").glob("step-*/state.json"), reverse=True)
    earlier = [state.parent for state in states if state.parent.name != own]
    found = [model, *(finished_run(str(folder), str(model.run_path.parent), cfg) for folder in earlier)]
    if len(found) < number:
        have = f"its result and {len(earlier)} other checkpoints" if earlier else "no checkpoints beside its result"
        hint = f"Type last={len(found)}. For more, train" if earlier else "Train"
        raise ConfigError(
            f"last={number}: {model.run_path} has {have}. {hint} with algo.save_every_steps=N and a larger "
            "algo.keep_checkpoints"
        )
    return found[:number]


def _check(models: Sequence[Finished], options: AverageOptions, share: float) -> None:
    """Refuse models that do not fit together, or not with the options. `share` is the base's weight."""
    kinds = {model.adapter is None for model in models}
    if len(kinds) > 1:
        adapters = ", ".join(model.name for model in models if model.adapter is not None)
        raise ConfigError(f"adapters ({adapters}) and whole models can't be averaged. Name models of one kind")
    if options.rank is not None and models[0].adapter is None:
        raise ConfigError(f"rank={options.rank} is for adapters, and {models[0].name} is a whole model. Leave it out")
    if options.weights and len(options.weights) != len(models):
        raise ConfigError(f"weights has {len(options.weights)} numbers for {len(models)} models. Type one for each")
    if options.greedy and len(models) < 2:
        raise ConfigError("greedy=true chooses among several models. Type runs=[RUN,RUN,...], or run=latest last=3")
    for model in models:
        if model.adapter is None and model.folder is None:
            raise ConfigError(f"{model.name} is not in a folder of this machine. Name a run or a folder")
    if share and models[0].adapter is None and models[0].before is None:
        raise ConfigError(
            f"{models[0].name}: the model that training began with is not known. Name a run, or several models: runs=A,B"
        )
    first, *others = [(model, _tokens(_folder(model))) for model in models]
    for model, tokens in others:
        if tokens and first[1] and tokens != first[1]:
            raise ConfigError(f"{first[0].name} and {model.name} have different tokens, so they can't be averaged")


def _tokens(folder: Path) -> Any:
    """The tokens of a model with their ids. None: its folder does not say."""
    try:
        values = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        return values["model"].get("vocab"), [(token["id"], token["content"]) for token in values.get("added_tokens", [])]
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _folder(model: Finished) -> Path:
    folder = model.folder
    assert folder is not None
    return folder


def _average(asked: Asked, options: AverageOptions, models: list[Finished], weights: list[float], out: Path) -> Averaged:
    from hub.tasks.average.measured import Meter
    from hub.tasks.evaluate.losses import cost, gain, gain_line, measures_something, rows_to_choose_by

    _refuse_unlike(models, weights)
    held_out = rows_to_choose_by(asked)
    measurable = measures_something(asked, held_out)
    if options.greedy and not measurable:
        raise ConfigError("greedy=true chooses by held-out loss, and there are no rows. Type data.path=FILE with such rows")
    meter = Meter(asked, models[0], held_out) if measurable else None
    share = 1 - sum(weights)
    base = meter.of_base() if meter is not None else None
    singles: Sequence[Losses] = [meter.of_folder(_folder(model)) for model in models] if meter is not None else []
    for model, losses in zip(models, singles, strict=False):
        _say(f"{model.name}: " + ", ".join(f"{name} loss {one.value:.4f}" for name, one in losses.items()))
    aside = out.with_name(f".{out.name}.candidate")
    notes: list[str] = []
    try:
        if options.greedy:
            assert meter is not None
            weights = _greedy(models, [cost(losses, base) for losses in singles], meter, base, options.rank, aside)
        _write(models, weights, options.rank, aside)
        averaged = meter.of_folder(aside) if meter is not None else {}
        shutil.rmtree(out, ignore_errors=True)
        aside.rename(out)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    found = None
    if singles:
        best = min(range(len(models)), key=lambda number: cost(singles[number], base))
        found = gain(singles[best], averaged, asked.cfg.evaluate.seed)
        notes.append(
            gain_line(
                found, f"that of {models[best].name}" if len(models) == 1 else f"that of the best one, {models[best].name}"
            )
        )
    else:
        notes.append("not measured: there is no evaluation set. Type data.path=FILE with rows that were not trained on")
    rows: list[dict[str, Any]] = [{"name": "base", "weight": share, "losses": _values(base)}] if share > 1e-9 else []
    rows += [
        {"name": model.name, "weight": weight, "losses": _values(losses)}
        for model, weight, losses in zip(models, weights, singles or [{}] * len(models), strict=True)
    ]
    rows.append({"name": "average", "weight": None, "losses": _values(averaged)})
    return Averaged(rows, None if found is None else vars(found), out, [note for note in notes if note])


def _refuse_unlike(models: Sequence[Finished], weights: Sequence[float]) -> None:
    """Refuse models that can't be averaged, before they are measured."""
    from hub.models import adapters, averaging

    folders = [_folder(model) for model in models]
    if models[0].adapter is not None:
        adapters.check_alike([adapters.StoredAdapter.read(folder) for folder in folders], weights)
    else:
        averaging.check_alike(folders)


def _values(losses: "Losses | None") -> dict[str, float]:
    return {name: one.value for name, one in (losses or {}).items()}


def _greedy(
    models: list[Finished],
    costs: list[float],
    meter: "Meter",
    base: "Losses | None",
    rank: int | None,
    aside: Path,
) -> list[float]:
    """The weights of a greedy soup: each model is taken if the average with it is better than without it."""
    from hub.tasks.evaluate.losses import cost

    order = sorted(range(len(models)), key=lambda number: costs[number])
    taken, best = [order[0]], costs[order[0]]
    for number in order[1:]:
        trial = sorted([*taken, number])
        _write([models[i] for i in trial], [1 / len(trial)] * len(trial), rank, aside)
        reached = cost(meter.of_folder(aside), base)
        helps = reached < best
        _say(f"with {models[number].name}: {reached:.4f}, {'taken' if helps else 'left out'} (best so far {best:.4f})")
        if helps:
            taken, best = trial, reached
    return [1 / len(taken) if number in taken else 0.0 for number in range(len(models))]


def _write(models: Sequence[Finished], weights: Sequence[float], rank: int | None, out: Path) -> None:
    """Write an average. What the weights lack to 1 is the base's share."""
    from hub.models.adapters import StoredAdapter, average
    from hub.models.averaging import average_models

    used = [(model, weight) for model, weight in zip(models, weights, strict=True) if weight]
    if models[0].adapter is not None:
        average([StoredAdapter.read(_folder(model)) for model, _ in used], [weight for _, weight in used], rank).write(out)
        return
    folders, shares = [_folder(model) for model, _ in used], [weight for _, weight in used]
    if (share := 1 - sum(shares)) > 1e-9:
        folders.append(base_folder(models[0], _say))
        shares.append(share)
    average_models(folders, shares, out)


def base_folder(model: Finished, say: Callable[[str], None]) -> Path:
    """The local folder of the whole model that training began with.

    Raises:
        ConfigError: it is not known.
    """
    from hub.models.weights import local_weights

    if model.before is None:
        raise ConfigError(f"{model.name}: the model that training began with is not known. Name a run, or type runs=[A,B]")
    return local_weights(model.before, say)


def _say(line: str) -> None:
    print(line, flush=True)
