"""Options of OSFT."""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from hub import AlgoConfig, RunConfig, option
from hub.data.sources.files import path_problem

TARGET_WORDS = ("all", "attention", "mlp")
ADAPTIVE = "adaptive"
ACTIVATIONS = "activations"
FACTORED = "factored"
NEW_TOKENS = "Type algo.train_embeddings=true, and for models whose output layer is not tied to them algo.train_head=true"
DEFAULT_RATIO = {"weights": 0.25, ACTIVATIONS: 0.5}
DEFAULT_RATIO_PULLED = 1.0


@dataclass(kw_only=True)
class OsftConfig(AlgoConfig):
    """Orthogonal subspace fine-tuning (arXiv 2504.07097): full-rank updates within low-importance singular directions."""

    fixed_on_resume: ClassVar[tuple[str, ...]] = (
        "unfreeze_rank_ratio",
        "subspace",
        "rank_policy",
        "min_keep",
        "max_keep",
        "constraint",
        "parametrization",
        "protect_data",
        "protect_samples",
        "protect_from",
    )

    learning_rate: float = option(5e-5, gt=0)
    """Peak learning rate. Only some directions of each matrix are trained, which needs a higher rate than full fine-tuning."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data."""

    unfreeze_rank_ratio: float | None = option(None, gt=0, le=1)
    """Fraction of the directions of each matrix that are free to train, at least one direction. 1.0 is plain SFT. null: 0.25,
    with subspace=activations 0.5, with protect_strength 1.0, with rank_policy=adaptive according to min_keep and max_keep."""

    subspace: str = option("weights", choices=("weights", ACTIVATIONS))
    """Which directions are protected. weights: those of the largest singular values. activations: the input directions that
    protect_data uses most."""

    rank_policy: str = option("fixed", choices=("fixed", ADAPTIVE))
    """fixed: the same ratio for every matrix. adaptive: more directions are protected in layers that change protect_data
    less."""

    min_keep: float = option(0.1, ge=0, lt=1)
    """With rank_policy=adaptive: fraction of directions protected in a layer of no importance."""

    max_keep: float = option(0.8, gt=0, le=1)
    """With rank_policy=adaptive: fraction of directions protected in a layer of mean importance. Above the mean it is
    larger."""

    target_patterns: Any = "all"
    """Matrices to train: all, attention, mlp, or a list of regular expressions for module names. Never the output layer."""

    constraint: str = option("strict", choices=("strict", "corner"))
    """What updates must not change. strict: everything that reads or writes a protected direction. corner: only what does both,
    as in the paper's equation; needs the memory of full fine-tuning."""

    parametrization: str = option("fast", choices=("fast", FACTORED))
    """fast: train the coordinates of the update, at the speed of plain training. factored: train the factors U, S, V as in the
    paper; slow, for comparison."""

    protect_data: Any = None
    """Data to protect, for subspace=activations and rank_policy=adaptive: a path or a list of paths, of the same kinds as
    data.path."""

    protect_samples: int = option(512, ge=1)
    """Maximum number of rows of each file of protect_data, chosen by seed."""

    protect_from: str | None = None
    """Model folder of an earlier run with save_protection. What that run protected and learned is protected too."""

    protect_strength: float = option(0.0, ge=0)
    """With subspace=activations: strength of the penalty that pulls free directions toward the base weights. It is larger for
    directions that the protected data uses and for weights that matter to it, and is multiplied by the learning rate, like
    weight decay. With 600 the model learned what full fine-tuning learned, and lost 0.008 of it (docs/osft.md). 0: none."""

    save_protection: bool = False
    """With subspace=activations: save the statistics of protect_data and of the training data (covariances, importance of each
    weight) beside the model, for protect_from of a later task."""

    train_embeddings: bool = False
    """Train the input embeddings too. With subspace=activations only those of tokens that are not in protect_data, else all,
    without protection."""

    train_norms: bool = False
    """Train norms and biases too, without protection."""

    train_head: bool = False
    """Train the output layer too, without protection. In models with tied embeddings it is the same as train_embeddings."""

    cache: bool = True
    """Cache the directions of subspace=weights (in HUB_CACHE), so that the next run on this model starts at once."""

    @property
    def ratio(self) -> float:
        """The fraction of free directions with rank_policy=fixed."""
        if self.unfreeze_rank_ratio is not None:
            return self.unfreeze_rank_ratio
        return DEFAULT_RATIO_PULLED if self.protect_strength else DEFAULT_RATIO[self.subspace]

    @property
    def needs_data(self) -> bool:
        """Whether the choice of directions needs data to protect."""
        return self.subspace == ACTIVATIONS or self.rank_policy == ADAPTIVE

    @property
    def protect_files(self) -> list[str]:
        """`protect_data` as a list."""
        if self.protect_data is None:
            return []
        return [self.protect_data] if isinstance(self.protect_data, str) else list(self.protect_data)

    def with_paths(self, full: Callable[[Any, str], Any]) -> "OsftConfig":
        files = [full(path, "algo.protect_data") for path in self.protect_files]
        return replace(self, protect_data=files or None, protect_from=full(self.protect_from, ""))

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        if cfg.launch.strategy == "split":
            yield "launch.strategy=split: osft needs all layers of a process on one GPU. Type launch.strategy=fsdp or ddp"
        if cfg.model.has_new_tokens and not self.train_embeddings:
            yield f"the embeddings of new tokens would stay frozen (algo.train_embeddings=false). {NEW_TOKENS}"
        yield from self._target_problems()
        yield from self._data_problems()
        yield from self._clashes(cfg)

    def _target_problems(self) -> Iterator[str]:
        targets = self.target_patterns
        if isinstance(targets, str) and targets in TARGET_WORDS:
            return
        if not isinstance(targets, list) or not targets or not all(isinstance(word, str) and word for word in targets):
            allowed = f"Allowed: {', '.join(TARGET_WORDS)}, or a list of regular expressions like [q_proj,v_proj]"
            yield f"algo.target_patterns={targets} is not allowed. {allowed}"
            return
        for word in targets:
            try:
                re.compile(word)
            except re.error as error:
                yield f"algo.target_patterns: {word} is not a regular expression ({error})"

    def _data_problems(self) -> Iterator[str]:
        given = self.protect_data
        is_list = isinstance(given, list) and given and all(isinstance(path, str) and path for path in given)
        if given is not None and not is_list and not (isinstance(given, str) and given):
            yield f"algo.protect_data={given} is not allowed. Allowed: a file, or a list of files"
            return
        for path in self.protect_files:
            if not path.startswith("tiny:") and (problem := path_problem("algo.protect_data", path)):
                yield problem
        if self.protect_from and not os.path.isfile(os.path.join(os.path.expanduser(self.protect_from), PROTECTION)):
            yield (
                f"algo.protect_from={self.protect_from}: there is no {PROTECTION}. Type the model folder of a run with "
                "algo.subspace=activations algo.save_protection=true"
            )
        if self.subspace == ACTIVATIONS and not (self.protect_files or self.protect_from):
            yield (
                "algo.subspace=activations needs data to protect. Type algo.protect_data=FILE, with samples of what the model "
                "must not forget, or algo.protect_from=MODEL_FOLDER of an earlier run"
            )
        if self.rank_policy == ADAPTIVE and not self.protect_files:
            yield "algo.rank_policy=adaptive needs data of earlier tasks. Type algo.protect_data=FILE or algo.rank_policy=fixed"
        if given is not None and not self.needs_data:
            yield "algo.protect_data has no effect here. Type algo.subspace=activations or algo.rank_policy=adaptive as well"
        for name in ("protect_from", "protect_strength", "save_protection"):
            if getattr(self, name) and self.subspace != ACTIVATIONS:
                yield f"algo.{name} needs algo.subspace=activations"

    def _clashes(self, cfg: RunConfig) -> Iterator[str]:
        if self.rank_policy == ADAPTIVE:
            if self.unfreeze_rank_ratio is not None:
                yield (
                    "algo.rank_policy=adaptive chooses the ratio of each layer: leave algo.unfreeze_rank_ratio out, and set "
                    "algo.min_keep and algo.max_keep"
                )
            if self.min_keep > self.max_keep:
                yield f"algo.min_keep={self.min_keep} is above algo.max_keep={self.max_keep}"
        if self.subspace == ACTIVATIONS and self.constraint != "strict":
            yield "algo.constraint=corner is for algo.subspace=weights. With algo.subspace=activations leave it out"
        if self.parametrization == FACTORED:
            if self.subspace == ACTIVATIONS or self.constraint != "strict":
                yield (
                    "algo.parametrization=factored trains singular factors of the weights: it needs algo.subspace=weights and "
                    "algo.constraint=strict. Type algo.parametrization=fast"
                )
            if cfg.launch.strategy == "fsdp":
                yield "algo.parametrization=factored needs a full copy of the model per process. Type launch.strategy=ddp"


PROTECTION = "protection.safetensors"
"""File beside a model with the covariances of the protected data, and the importance of each weight to it."""
