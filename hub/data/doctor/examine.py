"""Inspects all data of a run: every row as it was written, and the tokens that it becomes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from random import Random
from typing import TYPE_CHECKING

from hub.config.schema import AlgoConfig, RunConfig
from hub.data.doctor.findings import Finding, of_duplicates, of_omissions, of_rendered, of_rows, of_texts
from hub.data.doctor.pair_findings import of_pairs
from hub.data.doctor.scan import MAX_ROWS, Scan, ScannedRow, scan
from hub.data.formats.detect import PREFERENCE
from hub.data.formats.file_format import FileFormats
from hub.data.json_values import JsonObject
from hub.data.samples.counts import Counts
from hub.data.samples.histogram import Lengths, lengths_of
from hub.data.samples.length import length_limit
from hub.data.samples.mix import eval_source_of, num_held_out, source_names, sources_of
from hub.data.samples.reports import Omissions, SourceReport
from hub.data.samples.sample import Sample, Unit
from hub.data.sources.entries import Cursor
from hub.data.sources.files import files_line
from hub.data.sources.read import rows_after
from hub.data.tokens.rendered_before import RenderedBefore
from hub.data.tokens.template import fallback_line, load_template, template_report
from hub.data.tokens.vocabulary import tokens_beyond, tokens_beyond_line
from hub.errors import DataError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NOT_RENDERED = {"document", "tokens"}


@dataclass
class Examined:
    """The result of an inspection."""

    sources: list[SourceReport]

    lengths: Lengths
    findings: list[Finding]
    omissions: Omissions
    template: str
    limit: int | None
    samples: list[Sample]
    """A few, to be shown."""

    files: list[str]
    """For each folder the files that are read, and those that are not, in words."""

    trained: dict[str, int]
    """Numbers of units, samples and tokens."""

    @property
    def spoils(self) -> bool:
        """Whether something would spoil training."""
        return any(finding.level == "bad" for finding in self.findings)

    def report(self) -> JsonObject:
        """All of it as JSON, for scripts."""
        return {
            "sources": self.sources,
            "files": self.files,
            "max_seq_len": self.limit,
            "tokens_per_row": self.lengths,
            "tokens": self.trained,
            "template": self.template,
            "spoils_training": self.spoils,
            "findings": [vars(finding) | {"examples": list(finding.examples)} for finding in self.findings],
            **self.omissions,
        }


def examine(cfg: RunConfig, tokenizer: "PreTrainedTokenizerBase", max_positions: int | None) -> Examined:
    """Inspect all data of a run.

    Args:
        cfg: the run; its `data` and `algo.seed` are read.
        tokenizer: gets the chat template that the run would have.
        max_positions: the longest sequence in tokens that the model can hold.

    Raises:
        HubError: the data can't be read at all.
    """
    findings: list[Finding] = []
    if _holds_preferences(cfg):
        cfg = replace(cfg, data=replace(cfg.data, format=PREFERENCE))
        findings.append(Finding("look", "the rows are preferences, which algo=lora_dpo and its siblings learn from", 1))
    limit = length_limit(cfg, max_positions)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    had_template = bool(tokenizer.chat_template)
    sources, evaluation_source = sources_of(cfg.data), eval_source_of(cfg.data)
    rendered = RenderedBefore(tokenizer)
    scans = [scan(cfg, source, tokenizer, limit, rendered) for source in sources]
    evaluation_scans = [scan(cfg, evaluation_source, tokenizer, limit, rendered)] if evaluation_source else []
    all_scans = [*scans, *evaluation_scans]
    every_source = [*sources, *filter(None, [evaluation_source])]
    counts = Counts.merge([each.counts for each in all_scans])
    template = counts.loss_line() if counts.units else "Nothing is trained."
    if counts.formats - _NOT_RENDERED:
        template = template_report(tokenizer, counts.whole_samples(), cfg.data.loss_on)
        if not had_template:
            findings.append(Finding("look", fallback_line(tokenizer), 1))
    if line := tokens_beyond_line(tokenizer):
        findings.append(Finding("look", line, len(tokens_beyond(tokenizer))))
    findings += of_rows(cfg, counts, limit, template)
    findings += of_omissions(counts, tokenizer)
    findings += of_rendered(rendered)
    findings += of_texts(all_scans)
    findings += of_pairs([pair for each in all_scans for pair in each.pairs])
    findings += of_duplicates(*_split(scans, evaluation_scans, cfg))
    unseen = set.intersection(*(set(each.unseen_columns) for each in all_scans))
    findings += [Finding("bad", line, 1) for line in sorted(unseen)]
    if any(each.has_more for each in all_scans):
        findings.append(Finding("look", f"only the first {MAX_ROWS:,} rows of a source are inspected", 1))
    reports: list[SourceReport] = [
        {
            "name": name,
            "path": source.path,
            "formats": sorted(each.counts.formats),
            **each.counts.totals(),
            **each.counts.omission_counts(),
        }
        for name, source, each in zip(source_names(sources), sources, scans, strict=True)
    ]
    totals = counts.totals()
    return Examined(
        reports,
        lengths_of([length for each in all_scans for length in each.lengths], limit),
        sorted(findings, key=lambda finding: finding.level),
        counts.omissions(),
        template,
        limit,
        _choose(counts.units),
        [line for source in every_source if (line := files_line(source.path, source.split))],
        {
            "num_units": totals["num_units"],
            "num_samples": totals["num_samples"],
            "num_tokens": totals["num_tokens"],
            "num_loss_tokens": totals["num_loss_tokens"],
        },
    )


def _holds_preferences(cfg: RunConfig) -> bool:
    """Whether the first row is a preference, and no algorithm is chosen that would say what it takes."""
    source = sources_of(cfg.data)[0]
    if type(cfg.algo) is not AlgoConfig:
        return False
    entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
    return any(FileFormats(source, cfg.data).holds_preferences(entry) for entry, _ in islice(entries, 1))


def _split(
    scans: Sequence[Scan], evaluation_scans: Sequence[Scan], cfg: RunConfig
) -> tuple[list[ScannedRow], list[ScannedRow]]:
    """The rows to train on and those of the evaluation set, as the run would split them."""
    train: list[ScannedRow] = []
    evaluation = [row for each in evaluation_scans for row in each.rows]
    for each in scans:
        number = len(each.rows)
        if cfg.data.eval_fraction and number < 2:
            raise DataError(
                "one row only, so there is none to spare for evaluation. Type data.eval_fraction=0, or give more rows"
            )
        chosen = set(Random(cfg.algo.seed).sample(range(number), num_held_out(number, cfg.data.eval_fraction)))
        train += [row for place, row in enumerate(each.rows) if place not in chosen]
        evaluation += [row for place, row in enumerate(each.rows) if place in chosen]
    return train, evaluation


def _choose(units: Sequence[Unit], count: int = 3) -> list[Sample]:
    """Samples to show: of the shortest unit, and of others spread over the data."""
    if not units:
        return []
    chosen = [min(range(len(units)), key=lambda place: len(units[place]))]
    chosen += [place * (len(units) - 1) // max(1, count - 1) for place in range(count)]
    return [sample for place in list(dict.fromkeys(chosen))[:count] for sample in units[place].samples]
