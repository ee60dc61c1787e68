"""Sections on the data of a run: counts, lengths, sources, what was left out, samples with their loss mask."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hub.tasks.report.markup import Html, Table, folded, joined, note, section, table, tag
from hub.tasks.report.record import Record, as_mapping
from hub.tasks.report.samples import Shown
from hub.tasks.report.sections import left_out

_BAR, _ROW = 210, 20


def data(record: Record) -> Html:
    """What was trained on, and what was not."""
    plan = as_mapping(record.plan.get("data"))
    if not plan:
        return section("data", "Data", note("plan.json has nothing on the data: the run did not get that far."))
    parts: list[Html] = [table(Table(("", *_HEAD), list(_counts(plan)), frozenset(range(1, 7))))]
    if template := plan.get("template"):
        parts.append(tag("p", str(template)))
    if plan.get("streaming"):
        parts.append(note("The data is a stream: the counts are those of its first rows."))
    parts += [tag("h3", "Length of the samples"), _lengths(as_mapping(plan.get("lengths")), plan.get("max_seq_len"))]
    if sources := [one for one in plan.get("sources") or [] if isinstance(one, dict)]:
        rows = [
            [one.get("name"), f"{float(one.get('share') or 0):.1%}", *_numbers(one), one.get("num_left_out"), one.get("path")]
            for one in sources
        ]
        head = ("source", "share", *_HEAD, "left out", "path")
        parts += [tag("h3", "Sources"), table(Table(head, rows, frozenset(range(1, 8))))]
    parts += [tag("h3", "Left out"), left_out(plan)]
    if unused := plan.get("fields_not_used"):
        parts.append(note(f"Fields that nothing reads: {', '.join(map(str, unused))}"))
    if files := plan.get("files"):
        parts.append(folded("files", tag("ul", *(tag("li", line) for line in files))))
    return section("data", "Data", *parts)


_HEAD = ("rows", "samples", "tokens", "with loss", "longest")


def _counts(plan: Mapping[str, Any]) -> Iterator[Sequence[Any]]:
    for name, label in (("train", "training"), ("evaluation", "held out")):
        counts = as_mapping(plan.get(name))
        if counts.get("num_rows"):
            yield [label, *_numbers(counts)]


def _numbers(counts: Mapping[str, Any]) -> list[str]:
    tokens, with_loss = counts.get("num_tokens") or 0, counts.get("num_loss_tokens") or 0
    share = f"{with_loss:,} ({with_loss / tokens:.0%})" if tokens else "0"
    numbers = [counts.get(name) or 0 for name in ("num_rows", "num_samples", "num_tokens")]
    return [*(f"{number:,}" for number in numbers), share, f"{counts.get('longest') or 0:,}"]


def _lengths(lengths: Mapping[str, Any], limit: Any) -> Html:
    """A histogram, and some percentiles."""
    bins = [one for one in lengths.get("histogram") or [] if isinstance(one, dict)]
    if not bins:
        return note("This run has no histogram of lengths: it is of an earlier version, or no row could be used.")
    most = max(int(one["num_rows"]) for one in bins) or 1
    rows: list[Html] = []
    for place, one in enumerate(bins):
        y, count = place * _ROW, int(one["num_rows"])
        size = round(_BAR * count / most, 1)
        rows.append(tag("text", f"{one['from']:,} – {one['to']:,}", x=96, y=y + 14, text_anchor="end"))
        rows.append(tag("rect", x=104, y=y + 3, width=max(size, 1) if count else 0, height=_ROW - 6, class_="bar"))
        rows.append(tag("text", f"{count:,}", x=110 + size, y=y + 14))
    height = _ROW * len(bins)
    words = f"Histogram of {lengths.get('num_rows'):,} samples by their tokens, the longest {lengths.get('max'):,}"
    picture = tag("svg", *rows, viewBox=f"0 0 380 {height}", class_="histogram", role="img", aria_label=words)
    line = (
        f"Tokens per sample: mean {lengths.get('mean', 0):,.0f}, median {lengths.get('median', 0):,}, 95th percentile "
        f"{lengths.get('p95', 0):,}, longest {lengths.get('max', 0):,}. Limit: {limit if limit is not None else 'none'}."
    )
    return joined([picture, note(line)])


def samples(shown: Sequence[Shown], why_none: str) -> Html:
    """Samples with their loss mask: a shade for each token that is trained."""
    title = "Samples with their loss mask"
    if not shown:
        return section("samples", title, note(why_none))
    legend = tag(
        "p", tag("span", "trained", class_="t loss"), " tokens have loss. ", tag("span", "Others", class_="t"),
        " are context only. A thin line parts tokens.", class_="note",
    )  # fmt: skip
    return section("samples", title, legend, *(_sample(one) for one in shown))


def _sample(shown: Shown) -> Html:
    head = tag("h4", f"{shown.where}: {shown.num_tokens:,} tokens, {shown.num_loss_tokens:,} with loss")
    if not shown.pieces:
        why = note("It holds a secret, which is redacted, so its tokens are not shown one by one.")
        return tag("div", head, why, tag("pre", shown.redacted), class_="sample")
    tokens = [tag("span", _visible(piece.text), class_="t loss" if piece.has_loss else "t") for piece in shown.pieces]
    before = [tag("span", f"{shown.num_before:,} tokens ... ", class_="cut")] if shown.num_before else []
    behind = [tag("span", f" ... {shown.num_behind:,} tokens", class_="cut")] if shown.num_behind else []
    return tag("div", head, tag("pre", *before, *tokens, *behind, class_="tokens"), class_="sample")


def _visible(piece: str) -> str:
    """A token's text with its line breaks visible. An empty one stays visible too."""
    return piece.replace("\n", "↵\n") if piece else "∅"
