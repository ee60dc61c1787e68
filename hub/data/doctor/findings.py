"""What the doctor reports: rows that can't be used, broken texts, duplicates, leaks into the evaluation set."""

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hub.config.schema import RunConfig
from hub.data.doctor.near_duplicates import near_duplicates
from hub.data.doctor.oddities import BROKEN_TEXT
from hub.data.doctor.scan import Scan, ScannedRow
from hub.data.samples.counts import Counts
from hub.data.samples.sample import Item
from hub.data.tokens.omissions import described
from hub.data.tokens.rendered_before import RenderedBefore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

MAX_EXAMPLES = 5
MAX_LEFT_OUT = 0.1
"""Share of the rows above which leaving them out would spoil training."""


@dataclass(frozen=True)
class Finding:
    """One thing to look at."""

    level: str
    """`bad`: it would spoil training. `look`: it may be intended."""

    what: str
    count: int
    examples: tuple[str, ...] = ()
    """Where, the first few."""

    advice: str = ""


def of_rows(cfg: RunConfig, counts: Counts, limit: int | None, template: str) -> Iterator[Finding]:
    """Rows that can't be used, are left out, cut or split.

    Args:
        cfg: the run.
        counts: of all sources.
        limit: tokens of the longest sample.
        template: the result of `template_report`.
    """
    if counts.bad:
        yield _bad_rows(cfg, counts)
    if counts.left_out:
        share = len(counts.left_out) / max(1, counts.num_rows)
        level = "bad" if cfg.data.on_long == "error" or share > MAX_LEFT_OUT or not counts.units else "look"
        what = f"rows are longer than {limit} tokens and are left out ({share:.1%})"
        advice = "To train on them, type data.on_long=truncate or split"
        yield Finding(level, what, len(counts.left_out), _places(counts.left_out), advice)
    if counts.cut:
        tokens = sum(item.num_cut for item in counts.cut)
        yield Finding("look", f"rows are cut, by {tokens:,} tokens", len(counts.cut), _places(counts.cut))
    if counts.num_split:
        yield Finding("look", f"rows are longer than {limit} tokens and are split", counts.num_split)
    if counts.unused:
        yield Finding("look", f"fields that nothing reads: {', '.join(sorted(counts.unused)[:12])}", len(counts.unused))
    if template.startswith("Warning"):
        yield Finding("bad", template.removeprefix("Warning: "), 1)
    if not counts.units:
        yield Finding("bad", "no row is left to train on", 1)


def of_omissions(counts: Counts, tokenizer: "PreTrainedTokenizerBase") -> Iterator[Finding]:
    """Texts that the chat template leaves out.

    Args:
        counts: of all sources.
        tokenizer: the one with the template.
    """
    for item in described(counts.omitted, tokenizer):
        what = f"rows in which {item.what}"
        yield Finding("look", what, len(item.where), tuple(item.where[:MAX_EXAMPLES]), item.advice)


def of_rendered(rendered: RenderedBefore) -> Iterator[Finding]:
    """Special tokens in texts, which may have been rendered before."""
    for kind, where in rendered.reports():
        yield Finding("bad" if kind.spoils else "look", kind.what, len(where), tuple(where[:MAX_EXAMPLES]), kind.advice)


def of_texts(scans: Sequence[Scan]) -> Iterator[Finding]:
    """Broken texts, and turns in an unusual order."""
    num_rows = sum(len(scan.rows) for scan in scans)
    for name in BROKEN_TEXT:
        where = _all_places(scans, lambda scan: scan.texts, name)
        if where:
            level = "bad" if len(where) > MAX_LEFT_OUT * num_rows else "look"
            advice = "Check how the file was made"
            yield Finding(level, f"rows with {name}", len(where), tuple(where[:MAX_EXAMPLES]), advice)
    for name in sorted(set().union(*(scan.orders for scan in scans))):
        where = _all_places(scans, lambda scan: scan.orders, name)
        yield Finding("look", f"rows in which {name}", len(where), tuple(where[:MAX_EXAMPLES]))


