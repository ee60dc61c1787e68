"""The sample source of a run: memory, or a stream. It gives every rank the same samples, for any number of ranks.

The loop iterates over `steps(after=n)`: every further step with its units. Each checkpoint has its `state`.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hub.config.option import AUTO
from hub.config.schema import AlgoConfig, RunConfig
from hub.data.prepare import Prepared
from hub.data.samples.mix import Mix, sources_of
from hub.data.samples.sample import Item, Unit, fingerprint
from hub.data.streaming.feed import SampleStream, StreamState
from hub.data.streaming.frames import from_bytes, reader, to_bytes
from hub.data.streaming.windows import content_hash
from hub.data.streaming.workers import Processes
from hub.data.tokens.omissions import KINDS
from hub.errors import ConfigError, HubError
from hub.parallel.group import Group, broadcast_bytes
from hub.system.cores import usable_cores
from hub.train.batch import split as batches

MAX_PLACES = 3
"""Rows that a line names."""

MOST_PROCESSES = 8
"""Maximum number of processes that tokenize a stream. Each gives some hundred thousand tokens a second."""


class SampleSource(Protocol):
    """Gives the loop the units of each step."""

    mix: Mix
    batch_size: int
    """Units per step."""

    total: int
    """Steps of the whole run."""

    fingerprint: str
    """Identifies the data."""

    def steps(self, after: int) -> Iterator[tuple[batches.Step, list[Unit]]]:
        """Yield the steps after step `after`, each with its units."""

    def state(self) -> dict[str, object]:
        """Return what `restore` needs besides the number of the step, as JSON. On rank 0."""

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from a state. To be called before `steps`."""

    def close(self) -> None:
        """End the processes that read and tokenize."""

    def report(self) -> tuple[list[str], dict[str, object]]:
        """Return what was read so far, as lines to log and as values for plan.json. On rank 0."""


