"""Options of full fine-tuning."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub import AlgoConfig, RunConfig, option


@dataclass(kw_only=True)
class SftConfig(AlgoConfig):
    """Full fine-tuning. All options of `AlgoConfig`, with the defaults of good practice for whole models."""

    learning_rate: float = option(5e-6, gt=0)
    """Peak learning rate. 5e-6 moves a pretrained model without losing what it knows; LoRA takes about 40 times as much."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data. A third pass mostly memorises."""

    effective_batch_size: int | str = option("auto", ge=1)
    """Samples per optimizer step over all processes, exactly. auto: 32 below 1,000 samples, 128 below 10,000, else 256."""

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        if cfg.model.quantization:
            yield (
                f"algo=sft can't train the {cfg.model.quantization} weights of model.path={cfg.model.path}: quantised weights "
                "take no gradient. Type algo=lora_sft, or a model preset without _bnb_4bit"
            )
