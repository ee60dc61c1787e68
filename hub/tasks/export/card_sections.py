"""The sections of a model card, as Markdown."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hub.system.space import size_text
from hub.tasks.export.card_facts import Facts
from hub.tasks.export.card_private import name_of, shown
from hub.tasks.export.job import Delivered
from hub.tasks.report.record import Record, as_mapping

_SECTIONS = ("algo.", "data.", "model.", "launch.strategy")
"""Options that say what was trained. Others say where a run was, and who may see it."""

_ELSEWHERE = ("algo.name", "data.path", "data.mix", "data.eval_path", "model.path", "model.revision")
"""Options that other sections show."""

_BARS = str.maketrans({"|": "\\|", "\n": " "})


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    """A table. Empty if it has no rows."""
    if not rows:
        return []
    lines = ["| " + " | ".join(str(cell).translate(_BARS) for cell in cells) + " |" for cells in (head, *rows)]
    return [lines[0], "|" + " --- |" * len(head), *lines[1:]]


def code(value: Any) -> str:
    """A value as code, as a stranger may see it."""
    text = shown(value)
    text = text if isinstance(text, str) else json.dumps(text, default=str, ensure_ascii=False)
    return f"`{text.replace('`', chr(39))}`"


def warning(exports: Sequence[Delivered]) -> Iterator[str]:
    """What stands at the top if an export was kept although it failed its check."""
    for one in exports:
        if one.failed:
            yield (
                f"> **Warning:** {code(one.path.name)} is **not the model that was trained**: {shown(one.failed)}. It was kept "
                "by force."
            )
        if one.check is not None and not one.check["passed"]:
            why = f" First difference: {shown(str(one.check['differs']))}." if one.check.get("differs") else ""
            away = f"{one.check['ratio']:.3g} of what training changed ({one.check['kl']:.3g} nats per token)"
            yield (
                f"> **Warning:** {code(one.path.name)} is **not the model that was trained**. It is {away} away, allowed "
                f"is {_bound(one.check)}. It was kept by force.{why}"
            )


def about(facts: Facts) -> Iterator[str]:
    """What the model is, and its base."""
    record = facts.record
    how = f"by {code(record.algorithm)} " if record is not None and record.algorithm else ""
    base = f"[{facts.base}](https://huggingface.co/{facts.base_id})" if facts.base_id else code(facts.base)
    revision = f", revision `{facts.revision}`" if facts.revision else ""
    yield f"{base}{revision}, fine-tuned {how}with finetune-hub." if facts.trained else f"{base}{revision}, unchanged."
    if facts.license:
        given = ", ".join(f"{key}: {shown(value)}" for key, value in facts.license.items())
        yield f"License, as the base's card gives it: {given}."
    elif facts.license_files:
        yield f"The base's card gives no license here. Its files: {', '.join(f'`{name}`' for name in facts.license_files)}."
    else:
        yield "License: the files of the base say nothing of it here."


def data(facts: Facts) -> Iterator[str]:
    """Sources with their licenses as given, and how much of them was read."""
    rows = []
    for source in facts.sources:
        name = f"[{source.id}](https://huggingface.co/datasets/{source.id})" if source.id else code(source.name)
        rows.append([name, "evaluation" if source.held_out else "training", shown(source.license) or "not given"])
    yield from table(("source", "used for", "license, as given"), rows)
    plan = as_mapping(facts.record.plan.get("data")) if facts.record is not None else {}
    counts = [
        [label, *(f"{found.get(name) or 0:,}" for name in ("num_rows", "num_samples", "num_tokens", "num_loss_tokens"))]
        for key, label in (("train", "training"), ("evaluation", "held out"))
        if (found := as_mapping(plan.get(key))).get("num_rows")
    ]
    counts += [
        [f"of it {code(one.get('name'))}", *(f"{one.get(name) or 0:,}" for name in _COUNTS)]
        for one in plan.get("sources") or []
        if isinstance(one, dict)
    ]
    if counts:
        yield ""
        yield from table(("rows of", "rows", "samples", "tokens", "tokens with loss"), counts)
    if template := plan.get("template"):
        yield ""
        yield shown(str(template)).replace("<", "\\<")


_COUNTS = ("num_rows", "num_samples", "num_tokens", "num_loss_tokens")


def training(record: Record) -> Iterator[str]:
    """Steps, hardware, time, loss, and the options that differ from the default."""
    result, plan = record.result, record.plan
    rows: list[tuple[str, str]] = []
    if result.get("num_steps"):
        early = ", ended early" if result.get("ended_early") else ""
        best = f", the result is that of step {result['best_step']:,}" if result.get("best_step") else ""
        rows.append(("steps", f"{result['num_steps']:,} of {result.get('effective_batch_size')} samples{early}{best}"))
    if plan.get("trainable_parameters") and plan.get("parameters"):
        rows.append(("parameters", f"{plan['trainable_parameters']:,} of {plan['parameters']:,} trained"))
    if plan.get("dtype"):
        rows.append(("arithmetic", str(plan["dtype"])))
    if plan.get("device"):
        count = plan.get("num_processes") or 1
        rows.append(("hardware", f"{count} x {shown(str(plan['device']))}" if count > 1 else shown(str(plan["device"]))))
    if result.get("seconds"):
        rows.append(("time", _duration(float(result["seconds"]))))
    if isinstance(result.get("train_loss"), int | float):
        rows.append(("training loss", f"{result['train_loss']:.4f} nats per token, at the end"))
    losses = [result.get(name) for name in ("eval_loss_before", "eval_loss")]
    if all(isinstance(loss, int | float) for loss in losses):
        rows.append(("held-out loss", f"{losses[0]:.4f} before, {losses[1]:.4f} after"))
    yield from table(("", "training"), rows)
    options = [
        [code(one.name), code(one.value), code(one.default)]
        for one in record.asked
        if one.name.startswith(_SECTIONS) and one.name not in _ELSEWHERE
    ]
    if options:
        yield ""
        yield from table(("option that is not the default", "value", "default"), options)


def changes(record: Record) -> Iterator[str]:
    """What was learned, kept and lost."""
    models = [shown(str(as_mapping(one).get("name", ""))) for one in record.evaluation.get("models") or []]
    rows = [list(_change(row)) for row in record.evaluation.get("rows") or [] if isinstance(row, dict)]
    if not rows:
        return
    compared = f"before ({models[1]})" if len(models) > 1 and models[1] != "before training" else "before"
    yield from table(("", "measured", compared, "after", "difference, 95 % interval", "rows", "p"), rows)
    yield ""
    yield "A verdict stands where the interval of the difference does not hold 0, of rows that both models answered."


def _change(row: Mapping[str, Any]) -> Iterator[str]:
    """The cells of a figure. `values` has the model itself first, then the one that it is compared with."""
    difference = as_mapping(row.get("difference"))
    value, low, high, p = (difference.get(name) for name in ("value", "low", "high", "p"))
    bounds = isinstance(low, int | float) and isinstance(high, int | float)
    yield _verdict(row, float(low or 0), float(high or 0)) if bounds else ""
    unit = f", {row['unit']}" if row.get("unit") else ""
    yield f"{shown(str(row.get('set', '')))}: {shown(str(row.get('metric', '')))}{unit}"
    values = [as_mapping(one).get("value") for one in row.get("values") or []]
    for place in (1, 0):
        yield _number(values[place] if place < len(values) else None)
    interval = f" [{_number(low)}, {_number(high)}]" if bounds else ""
    yield f"{value:+.4g}{interval}" if isinstance(value, int | float) else ""
    yield str(row.get("n", ""))
    yield "" if not isinstance(p, int | float) else "<0.001" if p < 0.001 else f"{p:.3f}"


def _verdict(row: Mapping[str, Any], low: float, high: float) -> str:
    if low <= 0 <= high:
        return "kept" if row.get("role") == "kept" else "no change"
    if (high < 0) != (row.get("better") == "lower"):
        return "lost"
    return "learnt" if row.get("role") == "learnt" else "gained"


def gate(exports: Sequence[Delivered]) -> Iterator[str]:
    """How far each export is from the model that was trained."""
    rows = [[code(one.path.name), size_text(one.num_bytes), *_figures(one)] for one in exports]
    if not rows:
        return
    yield "Each export was read again by the program that it is for, and compared with the model that was trained, at tokens"
    yield "of rows: KL(trained || export) in nats per token, and as a share of KL(trained || base). A share of 0 is the model"
    yield "that was trained, 1 is its base. Chat template, token ids of prompts and the ends of answers were compared too."
    yield ""
    yield from table(("export", "size", "KL", "share", "bound", "same most likely token", "on", "read by", "check"), rows)
    for one in exports:
        made = ", ".join(f"{name} {shown(str(value))}" for name, value in one.made_by.items())
        remarks = [part for part in (shown(one.note).rstrip("."), made and f"made by {made}") if part]
        if remarks:
            yield ""
            yield f"{code(one.path.name)}: {'. '.join(remarks)}."


def _figures(one: Delivered) -> Iterator[str]:
    check = one.check
    if check is None:
        yield from ("", "", "", "", "", "", "**failed**" if one.failed else "not compared")
        return
    yield f"{check['kl']:.3g}"
    yield f"{check['ratio']:.3g}"
    yield _bound(check)
    yield f"{check['top1']:.1%}" if isinstance(check.get("top1"), int | float) else ""
    yield f"{check.get('positions', 0):,} tokens of {check.get('rows', 0):,} {check.get('on', 'rows')}"
    yield f"{shown(str(check.get('reader', '')))}, beside {check.get('arithmetic', 'float32')}"
    yield "passed" if check.get("passed") else "**failed**"


def _bound(check: Mapping[str, Any]) -> str:
    return f"{check['limit_nats']:g} nats" if "limit_nats" in check else f"share {check['limit']:g}"


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, int | float) else ""


def _duration(seconds: float) -> str:
    minutes, hours = seconds / 60, seconds / 3600
    return f"{hours:.1f} h" if hours >= 2 else f"{minutes:.1f} min" if minutes >= 2 else f"{seconds:.0f} s"


def title(facts: Facts, exports: Sequence[Delivered]) -> str:
    """The heading: the base, and how it was tuned."""
    name = name_of(facts.base).rpartition("/")[2]
    algorithm = facts.record.algorithm if facts.record is not None else ""
    tuned = f", tuned by {algorithm}" if algorithm else ", tuned" if facts.trained else ""
    kinds = ", ".join(dict.fromkeys(one.kind for one in exports))
    return f"# {name}{tuned}" + (f" ({kinds})" if kinds else "")
