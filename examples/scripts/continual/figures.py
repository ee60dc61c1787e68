"""The numbers of one run."""

import statistics
from typing import Any


def figures(found: dict[str, Any]) -> dict[str, float]:
    """The numbers of one run."""
    strict, containing, text = found["strict"], found["containing"], found["text_loss"]
    num = len(strict[0])
    values = {"end": statistics.mean(strict[-1]), "contains": statistics.mean(containing[-1]), "text": text[-1] - text[0]}
    if len(strict) == num:
        values["learned"] = statistics.mean(strict[k][k] for k in range(num))
        values["transfer"] = statistics.mean(strict[-1][k] - strict[k][k] for k in range(num - 1)) if num > 1 else 0.0
        values["transfer_contains"] = (
            statistics.mean(containing[-1][k] - containing[k][k] for k in range(num - 1)) if num > 1 else 0.0
        )
    return values


def in_words(found: dict[str, Any]) -> str:
    """One line of them, for a run or a search that has ended."""
    if "strict" not in found:
        return f"held-out loss {found['loss']:.4f}" if found["loss"] is not None else "the loss is not a number"
    return ", ".join(f"{name} {value:.3f}" for name, value in figures(found).items())
