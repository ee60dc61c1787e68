"""The figures of one run."""

import statistics
from typing import Any


def figures(result: dict[str, Any]) -> dict[str, float]:
    """Compute the figures of a run from its measurements after each task."""
    strict, containing, text = result["strict"], result["containing"], result["text_loss"]
    num = len(strict[0])
    values = {"end": statistics.mean(strict[-1]), "contains": statistics.mean(containing[-1]), "text": text[-1] - text[0]}
    if len(strict) == num:
        values["learned"] = statistics.mean(strict[k][k] for k in range(num))
        values["transfer"] = statistics.mean(strict[-1][k] - strict[k][k] for k in range(num - 1)) if num > 1 else 0.0
        values["transfer_contains"] = (
            statistics.mean(containing[-1][k] - containing[k][k] for k in range(num - 1)) if num > 1 else 0.0
        )
    return values


def in_words(result: dict[str, Any]) -> str:
    """Format the figures of a completed run or search as one line."""
    if "strict" not in result:
        return f"held-out loss {result['loss']:.4f}" if result["loss"] is not None else "the loss is not a number"
    return ", ".join(f"{name} {value:.3f}" for name, value in figures(result).items())
