"""Options of generation: how answers are sampled. The presets `generate=factual|balanced|creative` set them."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from hub.config.option import AUTO, option


@dataclass(kw_only=True)
class GenerateConfig:
    """How a model's answers are generated, in `chat`, `generate`, `serve` and `evaluate`."""

    max_new_tokens: int = option(512, ge=1)
    """Most tokens of one answer. An answer that does not end by itself is cut there."""

    temperature: float = option(0.5, ge=0)
    """Divides the logits before sampling. Lower: more of what is most likely. 0: always the most likely token (greedy)."""

    top_p: float = option(0.9, gt=0, le=1)
    """Sample from the most likely tokens that together have this probability (nucleus sampling, arXiv 1904.09751). 1: all."""

    top_k: int = option(0, ge=0)
    """Sample from this many of the most likely tokens. 0: from all."""

    min_p: float = option(0.0, ge=0, le=1)
    """Leave out tokens less likely than this fraction of the most likely one's probability (arXiv 2407.01082). 0: none."""

    repetition_penalty: float = option(1.1, gt=0)
    """Divides positive logits of tokens that are already there, and multiplies negative ones (arXiv 1909.05858). 1: off."""

    stop: list[str] = field(default_factory=list)
    """Texts at which an answer ends, beside the model's own end-of-turn tokens."""

    thinking: str = option(AUTO, choices=(AUTO, "on", "off"))
    """Whether the chat template asks for a thinking block (`enable_thinking`). auto: as the template has it by default."""

    batch_size: int | str = option(AUTO, ge=1)
    """Answers that are generated together. auto: as many as fit into memory."""

    seed: int = option(0, ge=0)
    """Seed of the sampling. Each answer has draws of its own, so but for rounding it does not depend on the batch size."""

    def problems(self) -> Iterator[str]:
        """One line for each value that bounds and types do not exclude."""
        if "" in self.stop:
            yield "generate.stop has an empty text, at which each answer would end. Leave it out"
