"""What to type when a run needs more memory than there is. From its options alone: `hub plan` tries each change."""

import traceback
from collections.abc import Iterator

from hub.config.launch import WORK_ON_SHARDS
from hub.config.option import AUTO
from hub.config.schema import RunConfig
from hub.errors import ModelError
from hub.plugins.known import ADAPTERS, QUANTIZED_ADAPTERS
from hub.system.memory import is_out_of_memory, shortage_of
from hub.train.attempts import too_little

SHORTEST = 64
"""A shorter `data.max_seq_len` than this is no advice."""

LEAST_RATIO = 0.25
"""The fraction of a matrix's directions that is named where an algorithm can train a part of them."""

MOST = 4
"""Changes that a line names."""

PLACES = {
    "tasks/evaluate/": "an evaluation does not fit",
    "tasks/export/": "the export does not fit",
    "train/checkpoints/": "the model can't be saved or restored",
    "train/optim": "the optimizer's state does not fit",
    "hub_lora_sft/": "the adapters do not fit beside the weights",
    "protection/": "passes over what is to be protected do not fit",
    "hub_osft/": "OSFT's passes and decompositions before training do not fit",
    "hub_dpo/": "the passes of the reference do not fit",
    "parallel/": "the weights, or gradients on their way, do not fit",
    "train/setup/layers": "a pass over a few tokens does not fit beside the weights",
    "train/layout/": "a pass over a few tokens does not fit beside the weights",
}
"""Part of a source file's name -> what did not fit if memory ran out there. The innermost file of the hub counts."""


def out_of_memory(error: BaseException, cfg: RunConfig) -> ModelError | None:
    """The line for memory that ran out where nothing smaller can be tried. None: the error is another one."""
    if not is_out_of_memory(error):
        return None
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    found = (words for file in reversed(files) for part, words in PLACES.items() if part in file)
    return too_little(next(found, "the model does not fit"), shortage_of(error), instead(cfg))


def instead(cfg: RunConfig, activations: bool = True, optimizer: bool = False, fits: int = 0) -> str:
    """A sentence with the changes that save memory, those that lose least first.

    Args:
        cfg: the run.
        activations: whether what passes keep is part of what does not fit; else it is weights alone.
        optimizer: whether its state is.
        fits: tokens of a sample that would fit. 0: not known.
    """
    changes = list(dict.fromkeys([*(_of_activations(cfg, fits) if activations else ()), *_of_state(cfg, optimizer)]))
    return f"Type {_listed(changes[:MOST])}. The verb `plan` with the same options tries what else fits"


def _listed(changes: list[str]) -> str:
    return changes[0] if len(changes) == 1 else f"{', '.join(changes[:-1])}, or {changes[-1]}"


def _of_activations(cfg: RunConfig, fits: int) -> Iterator[str]:
    algo = cfg.algo
    if algo.gradient_checkpointing == "none":
        yield "algo.gradient_checkpointing=auto" + (
            " algo.activation_offload=auto" if algo.activation_offload == "none" else ""
        )
    elif algo.activation_offload == "none":
        yield "algo.activation_offload=auto"
    length = fits // SHORTEST * SHORTEST
    if length and cfg.data.block_size is None:
        bound = f" algo.max_tokens_per_gpu={length}" if algo.max_tokens_per_gpu != AUTO else ""
        yield f"data.max_seq_len={length}{bound}"


def _of_state(cfg: RunConfig, optimizer: bool) -> Iterator[str]:
    """Weights, gradients and moments in fewer bits, or on more GPUs."""
    algo, is_full = cfg.algo, not hasattr(cfg.algo, "lora_r")
    if cfg.launch.gpu_memory_gb is not None:
        yield "a larger launch.gpu_memory_gb"
    if optimizer and algo.optimizer == "adamw" and cfg.launch.strategy in (AUTO, "ddp"):
        yield "algo.optimizer=adamw_8bit"
    if getattr(algo, "master_weights", None) is True and algo.optimizer == "adamw":
        yield "algo.master_weights=false"
    if cfg.model.dtype == "float32":
        yield "model.dtype=bfloat16"
    if cfg.model.quantization is None and getattr(algo, "load_in_4bit", None) is False:
        yield "algo.load_in_4bit=true" + (" algo.load_in_8bit=false" if getattr(algo, "load_in_8bit", False) else "")
    if is_full and getattr(algo, "ratio", 0.0) > LEAST_RATIO:
        yield f"algo.unfreeze_rank_ratio={LEAST_RATIO}"
    if is_full:
        yield f"algo={ADAPTERS if optimizer else QUANTIZED_ADAPTERS}"
    if cfg.launch.strategy == AUTO and algo.optimizer in WORK_ON_SHARDS:
        yield "launch.strategy=fsdp on several GPUs"
    yield "a smaller model"
