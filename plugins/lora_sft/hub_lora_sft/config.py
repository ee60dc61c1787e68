"""Options of LoRA."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Literal

from hub import AlgoConfig, RunConfig, option
from hub.config.option import AUTO
from hub.config.paths import path_list
from hub.config.schema import QUANTIZATIONS, fp8_needs_gpu, fp8_problems
from hub.data.sources.files import path_problem
from hub.errors import ConfigError, did_you_mean
from hub.protection.files import protection_file

BIASES: Mapping[str, Literal["none", "all", "lora_only"]] = {"none": "none", "all": "all", "lora_only": "lora_only"}
TARGET_GROUPS = ("auto", "attention", "mlp", "all-linear")
INITS = ("default", "gaussian", "orthogonal", "pissa", "pissa_niter_16", "olora", "loftq")
SELF = "self"
"""Value of `protect` that stands for the model itself, or for what the earlier run protected and learned."""

_PISSA = re.compile(r"pissa(_niter_[1-9]\d{0,2})?")


@dataclass(kw_only=True)
class LoraSftConfig(AlgoConfig):
    """LoRA (arXiv 2106.09685): W + (alpha / r) B A, where only A (r x in) and B (out x r) are trained."""

    quantized_bases: ClassVar[tuple[str, ...]] = QUANTIZATIONS
    fixed_on_resume: ClassVar[tuple[str, ...]] = ("init", "protect", "unfreeze_rank_ratio", "protect_strength")

    learning_rate: float = option(2e-4, gt=0)
    """Peak learning rate. Adapters start at zero and need at least ten times the learning rate of full fine-tuning."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data."""

    lora_r: int = option(16, ge=1)
    """Rank of the adapters, which sets their capacity."""

    lora_alpha: float = option(32.0, gt=0)
    """Scale of the adapters: their output is multiplied by alpha / r. Twice the rank is common."""

    lora_dropout: float = option(0.0, ge=0, lt=1)
    """Dropout on the input of the adapters."""

    target_modules: Any = "auto"
    """What gets an adapter. auto and all-linear: all linear layers but the output layer and routers, and the experts of a
    mixture. Or attention, mlp, or a list of names of layers and experts."""

    bias: str = option("none", choices=tuple(BIASES))
    """Biases to train: none, all, or those of the adapted layers."""

    use_rslora: bool = False
    """Scale by alpha / sqrt(r), which stabilizes high ranks (arXiv 2312.03732)."""

    use_dora: bool = False
    """Train direction and magnitude of the weights separately (DoRA, arXiv 2402.09353). Slower."""

    train_embeddings: bool = False
    """Train the embeddings and the output layer as a whole, besides the adapters. Of new tokens (`model.add_tokens`) their own
    rows train in any case."""

    modules_to_save: list[str] = field(default_factory=list)
    """Modules to train as a whole, besides the adapters, e.g. [norm]: names, or their last parts."""

    init: str = "default"
    """Initialization of A and B: default, gaussian, orthogonal, pissa, pissa_niter_16 (any number of iterations), olora or
    loftq. default: A random, B zero. pissa: principal singular directions of the weights (arXiv 2404.02948). olora: their QR
    decomposition (arXiv 2406.01775). Both are saved as a plain adapter of twice the rank. loftq: the error of quantization to
    4 bits (arXiv 2310.08659); the adapter belongs onto the base model in 4 bits."""

    protect: Any = None
    """What the adapters leave alone. self: what the model itself says, and some public text; or what an earlier run protected
    and learned, if model.path is from one. Or that run's folder, or data files: a path or a list of paths. null: nothing."""

    unfreeze_rank_ratio: float | None = option(None, gt=0, le=1)
    """With protect: fraction of the directions of its input that each adapter reads, those that the protected data uses least.
    null: 0.5, but at most 1,024 directions of an input are protected; with protect_strength 1.0."""

    protect_strength: float = option(0.0, ge=0)
    """With protect: how strongly the change of each weight is pulled toward 0 along the directions that the protected data
    uses, in the unit of osft, where 56 is the default. 0: no pull, only a cut."""

    load_in_4bit: bool = False
    """Quantize the frozen weights to 4 bits (NF4 with double quantization, as in QLoRA). Needs bitsandbytes."""

    load_in_8bit: bool = False
    """Quantize the frozen weights to 8 bits (LLM.int8()). Needs bitsandbytes."""

    precision: str = option(AUTO, choices=(AUTO, "fp8"))
    """auto: frozen weights and compute in `model.dtype`. fp8: matrix products with frozen linear layers in 8-bit floats with a
    scale per row and token, forward and backward. Faster, less exact. Needs GPUs of Hopper's generation or later."""

    def with_adapter(self, values: Mapping[str, Any], folder: str) -> "LoraSftConfig":
        if values.get("peft_type") != "LORA":
            raise ConfigError(
                f"model.path={folder} is an adapter of {values.get('peft_type')}, and only LoRA is trained further"
            )
        stored: dict[str, Any] = {
            "lora_r": values["r"],
            "lora_alpha": float(values["lora_alpha"]),
            "bias": values.get("bias", "none"),
            "use_rslora": bool(values.get("use_rslora")),
            "use_dora": bool(values.get("use_dora")),
        }
        default, of_new = type(self)(), ("target_modules", "init", "train_embeddings", "modules_to_save")
        typed = {name: getattr(self, name) for name in (*stored, *of_new) if getattr(self, name) != getattr(default, name)}
        others = [name for name, value in typed.items() if name in of_new or value != stored[name]]
        if others:
            has = [f"algo.{name}={typed[name]}" + (f" (it has {stored[name]})" if name in stored else "") for name in others]
            raise ConfigError(
                f"model.path={folder}: this adapter is trained further as it is, so {', '.join(has)} can't be set. Leave that "
                f"out. For a new adapter merge this one first: python -m hub export model.path={folder} to=merged, and type "
                "the folder that it names as model.path"
            )
        return replace(self, **stored)

    @property
    def ratio(self) -> float | None:
        """The fraction of free directions: 1 with a pull unless one is set. None: a half, and at most 1,024 are protected."""
        return 1.0 if self.protect_strength and self.unfreeze_rank_ratio is None else self.unfreeze_rank_ratio

    @property
    def protect_paths(self) -> list[str]:
        """`protect` as a list of paths. Empty: there are none, as with `self`."""
        return [] if self.protect == SELF else path_list(self.protect)

    @property
    def protect_files(self) -> list[str]:
        """The data files in `protect`."""
        return [path for path in self.protect_paths if path != self.protect_from]

    @property
    def protect_from(self) -> str | None:
        """The folder of an earlier run in `protect`. None: it names none."""
        return next(filter(_is_run, self.protect_paths), None)

    def with_paths(self, full: Callable[[Any, str], Any]) -> "LoraSftConfig":
        paths = [full(path, "algo.protect") for path in self.protect_paths]
        return replace(self, protect=paths) if paths else self

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        yield from self._target_problems()
        yield from self._protect_problems(cfg)
        yield from self._init_problems(cfg)
        if self.load_in_4bit and self.load_in_8bit:
            yield "algo.load_in_4bit and algo.load_in_8bit are both set. Set one of them."
        quantized = self.load_in_4bit or self.load_in_8bit
        if quantized and find_spec("bitsandbytes") is None and cfg.launch.python is None:
            yield "algo.load_in_4bit and algo.load_in_8bit need bitsandbytes. Type pip install bitsandbytes"
        if cfg.model.quantization and quantized:
            yield (
                f"model.path={cfg.model.path} is stored as {cfg.model.quantization} already. "
                "Leave algo.load_in_4bit and algo.load_in_8bit out (algo=lora_sft, not qlora_sft)"
            )
        if self.precision == "fp8":
            others = {
                "algo.load_in_4bit=true": self.load_in_4bit,
                "algo.load_in_8bit=true": self.load_in_8bit,
                f"model.quantization={cfg.model.quantization}": cfg.model.quantization,
                "algo.use_dora=true": self.use_dora,
                "algo.init=loftq": self.init == "loftq",
                "algo.train_embeddings=true": self.train_embeddings,
                "algo.modules_to_save": self.modules_to_save,
                "model.add_tokens and the options beside it": cfg.model.changes_vocab,
            }
            yield from fp8_problems(cfg, others, ("fsdp", "split"))

    def _protect_problems(self, cfg: RunConfig) -> Iterator[str]:
        given = self.protect
        if given is None:
            for name in ("unfreeze_rank_ratio", "protect_strength"):
                if getattr(self, name):
                    yield f"algo.{name} has no effect without algo.protect. Type algo.protect=self as well"
            return
        is_list = isinstance(given, list) and given and all(isinstance(path, str) and path for path in given)
        if not is_list and not (isinstance(given, str) and given):
            yield f"algo.protect={given} is not allowed. Allowed: self, a file, the folder of a run, or a list of these"
            return
        if len(runs := list(filter(_is_run, self.protect_paths))) > 1:
            yield f"algo.protect has two runs: {', '.join(runs)}. Type the later one, which protects what the earlier one did"
        for path in self.protect_paths:
            if path == SELF:
                yield f"algo.protect={given}: self can't be combined with data. Type algo.protect=self, or leave it out"
            elif path not in runs and os.path.isfile(os.path.join(path, "run.yaml")):
                yield (
                    f"algo.protect={path}: this run left nothing to protect. Type the folder of one with algo.protect or "
                    "algo=osft, or the data that this one learned"
                )
            elif path not in runs and not path.startswith("tiny:") and (problem := path_problem("algo.protect", path)):
                yield f"{problem}, or algo.protect=self"
        if self.unfreeze_rank_ratio == 1 and not self.protect_strength:
            yield "algo.unfreeze_rank_ratio=1.0 protects nothing. Type a lower one, or algo.protect_strength=56 as well"
        others = {
            "algo.use_dora=true": (self.use_dora, "algo.use_dora=false"),
            f"algo.init={self.init}": (self.init not in ("default", "gaussian"), "algo.init=default"),
            f"algo.bias={self.bias}": (self.bias != "none", "algo.bias=none"),
            "launch.strategy=split": (cfg.launch.strategy == "split", "launch.strategy=ddp or fsdp"),
        }
        for name, (is_set, instead) in others.items():
            if is_set:
                yield f"algo.protect and {name} can't be combined: it would change what is protected. Type {instead}"
        if cfg.model.adapter is not None:
            yield (
                f"algo.protect: the adapter {cfg.model.adapter} can't be trained further with it. Merge it first: "
                f"python -m hub export model.path={cfg.model.adapter} to=merged, and type that folder as model.path"
            )

    def _init_problems(self, cfg: RunConfig) -> Iterator[str]:
        if self.init not in INITS and not _PISSA.fullmatch(self.init):
            yield f"algo.init={self.init} is not allowed. Allowed: {', '.join(INITS)}.{did_you_mean(self.init, INITS)}"
            return
        quantized = self.load_in_4bit or self.load_in_8bit or cfg.model.quantization
        if quantized and (self.init == "loftq" or from_weights(self.init)):
            yield f"algo.init={self.init} needs unquantized weights, which this model does not have. Type algo.init=default"
        elif self.init == "loftq" and find_spec("scipy") is None and cfg.launch.python is None:
            yield "algo.init=loftq needs scipy. Type pip install scipy"
        if self.use_dora and self.init != "default":
            yield f"algo.use_dora and algo.init={self.init} can't be combined. Type algo.init=default or algo.use_dora=false"
        if self.init == "orthogonal" and self.lora_r % 2:
            yield f"algo.init=orthogonal needs an even algo.lora_r, not {self.lora_r}. Type algo.lora_r={self.lora_r + 1}"

    def _target_problems(self) -> Iterator[str]:
        allowed = f"Allowed: {', '.join(TARGET_GROUPS)}, or a list like [q_proj,v_proj]"
        targets = self.target_modules
        if isinstance(targets, str):
            if targets not in TARGET_GROUPS:
                yield f"algo.target_modules={targets} is not allowed. {allowed}"
        elif not isinstance(targets, list) or not targets or not all(isinstance(name, str) for name in targets):
            yield f"algo.target_modules={targets} is not allowed. {allowed}"


def _is_run(path: str) -> bool:
    """Whether a path is the folder of a run, or of its model, that left what it protected."""
    return os.path.isdir(path) and protection_file(Path(path)) is not None


def from_weights(init: str) -> bool:
    """Whether adapters begin with a part of the frozen weights, which then counts as trained."""
    return init == "olora" or _PISSA.fullmatch(init) is not None


def needs_gpu(cfg: RunConfig) -> str | None:
    """Implement `Backend.needs_gpu`: fp8's products, and PEFT's LoftQ."""
    if isinstance(cfg.algo, LoraSftConfig) and cfg.algo.init == "loftq":
        return "algo.init=loftq quantizes on a GPU, and there is none here. Type algo.init=default"
    return fp8_needs_gpu(cfg)
