"""What an adapter holds in place of weights of the base: whole modules, and rows of embeddings.

A product is scaled by its alpha. What replaces a weight W0 by W is put on the same line from the base (0) over what was trained
(1): W0 + a (W - W0). So all weights of the model are on that line.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch

from hub.errors import ConfigError

Replaced = Mapping[str, tuple[torch.Tensor, torch.Tensor]]
"""Name in the adapter's file -> what was trained, as the model has it, and what the base has there."""


def replaced_by(model: torch.nn.Module) -> Replaced:
    """What the adapter of a model replaces.

    Args:
        model: of peft, with one adapter.

    Raises:
        ConfigError: the base has it quantized.
    """
    from peft.tuners.trainable_tokens import TrainableTokensLayer
    from peft.utils.other import ModulesToSaveWrapper

    found: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for path, module in model.named_modules():
        if isinstance(module, ModulesToSaveWrapper):
            base = dict(module.original_module.named_parameters())
            for copy in module.modules_to_save.values():
                found |= {f"{path}.{name}": (trained, base[name]) for name, trained in copy.named_parameters()}
        elif isinstance(module, TrainableTokensLayer):
            for name, trained in module.trainable_tokens_delta.items():
                found[f"{path}.trainable_tokens_delta"] = trained, module.trainable_tokens_original[name]
    for name, (_, base_value) in found.items():
        if not base_value.is_floating_point():
            raise ConfigError(f"{name} is quantized in the base, so what replaces it can't be scaled")
    return found


@contextmanager
def of_strength(replaced: Replaced, strength: float) -> Iterator[None]:
    """Let a model have what was trained with another strength."""
    once = {id(trained): (trained, base) for trained, base in replaced.values()}.values()  # tied weights are there twice
    before = [trained.detach().clone() for trained, _ in once]
    try:
        with torch.no_grad():
            for trained, base in once:
                trained.copy_(on_line(trained, base, strength))
        yield
    finally:
        with torch.no_grad():
            for (trained, _), value in zip(once, before, strict=True):
                trained.copy_(value)


def on_line(trained: torch.Tensor, base: torch.Tensor, strength: float) -> torch.Tensor:
    """W0 + a (W - W0), in float32 or in the type of W if that is larger."""
    kind = torch.promote_types(trained.dtype, torch.float32)
    first = base.detach().to(trained.device, kind)
    return first + strength * (trained.detach().to(kind) - first)
