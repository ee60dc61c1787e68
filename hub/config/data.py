"""Options of the data of a run: `DataConfig`, and `DataSource` for each of several sources."""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from hub.config.option import AUTO, field_problems, option
from hub.data.sources.files import is_hub_id
from hub.errors import did_you_mean

if TYPE_CHECKING:
    from hub.config.schema import RunConfig

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "tokens", "preference", "chosen", "document")
"""The hub's own formats. Plugins add others."""

TEMPLATES = ("plain", "alpaca", "chatml", "gemma", "llama3", "mistral", "phi3", "vicuna", "zephyr")
"""Chat templates that come with the hub."""

DEFAULT_WINDOW = 10_000


@dataclass(kw_only=True)
class DataSource:
    """One of several sources of data, and how much of the samples it gives."""

    path: str = ""
    """As `data.path`."""

    weight: float | None = option(None, ge=0)
    """Share in the samples of the run, in proportion to the weights of the other sources. null: see `epochs`."""

    epochs: float | None = option(None, gt=0)
    """Passes over this source in one pass over all. On all sources in place of weights (null: 1), or on one beside them."""

    format: str = AUTO
    """As `data.format`. auto: what `data.format` says."""

    subset: str | None = None
    """As `data.subset`."""

    split: str = "train"
    """As `data.split`."""

    name: str | None = None
    """Short name in reports and metrics. null: the name of the file."""

    num_rows: int | None = option(None, ge=1)
    """As `data.num_rows`."""


