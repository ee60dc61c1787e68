"""What a model knows at one point of a study: right answers on each task, and the loss on text that no method trains on."""

import gc
import statistics
from dataclasses import dataclass
from typing import Any

import torch

from hub.config.finished import FinishedOptions
from hub.config.generate import GenerateConfig
from hub.config.schema import RunConfig
from hub.models.finished import Asked, Finished
from hub.tasks.continual.study import Study
from hub.tasks.generate.engine import answers
from hub.tasks.generate.prompts import Prompter
from hub.tasks.loading import Loaded, load_finished

DOCUMENT_TOKENS = 1024
"""Most tokens of a document, from its beginning."""

LEAST_NEW_TOKENS = 16


@dataclass(frozen=True)
class Knows:
    """What was measured of a model."""

    right: dict[str, float]
    """Task -> fraction of test rows whose answer is the right one, but for space around it."""

    containing: dict[str, float]
    """Task -> fraction of test rows whose answer contains the right one, so that a change of form is not forgetting."""

    text_loss: float | None
    """Mean loss per token of the documents, in nats. None: there are none."""


def measure(study: Study, cfg: RunConfig, finished: Finished) -> Knows:
    """Measure a model.

    Args:
        study: tasks and text.
        cfg: the config of its run, for the dtype and the template.
        finished: the model.
    """
    loaded = load_finished(Asked(options=FinishedOptions(), cfg=cfg, finished=finished), finished, lambda line: None)
    right, containing = _answers(study, loaded, finished.before is not None)
    loss = _text_loss(study, loaded)
    del loaded
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Knows(right, containing, loss)


def _answers(study: Study, loaded: Loaded, trained: bool) -> tuple[dict[str, float], dict[str, float]]:
    prompter = Prompter(loaded.tokenizer, trained=trained)
    asked: list[tuple[str, str, list[int]]] = []
    for task in study.tasks:
        for number, row in enumerate(study.questions(task), 1):
            messages: list[Any] = row["messages"]
            prompt = prompter.of_messages(messages[:-1], None, f"{task}:{number}").ids
            asked.append((task, str(messages[-1]["content"]).strip(), prompt))
    longest = max(len(loaded.tokenizer(wanted)["input_ids"]) for _, wanted, _ in asked)
    settings = GenerateConfig(max_new_tokens=max(LEAST_NEW_TOKENS, longest + 4), temperature=0.0, repetition_penalty=1.0)
    found = [answer.text.strip() for answer in answers(loaded, [prompt for _, _, prompt in asked], settings)]
    right: dict[str, list[bool]] = {task: [] for task in study.tasks}
    containing: dict[str, list[bool]] = {task: [] for task in study.tasks}
    for (task, wanted, _), given in zip(asked, found, strict=True):
        right[task].append(given == wanted)
        containing[task].append(wanted in given)
    return _means(right), _means(containing)


def _means(values: dict[str, list[bool]]) -> dict[str, float]:
    return {task: statistics.mean(map(float, each)) for task, each in values.items()}


def _text_loss(study: Study, loaded: Loaded) -> float | None:
    losses = []
    limit = min(DOCUMENT_TOKENS, loaded.max_positions or DOCUMENT_TOKENS)
    for text in study.documents():
        ids = loaded.tokenizer(text, add_special_tokens=False)["input_ids"][:limit]
        if len(ids) < 2:
            continue
        row = torch.tensor([ids], device=loaded.device)
        with torch.inference_mode(), loaded.autocast():
            logits = loaded.model(input_ids=row, use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, row[0, 1:])))
    return statistics.mean(losses) if losses else None
