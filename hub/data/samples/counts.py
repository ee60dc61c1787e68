"""The samples of one source, or of the evaluation data, and the count of what did not become one."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from hub.data.samples.blocks import Blocks
from hub.data.samples.sample import Item, Sample

MOST_LISTED = 1000
_MOST_PRINTED = 3


@dataclass
class Part:
    """What became of some rows."""

    samples: list[Sample] = field(default_factory=list)
    num_rows: int = 0
    """Rows that can be used, those that are too long included."""

    left_out: list[Item] = field(default_factory=list)
    """Rows that are too long."""

    bad: list[Item] = field(default_factory=list)
    """Rows that can't be used, where data.on_bad_row=skip."""

    cut: list[Item] = field(default_factory=list)
    """Rows of which tokens were cut off."""

    num_split: int = 0
    """Rows that became several samples."""

    omitted: list[str] = field(default_factory=list)
    """Where the chat template leaves out a text that stands beside tool calls."""

    formats: set[str] = field(default_factory=set)
    unused: set[str] = field(default_factory=set)
    """Fields that nothing reads."""

    num_joined: int = 0
    """Documents that were joined to blocks."""

    @classmethod
    def of(cls, rows: Iterable[Sequence[Item]], block_size: int | None) -> "Part":
        """The part that rows make.

        Args:
            rows: the items of each row.
            block_size: tokens of a sample to which documents are joined.
        """
        part, blocks = cls(), Blocks(block_size) if block_size is not None else None
        for items in rows:
            part._add(items, blocks)
        if blocks is not None:
            part.samples += blocks.rest()
        return part

    def _add(self, items: Sequence[Item], blocks: Blocks | None) -> None:
        if items[0].bad:
            self.bad.append(items[0])
            return
        self.num_rows += 1
        self.num_split += len(items) > 1
        for item in items:
            if item.omitted:
                self.omitted.append(item.where)
            if item.num_cut:
                self.cut.append(item)
            if item.format:
                self.formats.add(item.format)
                self.unused.update(item.unused)
            if item.sample is None:
                self.left_out.append(item)
            elif blocks is not None and item.format == "document":
                self.num_joined += 1
                self.samples += blocks.add(item.sample)
            else:
                self.samples.append(item.sample)

    @classmethod
    def together(cls, parts: "Sequence[Part]") -> "Part":
        """Several parts as one."""
        whole = cls()
        for part in parts:
            whole.samples += part.samples
            whole.num_rows += part.num_rows
            whole.left_out += part.left_out
            whole.bad += part.bad
            whole.cut += part.cut
            whole.num_split += part.num_split
            whole.omitted += part.omitted
            whole.formats |= part.formats
            whole.unused |= part.unused
            whole.num_joined += part.num_joined
        return whole

    def uncut(self) -> list[Sample]:
        """The samples that are whole rows."""
        cut = {item.where for item in self.cut}
        return [sample for sample in self.samples if sample.where not in cut and " part " not in sample.where]

    def counts(self) -> dict[str, int]:
        """For plan.json."""
        return {
            "num_rows": self.num_rows,
            "num_samples": len(self.samples),
            "num_tokens": sum(map(len, self.samples)),
            "num_loss_tokens": sum(int(sample.loss_mask.sum()) for sample in self.samples),
            "longest": max(map(len, self.samples), default=0),
        }

    def losses(self) -> dict[str, Any]:
        """What did not become a sample: for plan.json."""
        return {
            "num_left_out": len(self.left_out),
            "num_tokens_left_out": sum(item.num_tokens for item in self.left_out),
            "left_out": [
                {"where": item.where, "num_tokens": item.num_tokens, "reason": item.reason}
                for item in self.left_out[:MOST_LISTED]
            ],
            "num_bad_rows": len(self.bad),
            "bad_rows": [{"where": item.where, "reason": item.reason} for item in self.bad[:MOST_LISTED]],
            "num_rows_cut": len(self.cut),
            "num_tokens_cut": sum(item.num_cut for item in self.cut),
            "num_rows_split": self.num_split,
            "num_rows_with_texts_omitted": len(self.omitted),
            "texts_omitted": self.omitted[:MOST_LISTED],
        }

    def lines(self, limit: int | None, advice: str) -> list[str]:
        """What did not become a sample, in words.

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
        if self.omitted:
            lines.append(
                f"In {len(self.omitted)} rows the chat template leaves out texts beside tool calls ({_some(self.omitted)})."
            )
        if self.unused:
            unused = sorted(self.unused)
            lines.append(f"Fields that are not used: {', '.join(unused[:12])}{', ...' if len(unused) > 12 else ''}")
        return lines


def _some(places: list[str]) -> str:
    return ", ".join(places[:_MOST_PRINTED]) + (", ..." if len(places) > _MOST_PRINTED else "")
