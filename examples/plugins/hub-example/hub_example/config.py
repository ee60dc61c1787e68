"""Options of BitFit."""

from collections.abc import Iterator
from dataclasses import dataclass

from hub import AlgoConfig, RunConfig, option


@dataclass(kw_only=True)
class BitFitConfig(AlgoConfig):
    """BitFit (arXiv 2106.10199): train the bias terms, freeze all matrices."""

    learning_rate: float = option(1e-3, gt=0)
    """Peak learning rate. Few numbers learn, so each takes larger steps than in full fine-tuning."""

    num_epochs: float = option(2.0, gt=0)
    """Passes over the training data."""

    parts: str = option("auto", choices=("auto", "biases", "norms", "both"))
    """What learns: biases, norm weights, or both. auto: the biases when the model has any, else the norm weights."""

    def problems(self, cfg: RunConfig) -> Iterator[str]:
        yield from super().problems(cfg)
        if self.weight_decay:
            yield (
                f"algo.weight_decay={self.weight_decay:g} has no effect: biases and norms are never decayed, and "
                "BitFit trains nothing else. Leave it out"
            )
