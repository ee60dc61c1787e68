"""The losses of candidates, all on the same rows. The base of adapters is loaded once."""

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from hub.config.schema import ModelConfig, RunConfig
from hub.models.finished import Asked, Finished
from hub.tasks.evaluate.evaluate import load_measurable
from hub.tasks.evaluate.losses import Losses, plan_of_losses
from hub.tasks.evaluate.measure import loss_figures
from hub.tasks.evaluate.plan import EvaluationPlan
from hub.tasks.evaluate.ways import open_scorer
from hub.tasks.loading import Loaded


class Meter:
    """Measures models in folders: adapters on one base, or whole models one after the other."""

    def __init__(self, asked: Asked, first: Finished, held_out: RunConfig | None) -> None:
        """Args:
        asked: the config.
        first: the first model. The others have its tokenizer.
        held_out: the config of the held-out rows. None: there are none.
        """
        self._asked, self._first = asked, first
        self._loaded: Loaded | None = load_measurable(asked, first)
        self._plan = plan_of_losses(asked, held_out, self._loaded, _say)
        self._adapter = 0
        if not self._loaded.has_adapter:
            self._loaded = None

    def of_base(self) -> Losses | None:
        """The losses of the model that training began with. None: it is not known."""
        if self._loaded is not None:
            with self._loaded.without_adapter():
                return _losses(self._loaded, self._plan)
        if self._first.before is None:
            return None
        return self._of_whole(Finished(name="base", base=self._first.before))

    def of_folder(self, folder: Path) -> Losses:
        """The losses of an adapter or a whole model."""
        if self._loaded is None:
            base = self._first.base
            kept = replace(ModelConfig(), path=str(folder), dtype=base.dtype, trust_remote_code=base.trust_remote_code)
            return self._of_whole(Finished(name=folder.name, base=kept))
        model: Any = self._loaded.model
        self._adapter += 1
        name = f"candidate{self._adapter}"
        model.load_adapter(str(folder), name)
        model.set_adapter(name)
        try:
            model.requires_grad_(False)
            model.eval()
            return _losses(self._loaded, self._plan)
        finally:
            model.set_adapter("default")
            model.delete_adapter(name)

    def _of_whole(self, finished: Finished) -> Losses:
        loaded = load_measurable(self._asked, finished)
        try:
            return _losses(loaded, self._plan)
        finally:
            del loaded
            gc.collect()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def _losses(loaded: Loaded, plan: EvaluationPlan) -> Losses:
    longest = max(len(sample) for one in plan.sets for sample in one.samples)
    with open_scorer(loaded, longest, plan.cfg.batch_size) as scorer:
        return loss_figures(scorer, plan)


def _say(line: str) -> None:
    print(line, flush=True)