def of_duplicates(train: Sequence[ScannedRow], evaluation: Sequence[ScannedRow]) -> Iterator[Finding]:
    """Rows that are there twice, nearly twice, with another answer, or in the evaluation set, too.

    Args:
        train: the rows that are trained on.
        evaluation: the rows of the evaluation set.
    """
    by_content = _grouped(train, lambda row: row.content)
    repeated = [group for group in by_content.values() if len(group) > 1]
    if repeated:
        count = sum(len(group) - 1 for group in repeated)
        examples = tuple(map(_repetition, repeated[:MAX_EXAMPLES]))
        advice = "Remove them, or ignore this if they are intended"
        yield Finding("look", "duplicate rows (exact copies)", count, examples, advice)
    unique = [group[0] for group in by_content.values()]
    pairs = near_duplicates([row.text for row in unique])
    if pairs:
        examples = tuple(f"{unique[a].where} ~ {unique[b].where}" for a, b in pairs[:MAX_EXAMPLES])
        count = len({second for _, second in pairs})
        yield Finding("look", "near duplicates (four fifths of their word sequences in common)", count, examples)
    by_prompt = _grouped([row for row in unique if row.prompt], lambda row: row.prompt)
    ambiguous = [group for group in by_prompt.values() if len(group) > 1]
    if ambiguous:
        examples = tuple(map(_alternatives, ambiguous[:MAX_EXAMPLES]))
        yield Finding("look", "prompts have several different answers", len(ambiguous), examples)
    if evaluation:
        yield from _of_leaks(train, evaluation, by_content)


def _bad_rows(cfg: RunConfig, counts: Counts) -> Finding:
    is_refused = cfg.data.on_bad_row == "error"
    advice = "Fix them, or type data.on_bad_row=skip" if is_refused else "They are left out"
    level = "bad" if is_refused or not counts.units else "look"
    reasons = Counter(re.sub(r"^[^ ]*:\d+: ", "", item.reason)[:100] for item in counts.bad)
    examples = tuple(item.reason for item in counts.bad[:MAX_EXAMPLES])
    what = "rows can't be used" + (f" ({reasons.most_common(1)[0][0]}, ...)" if len(reasons) > 1 else "")
    return Finding(level, what, len(counts.bad), examples, advice)


def _of_leaks(
    train: Sequence[ScannedRow], evaluation: Sequence[ScannedRow], by_content: dict[str, list[ScannedRow]]
) -> Iterator[Finding]:
    copies = [(row, by_content[row.content][0]) for row in evaluation if row.content in by_content]
    if copies:
        examples = tuple(f"{row.where} = {copy.where}" for row, copy in copies[:MAX_EXAMPLES])
        advice = "Remove them from one of the two: the evaluation loss would measure memorization"
        yield Finding("bad", "rows of the evaluation set are in the training data, too", len(copies), examples, advice)
    prompts = {row.prompt: row for row in train if row.prompt}
    same = [row for row in evaluation if row.content not in by_content and row.prompt in prompts]
    if same:
        examples = tuple(f"{row.where} / {prompts[row.prompt].where}" for row in same[:MAX_EXAMPLES])
        what = "rows of the evaluation set have a prompt of the training data, with another answer"
        yield Finding("look", what, len(same), examples)


def _alternatives(group: Sequence[ScannedRow]) -> str:
    return " / ".join(row.where for row in group[:3])


def _repetition(group: Sequence[ScannedRow]) -> str:
    first, *others = (row.where for row in group[:3])
    return f"{' and '.join(others)} {'repeats' if len(others) == 1 else 'repeat'} {first}"


def _grouped(rows: Iterable[ScannedRow], key: Callable[[ScannedRow], str]) -> dict[str, list[ScannedRow]]:
    groups: dict[str, list[ScannedRow]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _all_places(scans: Sequence[Scan], table: Callable[[Scan], dict[str, list[str]]], name: str) -> list[str]:
    return [place for scan in scans for place in table(scan).get(name, ())]


def _places(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(f"{item.where} ({item.num_tokens:,} tokens)" for item in items[:MAX_EXAMPLES])
