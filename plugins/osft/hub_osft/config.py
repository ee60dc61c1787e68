"""Options of OSFT."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from hub import AlgoConfig, RunConfig, option
from hub.config.paths import path_list
from hub.data.sources.files import path_problem
from hub.protection.files import NONE, PROTECTION, SAMPLES, protection_file

TARGET_WORDS = ("all", "attention", "mlp")
ADAPTIVE = "adaptive"
ACTIVATIONS = "activations"
FACTORED = "factored"
NEW_TOKENS = "Type algo.train_embeddings=true, and for models whose output layer is not tied to them algo.train_head=true"
WEIGHTS = "weights"
OFFLOAD_WHOLE = "algo.offload_base=true holds whole base weights. Type launch.strategy=ddp, or algo.offload_base=false"
DEFAULT_RATIO = {WEIGHTS: 0.25, ACTIVATIONS: 0.5}
DEFAULT_RATIO_PULLED = 1.0
DEFAULT_STRENGTH = 56.0
"""In SmolLM2-135M-Instruct it is the strength at which the studies of docs/osft_evidence.md were made."""


@dataclass(kw_only=True)
class OsftConfig(AlgoConfig):
    """Orthogonal subspace fine-tuning (arXiv 2504.07097): full-rank updates that leave alone what the model knows."""

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

    learning_rate: float = option(1e-4, gt=0)
    """Peak learning rate. What is protected stays near the base weights, which allows a higher rate than full fine-tuning."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data."""

    unfreeze_rank_ratio: float | None = option(None, gt=0, le=1)
    """Fraction of the directions of each matrix that are free to train, at least one direction. Less takes less memory. null:
    1.0, with protect_strength=0 0.5, with subspace=weights 0.25, with rank_policy=adaptive by min_keep and max_keep."""

    subspace: str = option(ACTIVATIONS, choices=(ACTIVATIONS, WEIGHTS))
    """Which directions are protected. activations: the input directions that the data to protect uses most. weights: those of
    the largest singular values, as in the paper, without any data."""

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
    """Data to protect: a path or a list of paths, of the same kinds as data.path. null: samples that the model itself generates
    before training, in its chat template and as plain text, and some public text."""

    protect_samples: int = option(128, ge=1)
    """Maximum number of rows, chosen by seed: of each file of protect_data, and of what this run learns, for the next run."""

    protect_from: str | None = None
    """Run folder, or model folder, of an earlier run. What that run protected and learned is protected too. null: the run that
    model.path comes from, if it was one of osft. none: no earlier run."""

    protect_strength: float | None = option(None, ge=0)
    """With subspace=activations: how strongly weights are pulled toward the base weights. At strength s a weight of mean
    importance may move by 1/s of the weights' size along a direction that the protected data uses as much as most. Does not
    depend on the model's scale or on the learning rate (docs/osft.md). null: 56. 0: no pull, only a cut."""

    save_protection: bool = False
    """With subspace=activations: save statistics of the protected data and of the training data (covariances, importance of
    each weight) beside the model, for a later run that shall not see any row."""

    train_embeddings: bool = False
    """Train the input embeddings too. With subspace=activations only those of tokens that are not in protect_data, else all,
    without protection."""

    train_norms: bool = False
    """Train norms and biases too, without protection."""

    train_head: bool = False
    """Train the output layer too, without protection. In models with tied embeddings it is the same as train_embeddings."""

    offload_base: bool = False
    """Hold the base weights in CPU memory, and copy each to the GPU once an optimizer step. 2 bytes less for each trained
    parameter, and slower steps: worth it if micro-batches would not fit otherwise."""

    cache: bool = True
    """Cache the directions of subspace=weights (in HUB_CACHE), so that the next run on this model starts at once."""

    @property
    def ratio(self) -> float:
        """The fraction of free directions with rank_policy=fixed."""
        if self.unfreeze_rank_ratio is not None:
            return self.unfreeze_rank_ratio
        return DEFAULT_RATIO_PULLED if self.strength else DEFAULT_RATIO[self.subspace]

    @property
    def strength(self) -> float:
        """How strongly weights are pulled toward the base weights. 0: not at all."""
        if self.subspace != ACTIVATIONS:
            return 0.0
        return DEFAULT_STRENGTH if self.protect_strength is None else self.protect_strength

    @property
    def needs_data(self) -> bool:
        """Whether the choice of directions needs data to protect."""
        return self.subspace == ACTIVATIONS or self.rank_policy == ADAPTIVE

    @property
    def protect_files(self) -> list[str]:
        """`protect_data` as a list."""
        return path_list(self.protect_data)

    def with_paths(self, full: Callable[[Any, str], Any]) -> "OsftConfig":
        files = [full(path, "algo.protect_data") for path in self.protect_files]
        earlier = self.protect_from if self.protect_from == NONE else full(self.protect_from, "")
        return replace(self, protect_data=files or self.protect_data, protect_from=earlier)

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
        if self.protect_from and self.protect_from != NONE and not protection_file(Path(self.protect_from)):
            yield (
                f"algo.protect_from={self.protect_from}: there is no {SAMPLES} and no {PROTECTION}. Type the folder of a run "
                "with algo=osft, or leave it out"
            )
        if given is not None and not self.needs_data:
            yield "algo.protect_data has no effect here. Type algo.subspace=activations or algo.rank_policy=adaptive as well"
        for name in ("protect_from", "protect_strength", "save_protection"):
            if getattr(self, name) and self.subspace != ACTIVATIONS:
                yield f"algo.{name} needs algo.subspace=activations"

    def _clashes(self, cfg: RunConfig) -> Iterator[str]:
        if self.offload_base and cfg.launch.strategy == "fsdp":
            yield f"launch.strategy=fsdp: {OFFLOAD_WHOLE}"
        if self.rank_policy == ADAPTIVE:
            if self.unfreeze_rank_ratio is not None:
                yield (
                    "algo.rank_policy=adaptive chooses the ratio of each layer: leave algo.unfreeze_rank_ratio out, and set "
                    "algo.min_keep and algo.max_keep"
                )
            if self.min_keep > self.max_keep:
                yield f"algo.min_keep={self.min_keep} is above algo.max_keep={self.max_keep}"
        if self.subspace == ACTIVATIONS and self.constraint != "strict":
            yield "algo.constraint=corner is for the directions of weights. Type algo.subspace=weights as well, or leave it out"
        if self.parametrization == FACTORED:
            if self.subspace == ACTIVATIONS or self.constraint != "strict":
                yield (
                    "algo.parametrization=factored trains singular factors of the weights: it needs algo.subspace=weights and "
                    "algo.constraint=strict. Type these, or algo.parametrization=fast"
                )
            if self.offload_base:
                yield "algo.offload_base needs algo.parametrization=fast: the factors have no base weights. Leave it out"
            if cfg.launch.strategy == "fsdp":
                yield "algo.parametrization=factored needs a full copy of the model per process. Type launch.strategy=ddp"
