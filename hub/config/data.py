"""Options of the data of a run: `DataConfig`, and `DataSource` for each of several sources. Their rules are in `rules.py`."""

from dataclasses import dataclass, field

from hub.config.option import AUTO, option

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
