"""The counts of the data as plan.json and the doctor have them."""

from typing import TypedDict

from hub.data.json_values import JsonObject
from hub.data.samples.histogram import Lengths


class Totals(TypedDict):
    """Counts of what is trained or evaluated on."""

    num_rows: int
    num_units: int
    num_samples: int
    num_tokens: int
    num_loss_tokens: int
    longest: int


class OmissionCounts(TypedDict):
    """Counts of what is not trained on."""

    num_left_out: int
    num_tokens_left_out: int
    num_bad_rows: int
    num_rows_cut: int
    num_tokens_cut: int
    num_rows_split: int
    num_rows_with_texts_omitted: int


class Omissions(OmissionCounts):
    """Counts and places of what is not trained on."""

    left_out: list[JsonObject]
    bad_rows: list[JsonObject]
    texts_omitted: dict[str, list[str]]
    """What the chat template leaves out -> the rows."""


class SourceReport(Totals, OmissionCounts):
    """The counts of one source of a mix."""

    name: str
    path: str
    formats: list[str]


class MixReport(SourceReport):
    """One source of several, for plan.json."""

    share: float


class DataReport(Omissions):
    """The data of a run, for plan.json."""

    path: str | None
    eval_path: str | None
    streaming: bool
    files: list[str]
    """For each folder the files that are read, and those that are not, in words."""

    formats: list[str]
    fields_not_used: list[str]
    max_seq_len: int | None
    train: Totals
    evaluation: Totals
    lengths: Lengths
    """Tokens of the samples to train on. Of a stream: of its first rows."""

    template: str
    num_samples_repeated: int
    num_held_out_samples_in_training_data: int
    sources: list[MixReport]
    """Empty: there is one source."""
