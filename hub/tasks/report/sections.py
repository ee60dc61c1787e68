"""Sections of the report on one run: what came, what is wrong, what was asked, what was decided, how to go on."""

import json
import math
from collections.abc import Collection, Iterable, Iterator, Mapping
from shlex import quote
from typing import Any

from hub.tasks.report import afterwards
from hub.tasks.report.markup import Html, Table, code, commands, folded, joined, note, plain, section, table, tag, typed
from hub.tasks.report.record import NOT_FINISHED, Record, as_mapping, last_step
from hub.train.curves import number
from hub.train.diagnosis import FEWEST_STEPS
from hub.train.findings import Finding

_STATE = {"completed": "good", "verified": "good", "failed": "bad"}
_BECAUSE = "_because"
_ELSEWHERE = ("data", "diagnosis", *afterwards.KINDS)
"""Parts of plan.json with sections of their own."""


def badge(record: Record) -> Html:
    """The status of a run."""
    return tag("span", record.status, class_=f"badge {_STATE.get(record.status, 'open')}")


def outcome(record: Record) -> Html:
    """What came: the figures of the result, and why the run ended before its time if it did."""
    tiles = [tag("div", tag("dt", name), tag("dd", value), class_="tile") for name, value in _figures(record)]
    parts: list[Html] = [tag("dl", *tiles, class_="tiles")] if tiles else []
    if error := record.result.get("error"):
        parts.append(tag("p", error, class_="error"))
    parts += [tag("p", line, class_="error") for line in record.failures if line.partition(": ")[2] not in str(error)]
    if record.status == NOT_FINISHED:
        step, total = last_step(record), record.plan.get("num_steps")
        reached = f"the last step that was logged is {step}{f' of {total}' if total else ''}" if step else "no step was logged"
        parts.append(note(f"This run has no result: it is going on, or was killed. So far {reached}."))
    parts += [note(f"Not shown: {line}") for line in record.problems]
    return section("result", "What came", *parts)


def _figures(record: Record) -> Iterator[tuple[str, str]]:
    result, curves = record.result, record.curves
    before, after = result.get("eval_loss_before"), result.get("eval_loss")
    if not result and len(curves.held_out):
        before, after = float(curves.held_out[0]), float(curves.held_out[-1])
    if isinstance(after, int | float):
        yield "held-out loss", f"{before:.4g} → {after:.4g}" if isinstance(before, int | float) else f"{after:.4g}"
    yield from _preferences(record)
    loss = result.get("train_loss")
    if loss is None and len(curves.losses) >= 3:
        loss = curves.end.mean
    if isinstance(loss, int | float):
        yield "training loss", f"{loss:.4g}"
    steps = result.get("num_steps") or last_step(record)
    if steps:
        total, size = record.plan.get("num_steps"), record.plan.get("effective_batch_size")
        yield "steps", f"{steps:,}{f' of {total:,}' if isinstance(total, int) and total != steps else ''}"
        if size:
            yield "samples per step", plain(size)
    if isinstance(speed := result.get("tokens_per_second"), int | float):
        yield "tokens/s", f"{speed:,.0f}"
    if isinstance(memory := result.get("peak_memory_gb"), int | float):
        yield "peak memory", f"{memory:.1f} GB"
    if isinstance(seconds := result.get("seconds"), int | float) and seconds:
        yield "time", duration(seconds)


def _preferences(record: Record) -> Iterator[tuple[str, str]]:
    """What an objective of preferences has on the evaluation set, before and after."""
    for name, title in (
        ("eval_accuracy", "held-out accuracy"),
        ("eval_likelier", "chosen is likelier"),
        ("eval_margin", "margin"),
    ):
        before = next((number(line, f"{name}_before") for line in record.lines if f"{name}_before" in line), math.nan)
        after = next((number(line, name) for line in reversed(record.lines) if name in line), math.nan)
        if math.isfinite(after):
            shown = f"{after:.3g}" if name == "eval_margin" else f"{after:.1%}"
            first = f"{before:.3g}" if name == "eval_margin" else f"{before:.1%}"
            yield title, f"{first} → {shown}" if math.isfinite(before) else shown


