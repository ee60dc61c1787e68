"""Options of evaluation: what is measured on a model, before, during and after training."""

from dataclasses import dataclass, field

from hub.config.option import AUTO, option

METRICS = ("exact_match", "exact_match_normalized", "contains", "f1", "chrf", "rouge_l")
"""The hub's own metrics of generated answers. Plugins add others."""

NONE = "none"

CODE = {"metrics": (".py:",), "tasks": (".yaml", ".yml")}
"""Option -> what a value holds that names a file whose code runs."""


@dataclass(kw_only=True)
class EvaluateConfig:
    """What is measured on a model, by `evaluate` and around `train`."""

    metrics: list[str] = field(default_factory=list)
    """Metrics of generated answers, on rows that have one: exact_match, exact_match_normalized, contains, f1, chrf, rouge_l,
    FILE.py:FUNCTION, or those of plugins. Empty: the loss and the perplexity only."""

    tasks: list[str] = field(default_factory=list)
    """Tasks of lm-eval (EleutherAI's evaluation harness): names, or YAML files. Needs finetune-hub[eval]."""

    num_fewshot: int | None = option(None, ge=0)
    """Solved examples in front of each question of a task. null: as the task has it."""

    apply_chat_template: bool = False
    """Whether prompts of tasks are messages for the chat template, with solved examples as turns. false: plain texts, which is
    lm-eval's own default."""

    limit: int | None = option(None, ge=1)
    """Rows of each set and documents of each task that are measured, the first ones. null: all."""

    max_new_tokens: int = option(256, ge=1)
    """Most tokens of an answer that is generated for the metrics. Such answers are always the most likely ones (greedy)."""

    retention: str = NONE
    """General text on which to measure what training forgets: auto (text that ships with the hub), or the path of data. none:
    not measured."""

    also: list[str] = field(default_factory=list)
    """Earlier runs whose evaluation sets are measured too: run folders."""

    every_steps: int | None = option(None, ge=1)
    """In `train`: optimizer steps between measurements of all of this. null: before the first and after the last step."""

    batch_size: int | str = option(AUTO, ge=1)
    """Samples that are measured together. auto: as many as fit into memory. Figures do not depend on it beyond rounding."""

    seed: int = option(0, ge=0)
    """Seed of the bootstrap intervals, and of the few-shot examples of tasks."""

    @property
    def code(self) -> list[str]:
        """Options that name files whose code runs, each as it is typed."""
        return [
            f"evaluate.{name}=[{value}]"
            for name, marks in CODE.items()
            for value in getattr(self, name)
            if any(mark in value for mark in marks)
        ]
