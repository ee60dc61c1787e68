"""Which options of the data clash. Choices and bounds of single options stand beside them, see `option.py`.

Plugins add data formats, and this layer knows no plugin: callers pass the names of the formats in.
"""

import os
from collections.abc import Collection, Iterator
from datetime import date

from hub.config.data import DEFAULT_WINDOW, TEMPLATES, DataConfig, DataSource
from hub.config.option import AUTO, field_problems
from hub.config.paths import is_hub_id
from hub.errors import did_you_mean


def data_problems(data: DataConfig, data_formats: Collection[str]) -> Iterator[str]:
    """One line for each clash within the options of the data, streaming aside.

    Args:
        data: the options. Their bounds are checked already, those of `data.mix` are not.
        data_formats: all known formats, those of plugins included.
    """
    if not data.path and not data.mix:
        yield "No training data is set. Type data.path=FILE.jsonl"
    if data.path and data.mix:
        yield f"data.path={data.path} and data.mix are both set. Set one of them: data.path='' or data.mix=[]"
    if data.eval_path and data.eval_fraction:
        yield "data.eval_path and data.eval_fraction are both set. Set one of them."
    if data.eval_split != DataConfig.eval_split and not data.eval_path:
        yield f"data.eval_split={data.eval_split} is a split of data.eval_path, which is not set. Type data.eval_path=DATA"
    if data.template and data.template not in TEMPLATES and not os.path.isfile(os.path.expanduser(data.template)):
        near = did_you_mean(data.template, TEMPLATES)
        yield f"data.template={data.template}: there is no such file. Allowed: FILE.jinja, or {', '.join(TEMPLATES)}.{near}"
    if data.date != AUTO and not _is_date(data.date):
        yield f"data.date={data.date} is no date. Allowed: {AUTO}, or a day as 2026-11-28"
    yield from format_problems(data, data_formats)
    for name, source in _named_sources(data):
        if not source.path or is_hub_id(source.path):
            continue
        if source.subset is not None:
            asked = f"{name}.subset={source.subset}"
            yield f"{asked} applies to datasets of the model hub only, and path={source.path} is none. Leave it out"
        if source.split != "train" and not os.path.isdir(os.path.expanduser(source.path)):
            yield (
                f"{name}.split={source.split} applies to datasets of the model hub and to folders, and path={source.path} is "
                "neither. Leave it out"
            )
    yield from _mix_problems(data.mix)


def format_problems(data: DataConfig, data_formats: Collection[str]) -> Iterator[str]:
    """One line for each format that does not exist, or that clashes with an option for raw documents."""
    allowed = list(data_formats)
    for name, source in _named_sources(data):
        if source.format != AUTO and source.format not in allowed:
            near = did_you_mean(source.format, allowed)
            yield f"{name}.format={source.format} is not allowed. Allowed: {AUTO}, {', '.join(allowed)}.{near}"
    formats = {source.format for source in data.mix} if data.mix else {data.format}
    if data.text_column is not None and data.format not in (AUTO, "document"):
        yield f"data.text_column={data.text_column} is for raw documents. Leave data.format={data.format} out"
    if data.text_column is not None and data.columns:
        yield (
            f"data.text_column={data.text_column} and data.columns are both set. Set one of them: "
            f"data.columns.text={data.text_column}"
        )
    if data.block_size is not None and not formats & {AUTO, "document"} and data.text_column is None:
        yield f"data.block_size={data.block_size} joins raw documents, but data.format={data.format}. Leave block_size out"


