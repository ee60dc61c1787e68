"""The verb `scale`: measures an adapter at several strengths and writes it with the chosen one.

An adapter of strength a computes W + a s B A: the line from the base weights (a = 0) over the trained ones (a = 1), on which
WiSE-FT (Wortsman et al. 2022, arXiv 2109.01903) found points that are better at both old and new tasks.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hub.config.option import AUTO
from hub.errors import ConfigError
from hub.models.finished import Asked, output_folder
from hub.run import Run
from hub.tables import as_columns, as_html
from hub.tasks.scale.verb import ScaleOptions

if TYPE_CHECKING:
    from hub.tasks.evaluate.losses import Losses
    from hub.tasks.loading import Loaded
    from hub.tasks.scale.replaced import Replaced


@dataclass(repr=False)
class Scaled:
    """What was measured, and what was written. In a terminal and in a notebook it is a table."""

    curve: list[dict[str, Any]]
    """For each strength: `alpha`, the loss on each set (`losses`), and `cost`, which is minimized."""

    alpha: float
    """The chosen strength."""

    gain: dict[str, Any] | None
    """The difference of the held-out loss to strength 1, with its interval. None: it was not measured."""

    path: Path
    """Folder of the adapter."""

    note: str = ""

    def as_json(self) -> dict[str, Any]:
        return {"curve": self.curve, "alpha": self.alpha, "gain": self.gain, "path": str(self.path)}

    def _cells(self) -> tuple[list[str], list[list[str]]]:
        names = list(self.curve[0]["losses"]) if self.curve else []
        rows = [
            [
                f"{point['alpha']:g}{' *' if point['alpha'] == self.alpha else ''}",
                *(f"{point['losses'][name]:.4f}" for name in names),
                f"{point['cost']:.4f}",
            ]
            for point in self.curve
        ]
        return ["alpha", *names, "cost"], rows

    def __repr__(self) -> str:
        head, rows = self._cells()
        lines = [*as_columns([head, *rows]), ""] if rows else []
        notes = [line for line in (self.note, f"adapter of strength {self.alpha:g}: {self.path}") if line]
        return "\n".join([*lines, *notes])

    def _repr_html_(self) -> str:
        head, rows = self._cells()
        return as_html(rows, head)


def scale(asked: Asked) -> Scaled:
    """Measure the adapter at each strength, and write it with the chosen one.

    Raises:
        ConfigError: there is no adapter, it can't be scaled, or nothing says how good a strength is.
    """
    options, finished = asked.options, asked.model
    assert isinstance(options, ScaleOptions)
    if finished.adapter is None:
        raise ConfigError(
            f"{finished.name} is no adapter, so it has no strength. To mix a whole model with its base type hub average run=RUN"
        )
    default = (finished.run_path or finished.adapter.parent) / "scaled"
    return _scale(asked, options, finished.adapter, output_folder(options.out, default, [finished.adapter]))


def _scale(asked: Asked, options: ScaleOptions, folder: Path, out: Path) -> Scaled:
    from hub.models.adapters import StoredAdapter, check_scalable, scaled
    from hub.tasks.evaluate.losses import gain, gain_line, measures_something, rows_to_choose_by

    adapter = StoredAdapter.read(folder)
    check_scalable(adapter)
    held_out = rows_to_choose_by(asked)
    measures = measures_something(asked, held_out)
    if not measures and options.alpha == AUTO:
        raise ConfigError(
            "alpha=auto needs rows to choose by, and there is no evaluation set. Type data.path=FILE with rows that were not "
            "trained on, or alpha=NUMBER"
        )
    from hub.tasks.evaluate.losses import cost
    from hub.tasks.loading import load_finished
    from hub.tasks.scale.replaced import on_line, replaced_by

    replaced: Replaced = {}
    measured: dict[float, Losses] = {}
    if measures or adapter.others:
        loaded = load_finished(asked, asked.model, _say)
        replaced = replaced_by(loaded.model) if adapter.others else {}
        measured = _curve(asked, options, held_out, loaded, replaced) if measures else {}
    base = measured.get(0.0)
    costs = {strength: cost(losses, base) for strength, losses in measured.items()}
    chosen = min(costs, key=lambda strength: costs[strength]) if options.alpha == AUTO else float(options.alpha)
    if chosen == 0.0 and options.alpha == AUTO:
        raise ConfigError(
            f"no strength is better than the base on these rows (held-out loss and what was forgotten: {costs[0.0]:.4f}, and "
            f"{min(value for strength, value in costs.items() if strength):.4f} for the best strength). Nothing is written. "
            "Type alpha=NUMBER to write one anyway"
        )
    others = {
        name: on_line(adapter.tensors[name], base, chosen) for name, (_, base) in replaced.items() if name in adapter.tensors
    }
    scaled(adapter, chosen, others).write(out)
    found = gain(measured[1.0], measured[chosen], asked.cfg.evaluate.seed) if measured and chosen != 1.0 else None
    curve = [
        {"alpha": strength, "losses": {name: one.value for name, one in losses.items()}, "cost": costs[strength]}
        for strength, losses in sorted(measured.items())
    ]
    note = gain_line(found, "that of the adapter as trained")
    if measured and chosen == 1.0:
        note = "the strength that was trained is the best one of those measured"
    result = Scaled(curve, chosen, None if found is None else vars(found), out, note)
    if asked.model.run_path is not None:
        Run(asked.model.run_path).write_plan(scaled=result.as_json())
    return result


def _curve(asked: Asked, options: ScaleOptions, held_out: Any, loaded: "Loaded", replaced: "Replaced") -> "dict[float, Losses]":
    """The losses at each strength. 0 and 1 are always among them."""
    from hub.tasks.evaluate.losses import plan_of_losses
    from hub.tasks.evaluate.measure import loss_figures
    from hub.tasks.evaluate.ways import open_scorer
    from hub.tasks.scale.replaced import of_strength

    plan = plan_of_losses(asked, held_out, loaded, _say)
    own = [] if isinstance(options.alpha, str) else [options.alpha]
    strengths = sorted({0.0, 1.0, *own, *(options.alphas if options.alpha == AUTO else ())})
    longest = max(len(sample) for one in plan.sets for sample in one.samples)
    measured: dict[float, Losses] = {}
    with open_scorer(loaded, longest, plan.cfg.batch_size) as scorer:
        for strength in strengths:
            with _of_strength(loaded, strength), of_strength(replaced, strength):
                measured[strength] = loss_figures(scorer, plan)
            _say(
                f"alpha {strength:g}: " + ", ".join(f"{name} loss {one.value:.4f}" for name, one in measured[strength].items())
            )
    return measured


@contextmanager
def _of_strength(loaded: "Loaded", strength: float) -> Iterator[None]:
    """Let the adapters of a model add so many times what they were trained to add."""
    from peft.tuners.lora import LoraLayer

    layers = [layer for layer in loaded.model.modules() if isinstance(layer, LoraLayer)]
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer, trained in zip(layers, before, strict=True):
            layer.scaling.update({name: value * strength for name, value in trained.items()})
        yield
    finally:
        for layer, trained in zip(layers, before, strict=True):
            layer.scaling.update(trained)


def _say(line: str) -> None:
    print(line, flush=True)