def duration(seconds: float) -> str:
    """A time in words of at most two units."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes, hours = divmod(round(seconds / 60), 60)[::-1]
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def diagnosis(record: Record, verbs: Collection[str]) -> Html:
    """What the curves show to be wrong.

    Args:
        record: the run.
        verbs: the verbs on finished models that there are.
    """
    found = [_finding(finding, record, verbs) for finding in record.findings()]
    if not found:
        few = len(record.curves.losses) < FEWEST_STEPS
        found = [note("Too few steps were logged to tell." if few else "Nothing stands out in the curves.")]
    return section("diagnosis", "What is wrong", *found)


def _finding(finding: Finding, record: Record, verbs: Collection[str]) -> Html:
    parts = [tag("h3", finding.title), tag("p", f"{finding.evidence[:1].upper()}{finding.evidence[1:]}.")]
    if finding.changes:
        changes = [tag("li", code(f"{change.option}={change.value}"), f" {change.why}") for change in finding.changes]
        parts += [tag("p", "What to try in the next run, one at a time:"), tag("ul", *changes)]
    if finding.advice:
        parts.append(note(f"{finding.advice}."))
    if record.status == "completed":
        named = [f"python -m hub {verb} {typed('run', record.path)}" for verb in finding.afterwards if verb in verbs]
        parts += [tag("p", "For this model: ", code(command)) for command in named]
    return tag("div", *parts, class_="finding")


def asked(record: Record) -> Html:
    """The options that are not at their defaults."""
    rows = [[code(one.name), _shown(one.value), _shown(one.default), one.meaning] for one in record.asked]
    if not rows:
        return section("asked", "What was asked", note("All options are at their defaults."))
    known = record.cfg is not None
    head = ("option", "value", "default", "meaning") if known else ("option", "value")
    shown = Table(head, [row[: len(head)] for row in rows])
    return section("asked", "What was asked", note("Options that differ from the defaults. run.yaml has all."), table(shown))


def decided(record: Record) -> Html:
    """plan.json: what the hub decided, each with its reason."""
    plan = {name: value for name, value in record.plan.items() if name not in _ELSEWHERE}
    reasons = {name.removesuffix(_BECAUSE): value for name, value in plan.items() if name.endswith(_BECAUSE)}
    rows: list[list[Any]] = []
    facts: list[list[Any]] = []
    for name, value in plan.items():
        stem = name.removesuffix(_BECAUSE)
        if name != stem and stem in plan:
            continue
        cells = [code(stem), _shown(value) if name == stem else "", reasons.get(stem, "")]
        (rows if stem in reasons else facts).append(cells)
    if not rows and not facts:
        return section("plan", "What was decided", note("There is no plan.json: the run did not get that far."))
    parts: list[Html] = [table(Table(("decision", "value", "because"), rows))] if rows else []
    if facts:
        parts.append(folded(f"{len(facts)} more values", table(Table(("name", "value"), [row[:2] for row in facts]))))
    return section("plan", "What was decided", *parts)


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, list | dict) else plain(value)


def go_on(record: Record, verbs: Collection[str]) -> Html:
    """Commands for what comes next.

    Args:
        record: the run.
        verbs: the verbs on finished models that there are.
    """
    parts = [commands(_next(record, verbs))]
    if record.status == "completed":
        folder = record.result.get("model_path") or record.path / "model"
        is_adapter = (record.path / "model" / "adapter_config.json").is_file()
        name = "AutoPeftModelForCausalLM" if is_adapter else str(record.plan.get("auto_class") or "AutoModelForCausalLM")
        library = "peft" if is_adapter else "transformers"
        lines = f"from {library} import {name}\nmodel = {name}.from_pretrained({str(folder)!r})"
        parts.append(folded("From Python", tag("pre", lines)))
    return section("next", "How to go on", *parts)


def _next(record: Record, verbs: Collection[str]) -> Iterable[tuple[str, str]]:
    run = record.path
    if record.status == "completed":
        for verb, what in (
            ("chat", "talk to the model"),
            ("evaluate", "measure it, and what it forgot"),
            ("generate", "answer a file of prompts"),
            ("serve", "serve it"),
            ("export", "write it for other programs"),
        ):
            if verb in verbs:
                more = " data.path=prompts.jsonl out=answers.jsonl" if verb == "generate" else ""
                yield what, f"python -m hub {verb} {typed('run', run)}{more}"
    elif record.status != "verified":
        yield "continue it from its last checkpoint", f"python -m hub {typed('resume', run)}"
    changes = [f" {change.option}={change.value}" for finding in record.findings()[:1] for change in finding.changes[:1]]
    again = "run it again with the first change above" if changes else "run it again"
    yield again, f"python -m hub {quote(str(run / 'run.yaml'))}{''.join(changes)}"
    yield "make this page again", f"python -m hub report {typed('run', run)}"


def results_table(records: Iterable[Record]) -> Html:
    """The results of several runs, a column for each."""
    records = list(records)
    figures = [dict(_figures(record)) for record in records]
    names = list(dict.fromkeys(name for values in figures for name in values))
    rows: list[list[Any]] = [["status", *(badge(record) for record in records)]]
    rows += [["what is wrong", *("; ".join(one.title for one in record.findings()) or "-" for record in records)]]
    rows += [[name, *(values.get(name, "-") for values in figures)] for name in names]
    errors = [str(record.result.get("error") or "") for record in records]
    rows += [["error", *errors]] if any(errors) else []
    shown = table(Table(("", *(record.name for record in records)), rows), stacks=False)
    return section("results", "What came", shown)


def options_table(records: Iterable[Record]) -> Html:
    """The options in which several runs differ, a column for each run."""
    records = list(records)
    names = dict.fromkeys(name for record in records for name in record.options)
    rows = []
    for name in names:
        values = [_shown(record.options[name]) if name in record.options else "-" for record in records]
        if len(set(values)) > 1 and name not in ("run_name", "output_dir", "model.notes", "resume"):
            rows.append([code(name), *values])
    if not rows:
        return section("options", "Options that differ", note("None: the runs have the same options."))
    shown = table(Table(("option", *(record.name for record in records)), rows), stacks=False)
    return section("options", "Options that differ", shown)


def left_out(data: Mapping[str, Any]) -> Html:
    """What of the data was not trained on."""
    names = {
        "num_left_out": "rows longer than the limit",
        "num_bad_rows": "bad rows",
        "num_rows_cut": "rows that were cut off",
        "num_tokens_cut": "tokens that were cut off",
        "num_rows_split": "rows that were split into several samples",
        "num_rows_with_texts_omitted": "rows of which the chat template leaves texts out",
        "num_samples_repeated": "samples that repeat another one",
        "num_held_out_samples_in_training_data": "held-out samples that are in the training data too",
    }
    rows = [[what, f"{data[name]:,}"] for name, what in names.items() if isinstance(data.get(name), int) and data[name]]
    if not rows:
        return note("Nothing was left out: no row is too long or bad, and none repeats another.")
    parts = [table(Table(("not as it should be", "number"), rows, frozenset({1})))]
    places = [
        [item.get("where", ""), item.get("num_tokens", ""), item.get("reason", "")]
        for name in ("left_out", "bad_rows")
        for item in (data.get(name) or [])[:20]
        if isinstance(item, dict)
    ]
    places += [[where, "", kind] for kind, rows in as_mapping(data.get("texts_omitted")).items() for where in rows[:5]]
    if places:
        shown = table(Table(("row", "tokens", "reason"), places[:50], frozenset({1})))
        parts.append(folded(f"the first {min(50, len(places))} of them" if len(places) > 1 else "which", shown))
    return joined(parts)