def streaming_problems(data: DataConfig) -> Iterator[str]:
    """One line for each clash of `data.streaming` with another option of the data."""
    if not data.streaming:
        for name, source in _named_sources(data):
            if source.num_rows is not None:
                yield f"{name}.num_rows={source.num_rows} needs data.streaming=true. Rows in memory are counted"
        if data.shuffle_window != DEFAULT_WINDOW:
            yield (
                f"data.shuffle_window={data.shuffle_window} needs data.streaming=true. Data in memory is shuffled as a whole"
            )
        return
    if data.mix and data.num_rows is not None:
        yield f"data.num_rows={data.num_rows} works with data.path only. In data.mix set num_rows for each source"
    if data.eval_fraction:
        yield (
            f"data.eval_fraction={data.eval_fraction:g} can't be combined with data.streaming=true: the rows are not known "
            "beforehand. Type data.eval_path=FILE data.eval_fraction=0"
        )


def stream_length_problems(data: DataConfig, max_steps: int | None, save_every_epochs: int | None) -> Iterator[str]:
    """One line for each reason why the length of a training run on a stream is not known.

    Args:
        data: the options, with `data.streaming`.
        max_steps: `algo.max_steps`.
        save_every_epochs: `algo.save_every_epochs`.
    """
    if data.block_size is not None and data.length_is_known:
        yield (
            f"data.block_size={data.block_size} joins the rows of a stream, so their number does not give the number of "
            "samples. Type algo.max_steps=N in place of num_rows"
        )
    if len(data.mix) > 1 and all(source.weight is None for source in data.mix):
        for number, source in enumerate(data.mix):
            if source.num_rows is None:
                yield (
                    f"data.mix[{number}] has neither weight nor num_rows. With data.streaming=true give each source a "
                    "weight, or num_rows (wc -l counts the lines of a file)"
                )
    elif not data.length_is_known and max_steps is None:
        yield (
            "data.streaming=true: rows are not counted beforehand, so set the length of the run. Type algo.max_steps=N, or "
            f"{'num_rows=N in the source of the largest weight' if data.mix else 'data.num_rows=N'} (wc -l counts the "
            "lines of a file)"
        )
    if save_every_epochs is not None and not data.length_is_known:
        yield (
            f"algo.save_every_epochs={save_every_epochs}: the length of a pass over this stream is not known. "
            "Type algo.save_every_steps=N, or set num_rows"
        )


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _named_sources(data: DataConfig) -> list[tuple[str, DataConfig | DataSource]]:
    """The data and each source of its mix, with the name of the option that sets it."""
    named: list[tuple[str, DataConfig | DataSource]] = [("data", data)]
    return named + [(f"data.mix[{number}]", source) for number, source in enumerate(data.mix)]


def _mix_problems(mix: list[DataSource]) -> Iterator[str]:
    bounds = [line for number, source in enumerate(mix) for line in field_problems(source, f"data.mix[{number}]")]
    yield from bounds
    for number, source in enumerate(mix):
        if not source.path:
            yield f"data.mix[{number}] has no path. Type data.mix=[{{path: FILE.jsonl, weight: 0.5}}, ...]"
    names = [source.name for source in mix if source.name]
    for name in sorted({name for name in names if names.count(name) > 1}):
        yield f"data.mix: two sources have the name {name}. Give each its own name"
    if not bounds:
        yield from _weight_problems(mix)


def _weight_problems(mix: list[DataSource]) -> Iterator[str]:
    weights = [source.weight for source in mix if source.weight is not None]
    if not weights:
        return
    if len(weights) < len(mix):
        missing = next(number for number, source in enumerate(mix) if source.weight is None)
        yield f"data.mix[{missing}] has no weight, but others have. Give each source a weight, or none of them"
    elif not sum(weights):
        yield "data.mix: all weights are 0, so there is nothing to train on. Give at least one a weight above 0"
    elif sum(source.epochs is not None for source in mix) > 1:
        yield (
            "data.mix: several sources have both weight and epochs, which can't all hold. Leave the weights out, or "
            "leave epochs with the one source that defines a pass"
        )
    else:
        for number, source in enumerate(mix):
            if source.epochs and not source.weight:
                asked = f"data.mix[{number}] has epochs={source.epochs:g} and weight=0"
                yield f"{asked}. Give it a weight above 0, or leave epochs out"
