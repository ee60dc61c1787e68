"""How a step is cut into micro-batches on the machine at hand. It changes speed and memory, never the result."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from hub.data.prepare import Sample
from hub.train import batches
from hub.train.budget import micro_batch_tokens, wants_checkpointing
from hub.train.collate import MicroBatch, pack, pad, weightless
from hub.train.distributed import max_over_ranks
from hub.train.isolation import can_pack
from hub.train.setup import Setup


@dataclass(frozen=True)
class Layout:
    """The bound of a micro-batch and the form of its rows."""

    max_tokens: int
    packed: bool
    pad_id: int
    cost_ratio: float

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step. All ranks get the same number of them."""
        lengths = [len(sample) for sample in samples]
        if not self.packed:
            # Padding counts against the bound as well.
            lengths = [max(lengths)] * len(lengths)
        parts = batches.split(lengths, world, self.max_tokens, self.cost_ratio)[rank]
        chosen = [[samples[i] for i in part] or [weightless(samples[0])] for part in parts]
        return [pack(part) if self.packed else pad(part, self.pad_id) for part in chosen]

    def halved(self, longest: int) -> "Layout | None":
        """Half the tokens per micro-batch, but room for the longest sample; None when it was no more than that already."""
        smaller = max(longest, self.max_tokens // 2)
        return replace(self, max_tokens=smaller) if smaller < self.max_tokens else None


def choose_layout(setup: Setup, model: Any) -> Layout:
    """Decide how steps are cut on this machine, say why, and set the model up for it."""
    cfg, run, session, data, tokenizer = setup.cfg, setup.run, setup.session, setup.data, setup.tokenizer
    device, longest = session.device, max(len(sample) for sample in [*data.train, *data.evaluation])
    config = model.config.get_text_config()
    packed, packed_because = can_pack(model, config.vocab_size, device, session.compute_dtype)
    checkpointed, checkpointed_because = wants_checkpointing(cfg.algo.gradient_checkpointing, model, device)
    if checkpointed:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    bound, bound_because = micro_batch_tokens(cfg.algo, model, model.config, device, longest, checkpointed)
    bound = int(-max_over_ranks(-bound))
    if not packed:
        run.say(f"samples are padded, not packed: {packed_because}")
    run.write_plan(
        packed=packed,
        packed_because=packed_because,
        gradient_checkpointing=checkpointed,
        gradient_checkpointing_because=checkpointed_because,
        max_tokens_per_gpu=bound,
        max_tokens_per_gpu_because=bound_because,
    )
    num_parameters = sum(p.numel() for p in model.parameters())
    ratio = batches.cost_ratio(config.num_hidden_layers, config.hidden_size, num_parameters)
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else (tokenizer.eos_token_id or 0)
    return Layout(bound, packed, pad_id, ratio)