@dataclass(kw_only=True)
class DataConfig:
    """Training and evaluation data."""

    path: str = ""
    """JSONL, JSON, CSV (also as .gz, .bz2, .xz), parquet or Arrow file, a folder of them, or an id of a data set of the model
    hub."""

    mix: list[DataSource] = field(default_factory=list)
    """Several sources in place of `path`, as [{path: own.jsonl, weight: 0.8}, {path: general.jsonl, weight: 0.2}]. With
    weights a pass is over when the source of the largest weight was seen once; see docs/data.md."""

    subset: str | None = None
    """Part of a data set of the model hub, which calls it config. null: its only one."""

    split: str = "train"
    """Split of a data set of the model hub: train, or e.g. train[:1000]."""

    eval_path: str | None = None
    """Data to evaluate on, in the same forms. Excludes `eval_fraction`."""

    eval_split: str = "test"
    """Split of `eval_path` when that is a data set of the model hub."""

    eval_fraction: float = option(0.0, ge=0, lt=1)
    """Share of the rows of each source that is held out for evaluation (chosen by `algo.seed`) and not trained on."""

    format: str = AUTO
    """Form of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or one of a plugin's. auto:
    found from the names of the fields, and said."""

    text_column: str | None = None
    """Column with raw documents to be trained as a whole, whatever else is in the rows. null: as `format` says."""

    block_size: int | None = option(None, ge=8)
    """Raw documents are joined, each with its end, and cut into samples of so many tokens. null: each is its own sample."""

    loss_on: str = option("assistant", choices=("assistant", "last", "completion", "all"))
    """What of a conversation is trained. assistant: its turns, with their ends. last: only its last turn. completion: only what
    a row has as completion, in chats the last turn. all: every token. A row may have "unmask": true (all but the system
    message), a message "loss": false."""

    max_seq_len: int | str = option(AUTO, ge=8)
    """Longest sample in tokens. auto: what the model can hold."""

    on_long: str = option(AUTO, choices=(AUTO, "drop", "truncate", "split", "error"))
    """Rows above `max_seq_len`. drop: left out. truncate: cut off at the end. split: several samples. error: the run is
    refused. auto: documents are split, others are left out. All of it is counted and said."""

    on_bad_row: str = option("error", choices=("error", "skip"))
    """Rows that can't be used. error: the run is refused, with file, line and reason. skip: left out, counted and said."""

    template: str | None = None
    """Chat template in place of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral, phi3,
    vicuna, zephyr. null: the tokenizer's own; for one without any, plain."""

    streaming: bool = False
    """Read and tokenise rows while training, for data that does not fit into memory. Needs `algo.max_steps` or `num_rows`."""

    shuffle_window: int = option(DEFAULT_WINDOW, ge=1)
    """With streaming: rows that are held and shuffled together. Sort a file that is in order by topic before, or take more."""

    num_rows: int | None = option(None, ge=1)
    """With streaming: rows in one pass, from which the number of steps follows. null: `algo.max_steps` says it."""

    def problems(self, cfg: "RunConfig") -> Iterator[str]:
        if not self.path and not self.mix:
            yield "No training data is given. Type data.path=FILE.jsonl"
        if self.path and self.mix:
            yield f"data.path={self.path} and data.mix are both set. Set one of them: data.path='' or data.mix=[]"
        if self.eval_path and self.eval_fraction:
            yield "data.eval_path and data.eval_fraction are both set. Set one of them."
        if self.template and self.template not in TEMPLATES and not os.path.isfile(os.path.expanduser(self.template)):
            near = did_you_mean(self.template, TEMPLATES)
            yield f"data.template={self.template}: there is no such file. Allowed: FILE.jinja, or {', '.join(TEMPLATES)}.{near}"
        yield from self.format_problems()
        named: list[tuple[str, DataConfig | DataSource]] = [("data", self)]
        named += [(f"data.mix[{number}]", source) for number, source in enumerate(self.mix)]
        for name, source in named:
            if source.path and not is_hub_id(source.path) and (source.subset is not None or source.split != "train"):
                option = f"{name}.subset={source.subset}" if source.subset is not None else f"{name}.split={source.split}"
                yield f"{option} is for data sets of the model hub, but path={source.path} is none. Leave it out"
        yield from self._mix_problems()
        yield from self._streaming_problems(cfg)

    def format_problems(self) -> Iterator[str]:
        """What is wrong with the formats that are named."""
        from hub.data.formats.detect import known_formats  # plugins, which may add some, are loaded when they are asked for

        named = [("data.format", self.format)]
        named += [(f"data.mix[{number}].format", source.format) for number, source in enumerate(self.mix)]
        allowed = [name for name in known_formats() if name != "preference"]
        for name, value in named:
            if value != AUTO and value not in allowed:
                near = did_you_mean(value, allowed)
                yield f"{name}={value} is not allowed. Allowed: {AUTO}, {', '.join(allowed)}.{near}"
        formats = {source.format for source in self.mix} if self.mix else {self.format}
        if self.text_column is not None and self.format not in (AUTO, "document"):
            yield f"data.text_column={self.text_column} is for raw documents. Leave data.format={self.format} out"
        if self.block_size is not None and not formats & {AUTO, "document"} and self.text_column is None:
            yield f"data.block_size={self.block_size} joins raw documents, but data.format={self.format}. Leave block_size out"

    def _mix_problems(self) -> Iterator[str]:
        bounds = [line for i, source in enumerate(self.mix) for line in field_problems(source, f"data.mix[{i}]")]
        yield from bounds
        for number, source in enumerate(self.mix):
            if not source.path:
                yield f"data.mix[{number}] has no path. Type data.mix=[{{path: FILE.jsonl, weight: 0.5}}, ...]"
        names = [source.name for source in self.mix if source.name]
        for name in sorted({name for name in names if names.count(name) > 1}):
            yield f"data.mix: two sources have the name {name}. Give each a name of its own"
        if bounds or not self.mix:
            return
        weights = [source.weight for source in self.mix if source.weight is not None]
        if not weights:
            return
        if len(weights) < len(self.mix):
            missing = next(i for i, source in enumerate(self.mix) if source.weight is None)
            yield f"data.mix[{missing}] has no weight, but others have. Give each source a weight, or none of them"
        elif not sum(weights):
            yield "data.mix: all weights are 0, so there is nothing to train on. Give at least one a weight above 0"
        elif sum(source.epochs is not None for source in self.mix) > 1:
            yield (
                "data.mix: several sources have both weight and epochs, and these can't all be kept. Leave the weights out, or "
                "leave epochs with the one source that tells when a pass is over"
            )
        else:
            for number, source in enumerate(self.mix):
                if source.epochs and not source.weight:
                    asked = f"data.mix[{number}] has epochs={source.epochs:g} and weight=0"
                    yield f"{asked}. Give it a weight above 0, or leave epochs out"

    def _streaming_problems(self, cfg: "RunConfig") -> Iterator[str]:
        counted = [("data.num_rows", self.num_rows)]
        counted += [(f"data.mix[{number}].num_rows", source.num_rows) for number, source in enumerate(self.mix)]
        if not self.streaming:
            for name, value in counted:
                if value is not None:
                    yield f"{name}={value} goes with data.streaming=true. Rows that are in memory are counted"
            if self.shuffle_window != DEFAULT_WINDOW:
                asked = f"data.shuffle_window={self.shuffle_window}"
                yield f"{asked} goes with data.streaming=true. Data in memory is shuffled as a whole"
            return
        if self.mix and self.num_rows is not None:
            yield f"data.num_rows={self.num_rows} goes with data.path. In a mix each source has num_rows of its own"
        if self.eval_fraction:
            yield (
                f"data.eval_fraction={self.eval_fraction:g} can't be combined with data.streaming=true: the rows are not known "
                "beforehand. Type data.eval_path=FILE data.eval_fraction=0"
            )
        if cfg.task == "verify":
            return
        if self.block_size is not None and self.length_is_known:
            yield (
                f"data.block_size={self.block_size} joins the rows of a stream, so their number says nothing about the "
                "samples. Type algo.max_steps=N in place of num_rows"
            )
        if len(self.mix) > 1 and all(source.weight is None for source in self.mix):
            for number, source in enumerate(self.mix):
                if source.num_rows is None:
                    yield (
                        f"data.mix[{number}] has neither weight nor num_rows. With data.streaming=true give each source a "
                        "weight, or num_rows (wc -l counts the lines of a file)"
                    )
        elif not self.length_is_known and cfg.algo.max_steps is None:
            yield (
                "data.streaming=true: rows are not counted beforehand, so say how long the run is. Type algo.max_steps=N, or "
                f"{'num_rows=N in the source of the largest weight' if self.mix else 'data.num_rows=N'} (wc -l counts the "
                "lines of a file)"
            )
        if cfg.algo.save_every_epochs is not None and not self.length_is_known:
            yield (
                f"algo.save_every_epochs={cfg.algo.save_every_epochs}: it is not known how long a pass over this stream is. "
                "Type algo.save_every_steps=N, or give num_rows"
            )

    @property
    def length_is_known(self) -> bool:
        """With streaming: whether the number of samples in a pass is known, short of rows that are left out."""
        if not self.mix:
            return self.num_rows is not None
        if all(source.weight is None for source in self.mix):
            return all(source.num_rows is not None for source in self.mix)
        weights = [source.weight or 0.0 for source in self.mix]
        measure = next((source for source in self.mix if source.epochs), self.mix[weights.index(max(weights))])
        return measure.num_rows is not None
