"""The sample source of a run: memory, or a stream. The same on every rank, whatever the number of ranks.

The loop iterates over `steps(after=n)`: every further step with its units. `state` goes into each checkpoint.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.data.prepare import Prepared
from hub.data.samples.mix import Mix, sources_of
from hub.data.samples.sample import Item, Unit, fingerprint
from hub.data.streaming.feed import SampleStream
from hub.data.streaming.frames import from_bytes, reader, to_bytes
from hub.data.streaming.windows import content_hash
from hub.data.streaming.workers import Processes, num_cores
from hub.errors import ConfigError, HubError
from hub.parallel.group import Group, broadcast_bytes
from hub.train.batch import split as batches

MOST_PROCESSES = 8
"""Processes that encode a stream. Each makes some hundred thousand tokens a second."""


class SampleSource(Protocol):
    """Gives the loop the units of each step."""

    mix: Mix
    batch_size: int
    """Samples per step."""

    total: int
    """Steps of the whole run."""

    fingerprint: str
    """Changes when the data does."""

    def steps(self, after: int) -> Iterator[tuple[batches.Step, list[Unit]]]:
        """The steps after step `after`, each with its units."""

    def state(self) -> dict[str, object]:
        """What `restore` needs beside the number of the step. JSON; on rank 0."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state. No step has been asked for yet."""

    def close(self) -> None:
        """End the processes that read and encode."""

    def report(self) -> tuple[list[str], dict[str, object]]:
        """What was read so far, as lines and for plan.json. On rank 0."""


class InMemorySource:
    """All samples are in memory."""

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
        """All follows from the number of the step."""

    def close(self) -> None:
        """Nothing runs."""

    def report(self) -> tuple[list[str], dict[str, object]]:
        return [], {}


class StreamedSource:
    """Rank 0 takes the units from the streams of all sources and broadcasts them."""

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
        hashes = [content_hash(source.path, ()) for source in sources]
        self.fingerprint = fingerprint(data.train) + "".join(hashes) + f"/{data.limit}"
        self._processes: Processes | None = None
        self._feeds: list[SampleStream] = []
        if group.is_main:
            shards = max(1, min(MOST_PROCESSES, num_cores() // 4))
            self._processes = Processes(cfg, base_path, data.limit, shards)
            self._feeds = [self._processes.stream(number) for number in range(len(sources))]

    def start(self) -> None:
        """Begin to make samples, before the first is asked for."""
        for feed, share in zip(self._feeds, self.mix.shares, strict=False):
            if share:
                feed.start()

    def steps(self, after: int) -> Iterator[tuple[batches.Step, list[Unit]]]:
        for step in batches.draw(self.mix, self.batch_size, self.total, after):
            yield step, self._shared(step.counts)

    def _shared(self, counts: Sequence[int]) -> list[Unit]:
        """The next units, on all ranks. An error in the data is raised on all ranks too."""
        if self._group.world == 1:
            return [sample for feed, count in zip(self._feeds, counts, strict=True) for sample in feed.take(count)]
        data = b""
        if self._group.is_main:
            try:
                found = [sample for feed, count in zip(self._feeds, counts, strict=True) for sample in feed.take(count)]
                data = to_bytes([Item(sample.where, len(sample), sample) for sample in found])
            except HubError as error:
                data = to_bytes(error)
        items = from_bytes(reader(broadcast_bytes(data)))
        assert isinstance(items, list)
        return [item.unit for item in items if item.unit is not None]

    def state(self) -> dict[str, object]:
        return {"feeds": [feed.state() for feed in self._feeds]}

    def restore(self, state: dict[str, Any]) -> None:
        for feed, kept in zip(self._feeds, state["feeds"], strict=False):
            feed.restore(kept)

    def close(self) -> None:
        if self._processes is not None:
            self._processes.close()

    def report(self) -> tuple[list[str], dict[str, object]]:
        if not self._group.is_main:
            return [], {}
        lines, found = [], []
        for name, feed in zip(self.mix.names, self._feeds, strict=True):
            counts = feed.counts
            text = f"stream {name}: {counts['num_rows']:,} rows read, {counts['num_tokens']:,} tokens trained on"
            if feed.left_out:
                number = counts["num_left_out"] + counts["num_bad_rows"]
                text += f", {number:,} rows left out ({feed.left_out[0]['where']}: {feed.left_out[0]['reason']}; ...)"
            if counts["num_rows_cut"]:
                text += f", {counts['num_rows_cut']:,} rows cut by {counts['num_tokens_cut']:,} tokens"
            if counts["num_rows_with_texts_omitted"]:
                text += f", in {counts['num_rows_with_texts_omitted']:,} the chat template left out texts beside tool calls"
            lines.append(text)
            found.append({"name": name, "num_passes": feed.num_passes, **counts, "left_out": feed.left_out})
        return lines, {"stream": found}


def make_sample_source(cfg: RunConfig, data: Prepared, group: Group, base_path: Path) -> SampleSource:
    """The sample source that the config asks for. A stream begins to make samples at once, while the model is being loaded.

    Args:
        cfg: the run.
        data: its samples; of a stream the first ones.
        group: the processes.
        base_path: local folder of the base weights, with the tokenizer.

    Raises:
        ConfigError: the effective batch size is below the number of processes.
    """
    if not cfg.data.streaming:
        return InMemorySource(cfg, data, group.world)
    source = StreamedSource(cfg, data, group, base_path)
    if cfg.chosen_task.takes_steps and not cfg.resume:  # a resume says first where to begin
        source.start()
    return source


def effective_batch_size(asked: int | str, num_samples: int | None, world: int) -> int:
    """Samples per step: as asked, or by the size of the data set; of a stream of unknown length, as for a large one.

    Raises:
        ConfigError: fewer samples than processes.
    """
    size = batches.auto_batch_size(num_samples) if asked == AUTO else int(asked)
    if size < world:
        raise ConfigError(
            f"algo.effective_batch_size={size} is below the number of processes ({world}). "
            f"Type algo.effective_batch_size={world}"
        )
    return size


def mix_lines(source: SampleSource) -> tuple[list[str], dict[str, object]]:
    """What a run takes from each source of a mix, as lines and for plan.json: passes over it, samples that are not used."""
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
