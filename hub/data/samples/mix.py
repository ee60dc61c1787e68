"""How many units each source gives to each step of a run. Pure Python and exact: fractions, no floating point.

A step of b units takes from a source with share s either the whole number below b * s or the one above. The next steps
compensate for the rounding, so over the run each source has its share to within about one unit. A source with whole passes
gives exactly these.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

from hub.config.data import DataConfig, DataSource
from hub.config.option import AUTO


@dataclass(frozen=True)
class Mix:
    """The sources of a run by number, and what each gives."""

    names: tuple[str, ...]
    sizes: tuple[int | None, ...]
    """Units in one pass over each source. None: not known (a stream)."""

    shares: tuple[Fraction, ...]
    """Share of each source in the units of a run. They add up to 1."""

    per_pass: int | None
    """Units in one pass over the mix, which `algo.num_epochs` counts. None: not known."""

    def counts(self, step_sizes: Iterable[int]) -> Iterator[tuple[int, ...]]:
        """How many units each source gives to each step.

        Args:
            step_sizes: units of each step.

        Raises:
            ValueError: a step goes beyond the end of a pass.
        """
        given, total = [0] * len(self.shares), 0
        each_pass = [share * self.per_pass for share in self.shares] if self.per_pass else []
        whole = all(number.denominator == 1 for number in each_pass)
        for size in step_sizes:
            left = [size] * len(given)
            if self.per_pass and whole:  # a pass has a whole number of each source, so none gives more before its end
                turn = total // self.per_pass + 1
                left = [int(number) * turn - have for number, have in zip(each_pass, given, strict=True)]
            total += size
            behind = [share * total - have for share, have in zip(self.shares, given, strict=True)]
            counts = [min(math.floor(share * size), most) for share, most in zip(self.shares, left, strict=True)]
            wanting = [i for i, share in enumerate(self.shares) if (share * size).denominator > 1]
            while (missing := size - sum(counts)) > 0:
                able = [i for i in wanting if counts[i] < left[i]]
                if not able and len(wanting) == len(counts):
                    raise ValueError("a step must not go beyond the end of a pass")
                able.sort(key=lambda i: (counts[i] - behind[i], i))
                for i in able[:missing]:
                    counts[i] += 1
                wanting = list(range(len(counts)))
            given = [have + count for have, count in zip(given, counts, strict=True)]
            yield tuple(counts)

    def drawn(self, step_sizes: Iterable[int]) -> list[int]:
        """Units that each source gives in a whole run."""
        total = [0] * len(self.shares)
        for counts in self.counts(step_sizes):
            total = [have + count for have, count in zip(total, counts, strict=True)]
        return total


def single(num_units: int | None, name: str = "data") -> Mix:
    """The mix of one source."""
    return Mix((name,), (num_units,), (Fraction(1),), num_units)


def sources_of(cfg: DataConfig) -> list[DataSource]:
    """The sources of a run, of `data.mix` or `data.path`, each with its format and columns."""
    if not cfg.mix:
        of_path = DataSource(path=cfg.path, format=cfg.format, subset=cfg.subset, split=cfg.split, num_rows=cfg.num_rows)
        return [replace(of_path, columns=cfg.columns)]
    return [
        replace(
            source,
            format=cfg.format if source.format == AUTO else source.format,
            columns=source.columns or cfg.columns,
        )
        for source in cfg.mix
    ]


def eval_source_of(cfg: DataConfig) -> DataSource | None:
    """The source of `data.eval_path`."""
    if not cfg.eval_path:
        return None
    return DataSource(path=cfg.eval_path, format=cfg.format, split=cfg.eval_split, columns=cfg.columns)


def source_names(sources: Sequence[DataSource]) -> tuple[str, ...]:
    """A short name for each source: its own, or that of its file. No two are alike."""
    names: list[str] = []
    for source in sources:
        # Of a pattern, the first part from the right that is more than signs: "in" of in/*.jsonl.
        file = Path(source.path)
        words = [word for part in (file.stem, *reversed(file.parent.parts)) if (word := part.strip("*?[]"))]
        name = wanted = source.name or (words[0] if words else source.path)
        number = 1
        while name in names:
            number += 1
            name = f"{wanted}-{number}"
        names.append(name)
    return tuple(names)


def make_mix(sources: Sequence[DataSource], sizes: Sequence[int | None]) -> Mix:
    """The mix that the weights or epochs of the sources ask for.

    * Weights alone: shares follow the weights. A pass ends when the source of the largest weight (of several the first) has
      been seen once.
    * Weights, and one source with `epochs`: a pass ends when that source has been seen so many times.
    * Epochs alone: a pass sees each source so many times, and the shares follow. With neither, each source once.

    Args:
        sources: checked by `mix_problems`.
        sizes: units in one pass over each. None where that is not known.
    """
    names = source_names(sources)
    if len(sources) == 1:
        size = sizes[0]
        per_pass = None if size is None else max(1, round(size * _exact(sources[0].epochs or 1)))
        return Mix(names, tuple(sizes), (Fraction(1),), per_pass)
    weights = [_exact(source.weight) for source in sources if source.weight is not None]
    if not weights:
        counts = [round((size or 0) * _exact(source.epochs or 1)) for source, size in zip(sources, sizes, strict=True)]
        total = max(1, sum(counts))
        return Mix(names, tuple(sizes), tuple(Fraction(count, total) for count in counts), total)
    shares = tuple(weight / sum(weights) for weight in weights)
    measure = next((i for i, source in enumerate(sources) if source.epochs), max(range(len(shares)), key=lambda i: shares[i]))
    size = sizes[measure]
    per_pass = None
    if size is not None:
        per_pass = max(1, round(size * _exact(sources[measure].epochs or 1) / shares[measure]))
    return Mix(names, tuple(sizes), shares, per_pass)


def num_held_out(num_rows: int, fraction: float) -> int:
    """Rows of a source that `data.eval_fraction` puts into the evaluation set: at least one, and never all."""
    return min(num_rows - 1, max(1, round(num_rows * fraction))) if fraction else 0


def _exact(number: float) -> Fraction:
    """The decimal number that was written: 0.8 as 8/10, not as the nearest binary number."""
    return Fraction(repr(number))
