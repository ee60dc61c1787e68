"""The units of one source, or of the evaluation set, with counts of all that became of its rows."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from hub.data.samples.blocks import Blocks
from hub.data.samples.reports import OmissionCounts, Omissions, Totals
from hub.data.samples.sample import Item, Sample, mask_sum
from hub.data.samples.units import Units
from hub.errors import printable

MAX_LISTED = 1000
_MAX_PRINTED = 3


@dataclass
class Counts:
    """What became of some rows."""

    units: Units = field(default_factory=Units)
    num_rows: int = 0
    """Rows that can be used, those that are too long included."""

    left_out: list[Item] = field(default_factory=list)
    """Rows that are too long."""

    bad: list[Item] = field(default_factory=list)
    """Rows that can't be used, where data.on_bad_row=skip."""

    cut: list[Item] = field(default_factory=list)
    """Rows of which tokens were cut off."""

    num_split: int = 0
    """Rows that became several samples because of their length."""

    omitted: dict[str, list[str]] = field(default_factory=dict)
    """What the chat template leaves out -> the rows. The keys are those of `hub.data.tokens.omissions.KINDS`."""

    formats: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    """Fields that nothing reads."""

    num_joined: int = 0
    """Documents that were joined to blocks."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[Item]], block_size: int | None) -> "Counts":
        """Count what rows give.

        Args:
            rows: the items of each row.
            block_size: tokens of a sample to which documents are joined.
        """
        counts, blocks = cls(), Blocks(block_size) if block_size is not None else None
        for items in rows:
            counts._add(items, blocks)
        if blocks is not None:
            counts.units.extend(blocks.rest())
        return counts

    def _add(self, items: Sequence[Item], blocks: Blocks | None) -> None:
        if items[0].bad:
            self.bad.append(items[0])
            return
        self.num_rows += 1
        self.num_split += len(items) > 1
        for item in items:
            for kind in item.omitted:
                self.omitted.setdefault(kind, []).append(item.where)
            if item.num_cut:
                self.cut.append(item)
            if item.format:
                self.formats.add(item.format)
                self.unused.update(map(printable, item.unused))
            if item.unit is None:
                self.left_out.append(item)
            elif blocks is not None and item.format == "document" and isinstance(item.unit, Sample):
                self.num_joined += 1
                self.units.extend(blocks.add(item.unit))
            else:
                self.units.append(item.unit)

    @classmethod
    def merge(cls, several: "Sequence[Counts]") -> "Counts":
        """The counts of several sources as one."""
        filled = [counts.units for counts in several if counts.units]
        merged = cls(filled[0] if len(filled) == 1 else Units(unit for units in filled for unit in units))
        for counts in several:
            merged.num_rows += counts.num_rows
            merged.left_out += counts.left_out
            merged.bad += counts.bad
            merged.cut += counts.cut
            merged.num_split += counts.num_split
            for kind, where in counts.omitted.items():
                merged.omitted.setdefault(kind, []).extend(where)
            merged.formats |= counts.formats
            merged.unused |= counts.unused
            merged.num_joined += counts.num_joined
        return merged

    def whole_samples(self) -> Iterator[Sample]:
        """The samples of all rows that are neither cut nor split."""
        cut = {item.where for item in self.cut}
        for unit in self.units:
            if unit.where not in cut and " part " not in unit.where:
                yield from unit.samples

    def loss_line(self) -> str:
        """Which tokens have loss, where none of the rows is a conversation."""
        if all(sample.loss_mask.all() for unit in self.units for sample in unit.samples):
            return "Loss is on every token."
        return "Loss is on the tokens that the labels or masks of the rows name."

    def totals(self) -> Totals:
        """Counts of the units, for plan.json."""
        return {
            "num_rows": self.num_rows,
            "num_units": len(self.units),
            "num_samples": self.units.num_samples,
            "num_tokens": self.units.num_tokens,
            "num_loss_tokens": sum(map(mask_sum, self.units)),
            "longest": self.units.longest,
        }

    def omission_counts(self) -> OmissionCounts:
        """Counts of what did not become a unit, for plan.json."""
        return {
            "num_left_out": len(self.left_out),
            "num_tokens_left_out": sum(item.num_tokens for item in self.left_out),
            "num_bad_rows": len(self.bad),
            "num_rows_cut": len(self.cut),
            "num_tokens_cut": sum(item.num_cut for item in self.cut),
            "num_rows_split": self.num_split,
            "num_rows_with_texts_omitted": len(set().union(*self.omitted.values())),
        }

    def omissions(self) -> Omissions:
        """Counts and places of what did not become a unit, for plan.json."""
        left_out, bad = self.left_out[:MAX_LISTED], self.bad[:MAX_LISTED]
        return {
            **self.omission_counts(),
            "left_out": [{"where": item.where, "num_tokens": item.num_tokens, "reason": item.reason} for item in left_out],
            "bad_rows": [{"where": item.where, "reason": item.reason} for item in bad],
            "texts_omitted": {kind: where[:MAX_LISTED] for kind, where in self.omitted.items()},
        }

    def lines(self, limit: int | None, advice: str) -> list[str]:
        """What did not become a unit, in words.

        Args:
            limit: tokens of the longest sample.
            advice: what to do about rows that are too long.
        """
        lines = []
        if self.left_out:
            tokens = sum(item.num_tokens for item in self.left_out)
            some = _some([item.where for item in self.left_out])
            lines.append(
                f"Left out: {len(self.left_out)} rows longer than {limit} tokens, {tokens:,} tokens ({some}). {advice}"
            )
        if self.cut:
            tokens = sum(item.num_cut for item in self.cut)
            lines.append(f"Cut off: {tokens:,} tokens of {len(self.cut)} rows ({_some([item.where for item in self.cut])}).")
        if self.num_split:
            lines.append(f"Split: {self.num_split} rows longer than {limit} tokens into several samples.")
        if self.bad:
            lines.append(f"Left out: {len(self.bad)} bad rows. The first: {self.bad[0].reason}")
        if self.unused:
            unused = sorted(self.unused)
            lines.append(f"Unused fields: {', '.join(unused[:12])}{', ...' if len(unused) > 12 else ''}")
        return lines


def _some(places: list[str]) -> str:
    return ", ".join(places[:_MAX_PRINTED]) + (", ..." if len(places) > _MAX_PRINTED else "")
