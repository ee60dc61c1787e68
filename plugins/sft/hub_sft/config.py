"""Options of full fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub import AlgoConfig, RunConfig, option
from hub.config.launch import ZERO
from hub.config.option import AUTO
from hub.config.schema import fp8_problems


@dataclass(kw_only=True)
class SftConfig(AlgoConfig):
    """Full fine-tuning. All options of `AlgoConfig`, with defaults for whole models."""

    learning_rate: float = option(5e-6, gt=0)
    """Peak learning rate. 5e-6 changes a pretrained model without much forgetting. LoRA needs about 40 times as much."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data. A third pass mostly memorizes."""

    effective_batch_size: int | str = option("auto", ge=1)
    """Samples per optimizer step over all processes, exactly. auto: 32 below 1,000 samples, 128 below 10,000, else 256."""

    master_weights: bool = True
    """Keep weights, gradients and AdamW's moments in float32: 16 bytes per parameter. false: in `model.dtype`, 8 bytes per
    parameter in bfloat16. AdamW then rounds weights stochastically, so that small updates add up. With adamw only."""

    precision: str = option(AUTO, choices=(AUTO, "fp8"))
    """auto: compute in `model.dtype`. fp8: matrix products of linear layers in 8-bit floats with a scale per row and token,
    except for gradients of weights. Faster, less exact. Needs GPUs of Hopper's generation or later."""

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        if self.precision == "fp8":
            yield from fp8_problems(cfg, {}, ("split",))
        if self.master_weights:
            return
        if self.optimizer != "adamw":
            yield (
                f"algo.master_weights=false with algo.optimizer={self.optimizer}: it rounds to the nearest bfloat16, which "
                "loses small updates. Type algo.optimizer=adamw, or algo.master_weights=true"
            )
        if cfg.launch.strategy in ZERO:
            yield (
                f"algo.master_weights=false with launch.strategy={cfg.launch.strategy}: DeepSpeed keeps float32 weights. "
                "Type launch.strategy=fsdp, or algo.master_weights=true"
            )
        if cfg.model.dtype == "float32" and cfg.chosen_task.takes_steps:
            yield (
                "algo.master_weights=false keeps the weights in model.dtype, which is float32: this saves nothing. Type "
                "model.dtype=bfloat16, or algo.master_weights=true"
            )
