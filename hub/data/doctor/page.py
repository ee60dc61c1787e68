"""The doctor's result on a terminal: counts, lengths with a histogram, findings, samples in color."""

import json
import sys
from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.data.doctor.examine import Examined
from hub.data.doctor.oddities import is_odd
from hub.data.samples.sample import Sample
from hub.data.tokens.special_tokens import special_tokens
from hub.errors import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_BAR = 40
_MAX_SHOWN = 1500
_LABELS = {"bad": "error", "look": "note"}
_STYLES = {"context": "dim", "trained": "green", "special": "cyan", "special trained": "bold cyan"}


def print_examined(examined: Examined, tokenizer: "PreTrainedTokenizerBase", as_json: bool) -> None:
    """Print the result as a page or as JSON."""
    if as_json:
        print(printable(json.dumps(examined.report(), indent=2, ensure_ascii=False)))
        return
    _print_page(Console(width=None if Console().is_terminal else 160, highlight=False, soft_wrap=True), examined, tokenizer)
    sys.stdout.flush()


def page(examined: Examined, tokenizer: "PreTrainedTokenizerBase") -> str:
    """The page as plain text."""
    out = StringIO()
    _print_page(
        Console(file=out, width=160, highlight=False, soft_wrap=True, force_terminal=False, force_jupyter=False),
        examined,
        tokenizer,
    )
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines())


def has_colors(console: Console) -> bool:
    """Whether colors tell what is trained. Not with NO_COLOR, nor on a terminal that has none, as screen readers use."""
    return console.is_terminal and console.color_system is not None and not console.no_color


def _print_page(console: Console, examined: Examined, tokenizer: "PreTrainedTokenizerBase") -> None:
    _print_sources(console, examined)
    _print_lengths(console, examined)
    _print_findings(console, examined)
    for sample in examined.samples:
        console.print()
        console.print(_shown(sample, tokenizer, has_colors(console)))
    if has_colors(console):
        legend = Text("\n")
        for name, style in _STYLES.items():
            legend.append(f"{name}  ", style)
        console.print(legend)


def _print_sources(console: Console, examined: Examined) -> None:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("source", "format", "rows", "samples", "tokens", "with loss", "left out", "bad"):
        table.add_column(name, justify="left" if name in ("source", "format") else "right")
    for source in examined.sources:
        share = source["num_loss_tokens"] / max(1, source["num_tokens"])
        numbers = [source["num_rows"], source["num_samples"], source["num_tokens"]]
        cells = [
            printable(source["name"]),
            ", ".join(source["formats"]),
            *(f"{number:,}" for number in numbers),
            f"{share:.0%}",
        ]
        table.add_row(*cells, f"{source['num_left_out']:,}", f"{source['num_bad_rows']:,}")
    console.print(table)
    for line in [*examined.files, examined.template]:
        console.print(printable(line), markup=False)


def _print_lengths(console: Console, examined: Examined) -> None:
    lengths = examined.lengths
    if not lengths["num_rows"]:
        return
    limit = "none" if examined.limit is None else f"{examined.limit:,}"
    console.print(
        f"\ntokens per row: mean {lengths['mean']:,.0f}, median {lengths['median']:,}, 95th percentile {lengths['p95']:,}, "
        f"99th {lengths['p99']:,}, longest {lengths['max']:,}. Limit: {limit}. "
        f"Recommended: data.max_seq_len={lengths['recommended_max_seq_len']}"
    )
    most = max(bin["num_rows"] for bin in lengths["histogram"])
    for bin in lengths["histogram"]:
        bar = "#" * -(-bin["num_rows"] * _BAR // most)
        console.print(f"  {bin['from']:>8,} - {bin['to']:<8,} {bar:<{_BAR}} {bin['num_rows']:,}")


def _print_findings(console: Console, examined: Examined) -> None:
    console.print()
    for finding in examined.findings:
        count = f"{finding.count:,} " if finding.what[:1].islower() and finding.count != 1 else ""
        advice = f"{'' if finding.what.endswith('?') else '.'} {finding.advice}" if finding.advice else ""
        line = Text(f"{_LABELS[finding.level]:<7}", "bold red" if finding.level == "bad" else "yellow")
        console.print(line.append(f"{count}{finding.what}{advice}", "default"))
        for example in finding.examples:
            console.print(Text(printable(f"       {example}"), "dim"))
    if not examined.findings:
        console.print("no findings")


def _shown(sample: Sample, tokenizer: "PreTrainedTokenizerBase", has_color: bool) -> Text:
    """A sample as the model sees it. Without colors, [[ and ]] mark what is trained."""
    special = set(special_tokens(tokenizer).values())
    text = Text().append(printable(f"{sample.where}{f' {sample.role}' if sample.role else ''}: "), "bold")
    kinds = [
        f"special{' trained' if mask else ''}" if int(number) in special else "trained" if mask else "context"
        for number, mask in zip(sample.input_ids, sample.loss_mask, strict=True)
    ]
    start, marked = 0, False
    for place in range(1, len(kinds) + 1):
        if place < len(kinds) and kinds[place] == kinds[start]:
            continue
        piece = tokenizer.decode(sample.input_ids[start:place].tolist(), skip_special_tokens=False)
        piece = "".join(f"\\u{ord(letter):04x}" if is_odd(letter) else letter for letter in piece)
        if not has_color and ("trained" in kinds[start]) != marked:
            marked = not marked
            text.append("[[" if marked else "]]")
        text.append(piece, _STYLES[kinds[start]] if has_color else None)
        start = place
        if len(text) > _MAX_SHOWN:
            text.append(" ...")
            break
    if marked:
        text.append("]]")
    return text
