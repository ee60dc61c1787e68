"""`python -m hub data`: what is in the data, what will be made of it, and what would spoil training. Nothing is trained.

`examine` looks at every row as it was written and at the tokens that it becomes. Findings of level `bad` would spoil training;
those of level `look` may be meant so. `doctor_page.py` prints what is found.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from random import Random
from typing import Any

import numpy as np

from hub.config.data import DataSource
from hub.config.schema import RunConfig
from hub.data.doctor.near_duplicates import near_duplicates
from hub.data.doctor.oddities import BROKEN_TEXT, odd_order
from hub.data.formats.examples import Conversation, Document, Example
from hub.data.prepare import length_limit
from hub.data.samples.counts import Part
from hub.data.samples.mix import eval_source_of, num_held_out, source_names, sources_of
from hub.data.samples.sample import Item, Sample
from hub.data.sources.read import Cursor, rows_after
from hub.data.tokens.encode import Encoder
from hub.data.tokens.template import fallback_line, load_template, template_report
from hub.errors import DataError

MOST_ROWS = 200_000
"""Rows of each source that are looked at."""

MOST_EXAMPLES = 5
MOST_LEFT_OUT = 0.1
"""Share of the rows above which leaving them out is no detail any more."""


@dataclass(frozen=True)
class Finding:
    """One thing that was noticed."""

    level: str
    """`bad`: it would spoil training. `look`: it may be meant so."""

    what: str
    count: int
    examples: tuple[str, ...] = ()
    """Where, the first few."""

    advice: str = ""


@dataclass
class _Seen:
    """A row that can be used."""

    where: str
    prompt: str
    """Digest of what comes before the first answer."""

    whole: str
    """Digest of all of it."""

    words: str
    """Its text, for near duplicates."""


@dataclass
class Examined:
    """All that was found."""

    sources: list[dict[str, Any]]
    lengths: dict[str, Any]
    findings: list[Finding]
    losses: dict[str, Any]
    template: str
    limit: int | None
    samples: list[Sample]
    """A few, to be shown."""

    trained: dict[str, Any] = field(default_factory=dict)

    @property
    def spoils(self) -> bool:
        """Whether something would spoil training."""
        return any(finding.level == "bad" for finding in self.findings)

    def report(self) -> dict[str, Any]:
        """For scripts. JSON."""
        return {
            "sources": self.sources,
            "max_seq_len": self.limit,
            "tokens_per_row": self.lengths,
            "tokens": self.trained,
            "template": self.template,
            "spoils_training": self.spoils,
            "findings": [vars(finding) | {"examples": list(finding.examples)} for finding in self.findings],
            **self.losses,
        }


def examine(cfg: RunConfig, tokenizer: Any, max_positions: int | None) -> Examined:
    """Look at all data of a run.

    Args:
        cfg: its `data` and `algo.seed` are read.
        tokenizer: a Hugging Face tokenizer. It gets the chat template that the run would have.
        max_positions: the longest sequence in tokens that the model can hold.

    Raises:
        HubError: the data can't be read at all.
    """
    limit = length_limit(cfg, max_positions)
    if cfg.data.template:
        load_template(tokenizer, cfg.data.template)
    had_template = bool(tokenizer.chat_template)
    sources = sources_of(cfg.data)
    evaluation_source = eval_source_of(cfg.data)
    findings: list[Finding] = []
    looked = [_look(cfg, source, tokenizer, limit) for source in sources]
    evaluation = _look(cfg, evaluation_source, tokenizer, limit) if evaluation_source else None
    train_seen = [seen for look in looked for seen in look.seen]
    eval_seen = evaluation.seen if evaluation else []
    if cfg.data.eval_fraction:
        train_seen, eval_seen = _held_out(looked, cfg)
    every = [*looked, *([evaluation] if evaluation else [])]
    whole = Part.together([look.part for look in every])
    items = [item for look in every for item in look.lengths]
    template = "Loss is on every token." if whole.samples else "Nothing is trained."
    if whole.formats - {"document", "tokens"}:
        template = template_report(tokenizer, whole.uncut(), cfg.data.loss_on)
        if not had_template:
            findings.append(Finding("look", fallback_line(tokenizer), 1))
    findings += _of_rows(cfg, whole, limit, template)
    findings += _of_texts(every)
    findings += _of_repetitions(train_seen, eval_seen)
    if any(look.more for look in every):
        findings.append(Finding("look", f"only the first {MOST_ROWS:,} rows of a source were looked at", 1))
    names = source_names(sources)
    return Examined(
        [
            {
                "name": name,
                "path": source.path,
                "formats": sorted(look.part.formats),
                **look.part.counts(),
                **_losses(look.part),
            }
            for name, source, look in zip(names, sources, looked, strict=True)
        ],
        lengths_of([item.num_tokens for item in items], limit),
        sorted(findings, key=lambda finding: finding.level),
        whole.losses(),
        template,
        limit,
        _choose(whole.samples),
        {key: value for key, value in whole.counts().items() if key in ("num_samples", "num_tokens", "num_loss_tokens")},
    )


@dataclass
class _Look:
    part: Part
    seen: list[_Seen]
    lengths: list[Item]
    """An item for each row that can be used, of its whole length."""

    texts: dict[str, list[str]]
    """What is odd in a text -> where."""

    orders: dict[str, list[str]]
    """What is odd in the order of turns -> where."""

    more: bool
    """There are more rows."""


def _look(cfg: RunConfig, source: DataSource, tokenizer: Any, limit: int | None) -> _Look:
    """Read and encode the rows of one source. Bad ones are kept, whatever data.on_bad_row says."""
    data = replace(cfg.data, on_bad_row="skip", on_long="drop" if cfg.data.on_long == "error" else cfg.data.on_long)
    encode = Encoder(tokenizer, data, source, limit)
    rows: list[list[Item]] = []
    found = _Look(Part(), [], [], defaultdict(list), defaultdict(list), False)
    entries = rows_after(source.path, Cursor(), source.subset, source.split, stream=False)
    for entry, _ in islice(entries, MOST_ROWS):
        items = encode(entry)
        rows.append(items)
        if items[0].bad:
            continue
        cut = sum(item.num_tokens for item in items) + items[0].num_cut
        found.lengths.append(items[0]._replace(num_tokens=cut, sample=None))
        example = encode.example(entry)
        where = items[0].where.split(" part ")[0]
        found.seen.append(_seen(example, where))
        text = _text(example)
        for what, pattern in BROKEN_TEXT.items():
            if pattern.search(text):
                found.texts[what].append(where)
        for what in odd_order(example):
            found.orders[what].append(where)
    found.more = next(entries, None) is not None
    found.part = Part.of(rows, data.block_size)
    return found


def _losses(part: Part) -> dict[str, int]:
    return {key: value for key, value in part.losses().items() if isinstance(value, int)}


def _held_out(looked: Sequence[_Look], cfg: RunConfig) -> tuple[list[_Seen], list[_Seen]]:
    train, evaluation = [], []
    for look in looked:
        number = len(look.seen)
        if number < 2:
            raise DataError("one row only, so none can be held out. Type data.eval_fraction=0, or give more rows")
        chosen = set(Random(cfg.algo.seed).sample(range(number), num_held_out(number, cfg.data.eval_fraction)))
        train += [seen for place, seen in enumerate(look.seen) if place not in chosen]
        evaluation += [seen for place, seen in enumerate(look.seen) if place in chosen]
    return train, evaluation


def _of_rows(cfg: RunConfig, whole: Part, limit: int | None, template: str) -> Iterable[Finding]:
    if whole.bad:
        advice = "Mend them, or type data.on_bad_row=skip" if cfg.data.on_bad_row == "error" else "They are left out"
        level = "bad" if cfg.data.on_bad_row == "error" or not whole.samples else "look"
        reasons = Counter(re.sub(r"^[^ ]*:\d+: ", "", item.reason)[:100] for item in whole.bad)
        examples = tuple(item.reason for item in whole.bad[:MOST_EXAMPLES])
        what = "rows can't be used" + (f" ({reasons.most_common(1)[0][0]}, ...)" if len(reasons) > 1 else "")
        yield Finding(level, what, len(whole.bad), examples, advice)
    if whole.left_out:
        share = len(whole.left_out) / max(1, whole.num_rows)
        level = "bad" if cfg.data.on_long == "error" or share > MOST_LEFT_OUT or not whole.samples else "look"
        what = f"rows are longer than {limit} tokens and are left out ({share:.1%})"
        yield Finding(level, what, len(whole.left_out), _some(whole.left_out), "data.on_long=truncate or split keeps them")
    if whole.cut:
        tokens = sum(item.num_cut for item in whole.cut)
        yield Finding("look", f"rows are cut, by {tokens:,} tokens", len(whole.cut), _some(whole.cut))
    if whole.num_split:
        yield Finding("look", f"rows are longer than {limit} tokens and are split", whole.num_split)
    if whole.omitted:
        examples = tuple(whole.omitted[:MOST_EXAMPLES])
        yield Finding(
            "look", "rows in which the chat template leaves out texts beside tool calls", len(whole.omitted), examples
        )
    if whole.unused:
        yield Finding("look", f"fields that nothing reads: {', '.join(sorted(whole.unused)[:12])}", len(whole.unused))
    if template.startswith("Warning"):
        yield Finding("bad", template.removeprefix("Warning: "), 1)
    if not whole.samples:
        yield Finding("bad", "no row is left to train on", 1)


def _some(items: Sequence[Item]) -> tuple[str, ...]:
    return tuple(f"{item.where} ({item.num_tokens:,} tokens)" for item in items[:MOST_EXAMPLES])


def _of_texts(every: Sequence[_Look]) -> Iterable[Finding]:
    for name in BROKEN_TEXT:
        where = [place for look in every for place in look.texts.get(name, ())]
        if where:
            level = "bad" if len(where) > MOST_LEFT_OUT * sum(len(look.seen) for look in every) else "look"
            yield Finding(level, f"rows with {name}", len(where), tuple(where[:MOST_EXAMPLES]), "Look at how the file was made")
    for name in sorted({name for look in every for name in look.orders}):
        where = [place for look in every for place in look.orders.get(name, ())]
        yield Finding("look", f"rows in which {name}", len(where), tuple(where[:MOST_EXAMPLES]))


def _of_repetitions(train: Sequence[_Seen], evaluation: Sequence[_Seen]) -> Iterable[Finding]:
    by_whole = _grouped(train, lambda seen: seen.whole)
    repeated = [group for group in by_whole.values() if len(group) > 1]
    if repeated:
        count = sum(len(group) - 1 for group in repeated)
        examples = tuple(" = ".join(seen.where for seen in group[:3]) for group in repeated[:MOST_EXAMPLES])
        yield Finding("look", "training rows repeat another one word by word", count, examples, "Take them out, or mean it")
    once = [group[0] for group in by_whole.values()]
    pairs = near_duplicates([seen.words for seen in once])
    if pairs:
        examples = tuple(f"{once[a].where} ~ {once[b].where}" for a, b in pairs[:MOST_EXAMPLES])
        count = len({place for pair in pairs for place in pair[1:]})
        yield Finding("look", "training rows are nearly another one (four fifths of their words in a row)", count, examples)
    asked = [group for group in _grouped(once, lambda seen: seen.prompt).values() if len(group) > 1 and group[0].prompt]
    if asked:
        examples = tuple(" / ".join(seen.where for seen in group[:3]) for group in asked[:MOST_EXAMPLES])
        yield Finding("look", "prompts have several different answers", len(asked), examples)
    if evaluation:
        twins = [(seen, by_whole[seen.whole][0]) for seen in evaluation if seen.whole in by_whole]
        if twins:
            examples = tuple(f"{seen.where} = {twin.where}" for seen, twin in twins[:MOST_EXAMPLES])
            advice = "Take them out of one of the two: the held-out loss would measure memory"
            yield Finding("bad", "rows to evaluate on stand in the training data, too", len(twins), examples, advice)
        prompts = {seen.prompt: seen for seen in train if seen.prompt}
        same = [seen for seen in evaluation if seen.whole not in by_whole and seen.prompt in prompts]
        if same:
            examples = tuple(f"{seen.where} / {prompts[seen.prompt].where}" for seen in same[:MOST_EXAMPLES])
            yield Finding(
                "look", "rows to evaluate on have a prompt of the training data, with another answer", len(same), examples
            )


def _grouped(seen: Sequence[_Seen], key: Callable[[_Seen], str]) -> dict[str, list[_Seen]]:
    groups: dict[str, list[_Seen]] = defaultdict(list)
    for each in seen:
        groups[key(each)].append(each)
    return groups


def _seen(example: Example, where: str) -> _Seen:
    if isinstance(example, Conversation):
        first = next((n for n, message in enumerate(example.messages) if message["role"] == "assistant"), 0)
        prompt = _digest([example.messages[:first], example.tools]) if first else ""
        return _Seen(where, prompt, _digest([example.messages, example.tools]), _text(example))
    content = example.text if isinstance(example, Document) else example.input_ids
    return _Seen(where, "", _digest(content), _text(example))


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, default=str).encode("utf-8", "surrogatepass")).hexdigest()


def _text(example: Example) -> str:
    if isinstance(example, Conversation):
        return "\n".join(message["content"] for message in example.messages)
    return example.text if isinstance(example, Document) else ""


def lengths_of(lengths: Sequence[int], limit: int | None) -> dict[str, Any]:
    """Tokens per row: mean, median, 95th and 99th percentile, longest, a histogram, and a recommendation.

    Args:
        lengths: of each row that can be used.
        limit: tokens of the longest sample.
    """
    if not lengths:
        return {"num_rows": 0}
    values = np.asarray(lengths)
    median, high, higher = (int(np.percentile(values, part, method="higher")) for part in (50, 95, 99))
    longest = int(values.max())
    # All rows where that costs little, else all but the longest hundredth.
    wanted = longest if longest <= 1.5 * higher else higher
    recommended = min(-(-wanted // 64) * 64, limit or longest + 64)
    edges = np.unique(np.round(np.geomspace(max(1, values.min()), longest + 1, 13)).astype(int))
    counts, _ = np.histogram(values, edges)
    return {
        "num_rows": len(values),
        "mean": round(float(values.mean()), 1),
        "median": median,
        "p95": high,
        "p99": higher,
        "max": longest,
        "recommended_max_seq_len": int(recommended),
        "histogram": [
            {"from": int(a), "to": int(b) - 1, "num_rows": int(n)} for a, b, n in zip(edges, edges[1:], counts, strict=False)
        ],
    }


def _choose(samples: Sequence[Sample], count: int = 3) -> list[Sample]:
    """Samples to show: the shortest, and others spread over the data."""
    if not samples:
        return []
    chosen = [min(range(len(samples)), key=lambda place: len(samples[place]))]
    chosen += [place * (len(samples) - 1) // max(1, count - 1) for place in range(count)]
    return [samples[place] for place in list(dict.fromkeys(chosen))[:count]]
