"""The verb `continual`: trains through tasks one after another by several methods, and compares what each learned and kept."""

import json
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hub.compose.compose import compose
from hub.config.option import leaves
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.models.finished import Asked
from hub.tables import as_columns, as_html
from hub.tasks.continual.job import BEFORE, Job
from hub.tasks.continual.jobs import FAILED, run_all
from hub.tasks.continual.metrics import figures
from hub.tasks.continual.report import page
from hub.tasks.continual.study import Method, Study
from hub.tasks.continual.verb import ContinualOptions

COLUMNS = (
    "average accuracy",
    "learned",
    "backward transfer",
    "forward transfer",
    "forgetting",
    "containing",
    "rise of text loss",
)


@dataclass(repr=False)
class Compared:
    """What was measured. In a terminal and in a notebook it is a table."""

    rows: list[dict[str, Any]]
    """Each method: `method`, `seeds`, and each figure with its values by seed. See `hub.tasks.continual.metrics`."""

    path: Path
    """Folder with table.md, report.html and the runs."""

    notes: list[str] = field(default_factory=list)
    """What failed, and what is left."""

    @property
    def failed(self) -> bool:
        """Whether a run failed."""
        return any(note.startswith(FAILED) for note in self.notes)

    def as_json(self) -> dict[str, Any]:
        return {"rows": self.rows, "path": str(self.path), "notes": self.notes}

    def cells(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows of the table: means, and the standard deviations over the seeds."""
        shown = [name for name in COLUMNS if any(row.get(name) for row in self.rows)]
        rows = [[row["method"], str(len(row["seeds"])), *(_spread(row.get(name, [])) for name in shown)] for row in self.rows]
        return ["method", "seeds", *shown], rows

    def __repr__(self) -> str:
        head, rows = self.cells()
        return "\n".join([*as_columns([head, *rows]), "", *self.notes, f"report: {self.path / 'report.html'}"])

    def _repr_html_(self) -> str:
        head, rows = self.cells()
        return as_html(rows, head)


def continual(asked: Asked) -> Compared:
    """Run what is left of a study, and compare.

    Raises:
        ConfigError: there is no model, or a method can't be run.
    """
    options = asked.options
    assert isinstance(options, ContinualOptions)
    assert options.tasks is not None
    if problems := list(_missing(options.tasks, options.text)):
        raise ConfigError(problems)
    methods = [Method(name) for name in options.methods]
    study = _study(asked.cfg, options)
    _check(methods, study)
    out = Path(options.out).expanduser().absolute()
    out.mkdir(parents=True, exist_ok=True)
    _same_study(out, study)
    before = Job(study, BEFORE, 0, str(out / BEFORE))
    jobs = [
        Job(study, method.name, seed, str(out / f"{method.label}-seed{seed}")) for method in methods for seed in options.seeds
    ]
    notes = run_all([before, *jobs], options.jobs, options.time_limit)
    result = Compared(_rows(methods, jobs, before), out, notes)
    head, cells = result.cells()
    lines = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *cells)]
    (out / "table.md").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (out / "report.html").write_text(page(study, jobs, before, head, cells), encoding="utf-8")
    return result


def _missing(tasks: str, text: str | None) -> Iterator[str]:
    """A line for each file that is not there."""
    files = sorted(Path(tasks).expanduser().glob("*_train.jsonl"))
    if not files:
        yield f"tasks={tasks}: there is no file NAME_train.jsonl. Type the folder of the tasks"
    for file in files:
        test = file.with_name(file.name.replace("_train.jsonl", "_test.jsonl"))
        if not test.is_file():
            yield f"tasks={tasks}: {test.name} is missing, the test rows of {file.name}. Write it"
    if text is not None and not Path(text).expanduser().is_file():
        yield f"text={text}: there is no such file. Type a file with rows of `text`"


def _study(cfg: RunConfig, options: ContinualOptions) -> Study:
    if not cfg.model.path:
        raise ConfigError("hub continual: no model is named. Type model=NAME, or model.path=FOLDER")
    from hub.models.weights import local_weights

    changed = {name: value for name, value, default, _ in leaves(cfg.model, "") if value != default}
    path = str(local_weights(cfg.model, print))
    folder = Path(str(options.tasks)).expanduser().absolute()
    names = sorted(file.name.removesuffix("_train.jsonl") for file in folder.glob("*_train.jsonl"))
    tasks = {name: [str(folder / f"{name}_{part}.jsonl") for part in ("train", "test")] for name in names}
    text = str(Path(options.text).expanduser().absolute()) if options.text is not None else None
    model = {**changed, "path": path}
    return Study(model, tasks, text, options.rows, options.test_rows, options.replayed, options.shuffle)


def _check(methods: list[Method], study: Study) -> None:
    """Refuse methods that do not exist, before anything runs."""
    file = next(iter(study.tasks.values()))[0]
    for method in methods:
        try:
            cfg = compose(f"algo={method.algorithm}", f"model.path={study.model['path']}", f"data.path={file}", *method.words)
            lines = cfg.problems()
        except ConfigError as error:
            lines = str(error).splitlines()
        if lines:
            raise ConfigError([f"methods={method.name}: {line}" for line in lines])


def _same_study(out: Path, study: Study) -> None:
    file = out / "study.json"
    now = json.dumps(study.__dict__, sort_keys=True, default=str)
    if file.is_file() and file.read_text(encoding="utf-8") != now:
        raise ConfigError(f"out={out} has runs of another study (other tasks, rows or model). Type out=FOLDER")
    file.write_text(now, encoding="utf-8")


def _rows(methods: list[Method], jobs: list[Job], before: Job) -> list[dict[str, Any]]:
    base = before.state["measured"][0] if before.is_done else None
    rows = []
    for method in methods:
        states = [job.state for job in jobs if job.method == method.name and job.is_done]
        if not states or base is None:
            continue
        row: dict[str, Any] = {"method": method.name, "seeds": [state["seed"] for state in states]}
        for state in states:
            for name, value in _figures(state, base).items():
                row.setdefault(name, []).append(value)
        rows.append(row)
    return rows


def _figures(state: dict[str, Any], base: dict[str, Any]) -> dict[str, float]:
    order, measured = state["tasks"], state["measured"]
    found = figures([[one["right"][task] for task in order] for one in measured], [base["right"][task] for task in order])
    found["containing"] = statistics.mean(measured[-1]["containing"].values())
    if measured[-1]["text_loss"] is not None:
        found["rise of text loss"] = measured[-1]["text_loss"] - base["text_loss"]
    return found


def _spread(values: list[float]) -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):.3f}"
    return f"{mean} ± {statistics.stdev(values):.3f}" if len(values) > 1 else mean
