"""What was measured: the table of learned, kept and lost of evaluation.json, and answers before and after."""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from hub.tasks.report.markup import Html, Table, code, note, plain, section, table, tag, typed
from hub.tasks.report.record import Record, as_mapping

MOST_ANSWERS = 20
"""Answers that are shown."""

_BEFORE = ("base_answer", "before")
_AFTER = ("answer", "after")


def changes(record: Record, verbs: Collection[str]) -> Html:
    """What was learned, kept and lost, with intervals.

    Args:
        record: the run.
        verbs: the verbs on finished models that there are.
    """
    title, rows = "Learned, kept, lost", [row for row in record.evaluation.get("rows") or [] if isinstance(row, dict)]
    if not rows:
        command = [" Type ", code(f"python -m hub evaluate {typed('run', record.path)}")]
        can_measure = "evaluate" in verbs and record.status == "completed"
        words = "Nothing was measured besides the held-out loss."
        return section("measured", title, note(words, *(command if can_measure else [])))
    models = [str(as_mapping(model).get("name", "")) for model in record.evaluation.get("models") or []]
    head = ("", "measured", "difference (95 % interval)", *(models or ["value"]), "rows", "p")
    cells = [_cells(row, len(models) or 1) for row in rows]
    legend = note(
        "↑ and ↓ say which way is better. A verdict stands where the interval of the difference leaves 0 out. ± is one "
        "standard error."
    )
    return section("measured", title, table(Table(head, cells, frozenset(range(2, len(head))))), legend)


def _cells(row: Mapping[str, Any], num_models: int) -> list[Any]:
    arrow = {"lower": " ↓", "higher": " ↑"}.get(str(row.get("better")), "")
    unit = f" ({row['unit']})" if row.get("unit") else ""
    values = [_value(as_mapping(value)) for value in (row.get("values") or [])[:num_models]]
    values += ["-"] * (num_models - len(values))
    difference = as_mapping(row.get("difference"))
    name = f"{row.get('set', '')}: {row.get('metric', '')}{unit}{arrow}"
    p = difference.get("p")
    shown_p = "" if not isinstance(p, int | float) else "<0.001" if p < 0.001 else f"{p:.2g}"
    return [_verdict(row), name, _interval(difference), *values, plain(row.get("n", "")), shown_p]


def _verdict(row: Mapping[str, Any]) -> Html:
    """learned, kept or lost, by the role of the row and by its difference (the model asked, less the one before)."""
    difference = as_mapping(row.get("difference"))
    low, high = difference.get("low"), difference.get("high")
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return tag("span", "-", class_="badge open")
    if low <= 0 <= high:
        word = "kept" if row.get("role") == "kept" else "no change"
        return tag("span", word, class_="badge open")
    is_better = (high < 0) == (row.get("better") == "lower")
    word = ("learned" if row.get("role") == "learnt" else "gained") if is_better else "lost"
    return tag("span", word, class_=f"badge {'good' if is_better else 'bad'}")


def _value(value: Mapping[str, Any]) -> str:
    number, error = value.get("value"), value.get("stderr")
    if not isinstance(number, int | float):
        return "-"
    return f"{number:.4g} ± {error:.2g}" if isinstance(error, int | float) else f"{number:.4g}"


def _interval(difference: Mapping[str, Any]) -> str:
    value, low, high = (difference.get(name) for name in ("value", "low", "high"))
    if not isinstance(value, int | float):
        return "-"
    if not isinstance(low, int | float) or not isinstance(high, int | float):
        return f"{value:+.3g}"
    return f"{value:+.3g} ({low:+.3g} to {high:+.3g})"


def answers(record: Record, verbs: Collection[str]) -> Html:
    """Answers before and after training, side by side.

    Args:
        record: the run.
        verbs: the verbs on finished models that there are.
    """
    found = [one for one in _answers(record) if one["after"] or one["before"]]
    title = "Answers before and after"
    if not found:
        out = record.path / "answers.jsonl"
        command = code(
            f"python -m hub generate {typed('run', record.path)} data.path=prompts.jsonl compare=true {typed('out', out)}"
        )
        can_ask = "generate" in verbs and record.status == "completed"
        return section("answers", title, note("There are none.", *([" Type ", command] if can_ask else [])))
    blocks = []
    for one in found[:MOST_ANSWERS]:
        sides = [
            tag("div", tag("h4", name), tag("pre", one[key] or "-"), class_="answer")
            for key, name in (("before", "before"), ("after", "after"), ("expected", "expected"))
            if one[key] or key != "expected"
        ]
        blocks.append(tag("div", tag("pre", one["prompt"], class_="prompt"), tag("div", *sides, class_="sides"), class_="pair"))
    more = [note(f"{len(found):,} answers in all, the first {MOST_ANSWERS} are shown.")] if len(found) > MOST_ANSWERS else []
    return section("answers", title, *blocks, *more)


def _answers(record: Record) -> Iterator[dict[str, str]]:
    """Yield prompt, answer before, answer after and the expected one, from answers.jsonl, else from evaluation.json."""
    given = record.answers or [one for one in record.evaluation.get("examples") or [] if isinstance(one, dict)]
    for one in given:
        sides = one.get("answers")
        several = [*sides, "", ""] if isinstance(sides, list) else ["", ""]  # of the model asked, of the one before
        yield {
            "prompt": _prompt(one),
            "before": _first(one, _BEFORE) or str(several[1]),
            "after": _first(one, _AFTER) or str(several[0]),
            "expected": _first(one, ("reference", "expected")),
        }


def _first(one: Mapping[str, Any], names: tuple[str, ...]) -> str:
    return next((plain(one[name]) for name in names if one.get(name) not in (None, "")), "")


def _prompt(one: Mapping[str, Any]) -> str:
    if isinstance(messages := one.get("messages") or one.get("prompt"), list):
        return "\n".join(f"{as_mapping(message).get('role')}: {as_mapping(message).get('content')}" for message in messages)
    return plain(one.get("prompt") or one.get("text") or one.get("row") or "")
