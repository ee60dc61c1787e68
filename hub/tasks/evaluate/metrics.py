"""Metrics of generated answers: a number for each answer, 0 to 1 for the hub's own. Their mean over rows is reported.

`exact_match` and `contains` take texts as they are, without spaces around them. `exact_match_normalized` and `f1` are those of
SQuAD (Rajpurkar et al., arXiv 1606.05250, official script): lower case, without
punctuation and articles. `chrf` is the sentence chrF2 of sacrebleu (Popovic 2015), `rouge_l` the F-measure of rouge-score (Lin
2004; it knows ASCII words only).
"""

import inspect
import re
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from math import isfinite
from pathlib import Path
from typing import Any

from hub.config.evaluate import METRICS
from hub.errors import ConfigError, did_you_mean, one_line
from hub.plugins.registry import registry

OWN_ARGUMENTS = ("answer", "reference", "row")
"""Arguments of a metric's function that are no field of a row."""

NEEDS = {"chrf": "sacrebleu", "rouge_l": "rouge_score"}
"""Metric -> the module that computes it."""


@dataclass(frozen=True)
class LoadedMetric:
    """A metric that is ready to be computed."""

    name: str
    function: Callable[..., float]
    arguments: tuple[str, ...]
    """Names of its function's arguments."""

    better: str = "higher"
    unit: str = "fraction"

    @property
    def fields(self) -> list[str]:
        """Fields of a row that it needs."""
        return [name for name in self.arguments if name not in OWN_ARGUMENTS]

    def __call__(self, answer: str, reference: str, row: Mapping[str, Any]) -> float:
        """The number for one answer.

        Raises:
            ConfigError: the function failed, or returned no finite number.
        """
        values: dict[str, Any] = {**row, "answer": answer, "reference": reference, "row": row}
        try:
            number = self.function(**{name: values.get(name) for name in self.arguments})
        except Exception as error:
            raise ConfigError(f"evaluate.metrics={self.name}: its function failed: {one_line(error)}") from None
        figure = _as_float(number)
        if figure is None or not isfinite(figure):
            raise ConfigError(
                f"evaluate.metrics={self.name}: its function must return a finite number, but returned {number!r:.60}"
            )
        return figure


def problems(names: Iterable[str]) -> list[str]:
    """One line for each metric that does not exist or whose package is missing. No slow import."""
    known = [*METRICS, *registry().metrics]
    lines = []
    for name in names:
        if is_function(name):
            file = Path(name.rpartition(":")[0]).expanduser()
            if not file.is_file():
                lines.append(f"evaluate.metrics={name}: there is no file {file}. Type FILE.py:FUNCTION with a file that exists")
        elif name not in known:
            lines.append(
                f"evaluate.metrics={name}: there is no such metric. Allowed: {', '.join(known)}, FILE.py:FUNCTION."
                f"{did_you_mean(name, known)}"
            )
        elif name in NEEDS and find_spec(NEEDS[name]) is None:
            lines.append(
                f"evaluate.metrics={name} needs {NEEDS[name]}, which is not installed. Type pip install finetune-hub[eval]"
            )
    return lines


def load_metrics(names: Sequence[str]) -> list[LoadedMetric]:
    """The metrics of these names.

    Raises:
        ConfigError: one can't be loaded.
    """
    return [_load(name) for name in names]


def reader(metrics: Sequence[LoadedMetric]) -> Callable[[str], bool]:
    """Whether a metric reads a field of a row. One that takes the whole row may read any."""
    named = {name for metric in metrics for name in metric.fields}
    takes_row = any("row" in metric.arguments for metric in metrics)
    return lambda field: takes_row or field in named


def _as_float(number: Any) -> float | None:
    """A number of Python, numpy or torch. None: it is none."""
    if isinstance(number, str | bytes):
        return None
    try:
        return float(number)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return None


def is_function(name: str) -> bool:
    """Whether it is a function in a file: `FILE.py:FUNCTION`."""
    return name.rpartition(":")[0].endswith(".py")


def _load(name: str) -> LoadedMetric:
    if name in _OWN:
        return LoadedMetric(name, _OWN[name], ("answer", "reference"))
    if is_function(name):
        return _checked(name, _from_file(name), "higher", "value")
    metric = registry().metrics[name]
    function = metric.function
    if isinstance(function, str):
        module, _, attribute = function.partition(":")
        try:
            function = getattr(import_module(module), attribute)
        except Exception as error:
            raise ConfigError(f"evaluate.metrics={name}: its plugin can't be imported: {one_line(error)}") from None
    return _checked(name, function, metric.better, metric.unit)


def _checked(name: str, function: Any, better: str, unit: str) -> LoadedMetric:
    if not callable(function):
        raise ConfigError(
            f"evaluate.metrics={name}: it is no function. Name a function with arguments such as answer, reference"
        )
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return LoadedMetric(name, function, tuple(p.name for p in parameters if p.kind in kinds), better, unit)


def _from_file(name: str) -> Any:
    path, _, attribute = name.rpartition(":")
    file = Path(path).expanduser()
    spec = spec_from_file_location(f"hub_metric_{file.stem}", file)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        raise ConfigError(f"evaluate.metrics={name}: {file} can't be run: {one_line(error)}") from None
    functions = [key for key, value in vars(module).items() if inspect.isfunction(value)]
    if not hasattr(module, attribute):
        listed = ", ".join(functions) or "none"
        raise ConfigError(
            f"evaluate.metrics={name}: {file} has no function {attribute}. It has: {listed}."
            + did_you_mean(attribute, functions)
        )
    return getattr(module, attribute)


def exact_match(answer: str, reference: str) -> float:
    """Whether both are the same text, without spaces around them."""
    return float(answer.strip() == reference.strip())


def exact_match_normalized(answer: str, reference: str) -> float:
    """Whether both have the same words, without case, punctuation and articles."""
    return float(_words(answer) == _words(reference))


def contains(answer: str, reference: str) -> float:
    """Whether the reference is in the answer, as it is."""
    return float(reference.strip() in answer)


def f1(answer: str, reference: str) -> float:
    """Harmonic mean of precision and recall of the normalized words."""
    ours, theirs = _words(answer), _words(reference)
    if not ours or not theirs:
        return float(ours == theirs)
    common = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * common / (len(ours) + len(theirs))


def chrf(answer: str, reference: str) -> float:
    """Character n-gram F-score of sacrebleu, over 100."""
    from sacrebleu import sentence_chrf

    return float(sentence_chrf(answer, [reference]).score) / 100


def rouge_l(answer: str, reference: str) -> float:
    """F-measure of the longest common subsequence of words, by rouge-score."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=False)


def _words(text: str) -> list[str]:
    """As SQuAD's official script normalizes an answer."""
    text = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", text).split()


_OWN: dict[str, Callable[[str, str], float]] = {
    "exact_match": exact_match,
    "exact_match_normalized": exact_match_normalized,
    "contains": contains,
    "f1": f1,
    "chrf": chrf,
    "rouge_l": rouge_l,
}