class InMemorySource:
    """Sample source that has all samples in memory."""

    def __init__(self, cfg: RunConfig, data: Prepared, world: int) -> None:
        """Args:
        cfg: the run.
        data: its samples.
        world: number of processes.

        Raises:
            ConfigError: the effective batch size is below the number of processes.
        """
        self._samples, self._seed, self.mix = data.train, cfg.algo.seed, data.mix
        self.batch_size = effective_batch_size(cfg.algo.effective_batch_size, self.mix.per_pass, world)
        self.total = batches.num_steps(self.mix.per_pass or 1, self.batch_size, cfg.algo.num_epochs, cfg.algo.max_steps)
        self.fingerprint = fingerprint(data.train)

    def steps(self, after: int) -> Iterator[tuple[batches.Step, list[Unit]]]:
        for step in batches.steps(self.mix, self.batch_size, self.total, self._seed, after):
            yield step, [self._samples[i] for i in step.samples]

    def state(self) -> dict[str, object]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Do nothing: the number of the step is all the state."""

    def close(self) -> None:
        """Do nothing: there are no processes."""

    def report(self) -> tuple[list[str], dict[str, object]]:
        return [], {}


class StreamedSource:
    """Sample source that reads streams. Rank 0 takes the units from the streams of all sources and broadcasts them."""

    def __init__(self, cfg: RunConfig, data: Prepared, group: Group, base_path: Path) -> None:
        """Args:
        cfg: the run.
        data: the first samples, the mix and the longest sample.
        group: the processes.
        base_path: local folder of the base weights, with the tokenizer.

        Raises:
            ConfigError: the effective batch size is below the number of processes.
        """
        self._group, self.mix = group, data.mix
        self.batch_size = effective_batch_size(cfg.algo.effective_batch_size, self.mix.per_pass, group.world)
        if self.mix.per_pass is None:
            self.total = cfg.algo.max_steps or 0
        else:
            self.total = batches.num_steps(self.mix.per_pass, self.batch_size, cfg.algo.num_epochs, cfg.algo.max_steps)
        sources = sources_of(cfg.data)
        hashes = [content_hash(source.path, (), source.split) for source in sources]
        self.fingerprint = fingerprint(data.train) + "".join(hashes) + f"/{data.limit}"
        names = [f"{Path(source.path).name} {source.subset or ''} {source.split}" for source in sources]
        self._sources = [f"{name} {names[:number].count(name)}" for number, name in enumerate(names)]
        """What tells the sources apart: not where they are, so that they may be moved."""

        self._before_error: list[StreamState] = []
        """The positions before a step that has a row that can't be used. The rows before it are drawn again."""

        self._processes: Processes | None = None
        self._feeds: list[SampleStream] = []
        if group.is_main:
            shards = max(1, min(MOST_PROCESSES, usable_cores() // 4))
            self._processes = Processes(cfg, base_path, data.limit, shards)
            self._feeds = [self._processes.stream(number) for number in range(len(sources))]

    def start(self) -> None:
        """Start making samples, before the first step asks for them."""
        for feed, share in zip(self._feeds, self.mix.shares, strict=False):
            if share:
                feed.start()

    def steps(self, after: int) -> Iterator[tuple[batches.Step, list[Unit]]]:
        for step in batches.draw(self.mix, self.batch_size, self.total, after):
            before = self._positions()
            try:
                units = self._next_units(step.counts)
            except HubError:
                self._before_error = before
                raise
            yield step, units

    def _next_units(self, counts: Sequence[int]) -> list[Unit]:
        """Return the next units, on all ranks. An error in the data is raised on all ranks, too."""
        if self._group.world == 1:
            return [unit for feed, count in zip(self._feeds, counts, strict=True) for unit in feed.take(count)]
        data = b""
        if self._group.is_main:
            try:
                units = [unit for feed, count in zip(self._feeds, counts, strict=True) for unit in feed.take(count)]
                data = to_bytes([Item(unit.where, len(unit), unit) for unit in units])
            except HubError as error:
                data = to_bytes(error)
        items = from_bytes(reader(broadcast_bytes(data)))
        assert isinstance(items, list)
        return [item.unit for item in items if item.unit is not None]

    def state(self) -> dict[str, object]:
        return {"feeds": self._before_error or self._positions(), "sources": self._sources}

    def _positions(self) -> list[StreamState]:
        return [feed.state() for feed in self._feeds]

    def restore(self, state: dict[str, Any]) -> None:
        # A source that the run did not have begins at its start. A checkpoint of an earlier release names none.
        saved = dict(zip(state.get("sources", self._sources), state["feeds"], strict=False))
        for feed, source in zip(self._feeds, self._sources, strict=False):
            if source in saved:
                feed.restore(saved[source])

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()

    def report(self) -> tuple[list[str], dict[str, object]]:
        if not self._group.is_main:
            return [], {}
        lines, streams = [], []
        for name, feed in zip(self.mix.names, self._feeds, strict=True):
            lines.append(f"stream {name}: {', '.join(words_of(feed))}")
            listed = {"left_out": feed.left_out, "bad_rows": feed.bad_rows, "texts_omitted": feed.texts_omitted}
            omitted = {"num_texts_omitted": feed.num_texts_omitted}
            streams.append({"name": name, "num_passes": feed.num_passes, **feed.counts, **omitted, **listed})
        return lines, {"stream": streams}


def words_of(feed: SampleStream) -> list[str]:
    """What became of the rows of a stream so far, by kind."""
    counts = feed.counts
    words = [f"{counts['num_rows']:,} rows read", f"{counts['num_tokens']:,} tokens trained on"]
    for number, kind, rows in (
        (counts["num_left_out"], "too long", feed.left_out),
        (counts["num_bad_rows"], "bad", feed.bad_rows),
    ):
        if number:
            first = [f"{row['where']}: {str(row['reason']).removeprefix(str(row['where']) + ': ')}" for row in rows[:1]]
            words.append(f"{number:,} {kind} rows left out ({'; '.join([*first, '...'])})")
    if counts["num_rows_cut"]:
        words.append(f"{counts['num_rows_cut']:,} rows cut by {counts['num_tokens_cut']:,} tokens")
    for kind, number in feed.num_texts_omitted.items():
        places = ", ".join([*feed.texts_omitted.get(kind, ())[:MAX_PLACES], "..."])
        words.append(f"in {number:,} rows the chat template left out {KINDS[kind]} ({places})")
    return words


def make_sample_source(cfg: RunConfig, data: Prepared, group: Group, base_path: Path) -> SampleSource:
    """Make the sample source that the config asks for. A stream starts at once, while the model is being loaded.

    Args:
        cfg: the config of the run.
        data: its samples. Of a stream only the first ones.
        group: the processes.
        base_path: local folder of the base weights, with the tokenizer.

    Raises:
        ConfigError: the effective batch size is below the number of processes.
    """
    if not cfg.data.streaming:
        return InMemorySource(cfg, data, group.world)
    source = StreamedSource(cfg, data, group, base_path)
    if cfg.chosen_task.takes_steps and not cfg.resume:  # `restore` sets the position first
        source.start()
    return source


def effective_batch_size(asked: int | str, num_samples: int | None, world: int) -> int:
    """Return the units per step: as set, or by the size of the dataset. A stream of unknown length counts as large.

    Raises:
        ConfigError: fewer units than processes.
    """
    size = batches.auto_batch_size(num_samples) if asked == AUTO else int(asked)
    if size < world:
        raise ConfigError(
            f"algo.effective_batch_size={size} is below the number of processes ({world}). "
            f"Type algo.effective_batch_size={world}"
        )
    return size


def length_lines(source: SampleSource, algo: AlgoConfig) -> list[str]:
    """Return the line to log if `algo.max_steps` makes a run longer than `algo.num_epochs` would."""
    per_pass, batch_size, total = source.mix.per_pass, source.batch_size, source.total
    if algo.max_steps is None or per_pass is None or total <= batches.num_steps(per_pass, batch_size, algo.num_epochs, None):
        return []
    whole, steps = divmod(total, -(-per_pass // batch_size))
    passes = whole + steps * batch_size / per_pass
    return [f"algo.max_steps={total}: {passes:.2f} passes over the data, in place of algo.num_epochs={algo.num_epochs:g}"]


def mix_lines(source: SampleSource) -> tuple[list[str], dict[str, object]]:
    """Return what a run takes from each source of a mix, as lines to log and as values for plan.json."""
    mix = source.mix
    if len(mix.names) == 1:
        return [], {}
    sizes = batches.step_sizes(mix.per_pass, source.batch_size, source.total)
    drawn = mix.drawn(sizes)
    words, plan = [], []
    for name, share, size, count in zip(mix.names, mix.shares, mix.sizes, drawn, strict=True):
        text = f"{name} {float(share):.1%} ({count:,} samples"
        if size is not None:
            text += f", each of its {size:,} seen {count / size:.2f} times" if count >= size else f" of its {size:,}"
            text += f", {size - count:,} are not used" if count < size else ""
        words.append(text + ")")
        passes = None if size is None else round(count / size, 4)
        plan.append({"name": name, "share": float(share), "num_drawn": count, "num_samples": size, "num_passes": passes})
    return [f"mix: {', '.join(words)}"], {"mix": plan, "samples_per_pass": mix.per_pass}
