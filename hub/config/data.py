"""Options of the data of a run: `DataConfig`, and `DataSource` for each of several sources. Their rules are in `rules.py`."""

from dataclasses import dataclass, field

from hub.config.option import AUTO, option

FORMATS = ("messages", "sharegpt", "alpaca", "prompt_completion", "tokens", "preference", "judged", "chosen", "document")
"""The hub's own data formats. Plugins add others."""

TEMPLATES = ("plain", "alpaca", "chatml", "gemma", "llama3", "mistral", "phi3", "vicuna", "zephyr")
"""Chat templates that come with the hub."""

DEFAULT_WINDOW = 10_000


@dataclass(kw_only=True)
class DataSource:
    """One of several data sources, and its share of the samples."""

    path: str = ""
    """Same as `data.path`."""

    weight: float | None = option(None, ge=0)
    """Share of the samples of the run, relative to the weights of the other sources. null: see `epochs`."""

    epochs: float | None = option(None, gt=0)
    """Passes over this source within one pass over all. Set it instead of the weights (null: 1), or for one source with
    them."""

    format: str = AUTO
    """Same as `data.format`. auto: the value of `data.format`."""

    subset: str | None = None
    """Same as `data.subset`."""

    split: str = "train"
    """Same as `data.split`."""

    name: str | None = None
    """Short name in reports and metrics. null: the file name."""

    num_rows: int | None = option(None, ge=1)
    """Same as `data.num_rows`."""

    columns: dict[str, str] = field(default_factory=dict)
    """Same as `data.columns`. {}: the value of `data.columns`."""


@dataclass(kw_only=True)
class DataConfig:
    """Training and evaluation data."""

    path: str = ""
    """JSON, JSONL, CSV, TSV or text file (also as .gz, .bz2, .xz, .zst, .zip), parquet or Arrow file, a folder or a pattern of
    them (data/*.jsonl), or the id of a dataset of the model hub."""

    mix: list[DataSource] = field(default_factory=list)
    """Several sources instead of `path`: [{path: own.jsonl, weight: 0.8}, {path: general.jsonl, weight: 0.2}]. With weights, a
    pass ends when the source of the largest weight was seen once, see docs/data.md."""

    subset: str | None = None
    """Config of a dataset of the model hub. null: its only one."""

    split: str = "train"
    """Split of a dataset of the model hub (train, or e.g. train[:1000]), or of the files in a folder, by their names."""

    eval_path: str | None = None
    """Evaluation set, with the same kinds of paths as `path`. Excludes `eval_fraction`."""

    eval_split: str = "test"
    """Split of `eval_path` if that is a dataset of the model hub or a folder with several splits."""

    eval_fraction: float = option(0.0, ge=0, lt=1)
    """Fraction of the rows of each source that is held out as evaluation set, chosen by `algo.seed`."""

    format: str = AUTO
    """Format of the rows: messages, sharegpt, alpaca, prompt_completion, tokens, chosen, document, or a format of a plugin.
    For preferences: preference (pairs, or answers with scores), judged. auto: the one that the algorithm trains on, if it has
    one, else detected from the field names. It is logged."""

    columns: dict[str, str] = field(default_factory=dict)
    """Other names of columns: `data.columns.prompt=question` reads the column question as prompt. Fields of messages too:
    `data.columns.role=speaker data.columns.content=text`. {}: the names of the formats."""

    text_column: str | None = None
    """Column with raw documents to train on; all other columns are ignored. null: `format` decides."""

    block_size: int | None = option(None, ge=8)
    """Concatenate raw documents, each with its end-of-sequence token, and cut them into samples of this many tokens. null: one
    sample per document."""

    loss_on: str = option("assistant", choices=("assistant", "last", "completion", "all"))
    """Tokens of a conversation with loss. assistant: all assistant turns, with their end tokens. last: the last assistant turn.
    completion: the completion of a row; in chats the last turn. all: every token. A row may set "unmask": true (all but the
    system message), a message "loss": false."""

    max_seq_len: int | str = option(AUTO, ge=8)
    """Longest sample in tokens. auto: the model's maximum."""

    on_long: str = option(AUTO, choices=(AUTO, "drop", "truncate", "split", "error"))
    """What to do with rows above `max_seq_len`. drop: skip them. truncate: cut off the end. split: make several samples. error:
    refuse the run. auto: split documents, drop other rows. Such rows are counted and logged."""

    on_bad_row: str = option("error", choices=("error", "skip"))
    """What to do with invalid rows. error: refuse the run, with file, line and reason. skip: skip, count and log them."""

    template: str | None = None
    """Chat template instead of the tokenizer's own: a Jinja file, or plain, alpaca, chatml, gemma, llama3, mistral, phi3,
    vicuna, zephyr. null: the tokenizer's own, or plain if it has none."""

    date: str = AUTO
    """Date that is written by chat templates which ask for today's, e.g. 2026-11-28. auto: the day on which the run begins. A
    resumed run keeps its date."""

    streaming: bool = False
    """Read and tokenize rows while training, for data that does not fit into memory. Needs `algo.max_steps` or `num_rows`."""

    shuffle_window: int = option(DEFAULT_WINDOW, ge=1)
    """With streaming: size of the shuffle buffer in rows. If a file is sorted by topic, shuffle it beforehand or set more."""

    num_rows: int | None = option(None, ge=1)
    """With streaming: rows in one pass, which gives the number of steps. null: `algo.max_steps` sets it."""

    @property
    def length_is_known(self) -> bool:
        """Whether the number of samples in a pass over a stream is known, apart from rows that are skipped."""
        if not self.mix:
            return self.num_rows is not None
        if all(source.weight is None for source in self.mix):
            return all(source.num_rows is not None for source in self.mix)
        weights = [source.weight or 0.0 for source in self.mix]
        measure = next((source for source in self.mix if source.epochs), self.mix[weights.index(max(weights))])
        return measure.num_rows is not None
