"""What a run logs and writes into plan.json before its first step, and when memory runs out later."""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from hub.data.samples.sample import counted, counted_as
from hub.models.multimodal import auto_class
from hub.models.saved_folder import line_on_base
from hub.models.structure import base_of, outside_text
from hub.run import Run
from hub.system import timeline
from hub.train.layout.layout import Layout
from hub.train.setup.samples import length_lines, mix_lines
from hub.train.setup.setup import Setup


@dataclass(frozen=True)
class ParameterCounts:
    """The parameters of a model, counted. To be made before a strategy shards them."""

    trained: int
    total: int
    outside_text: int
    """Those that no text reaches, as in a vision tower. They stay frozen."""

    dtypes: str
    """The dtypes of the weights that train, in words."""

    @classmethod
    def of(cls, model: torch.nn.Module) -> "ParameterCounts":
        """Count the parameters of a model with `requires_grad` set."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        return cls(
            trained=sum(parameter.numel() for parameter in trained),
            total=sum(parameter.numel() for parameter in model.parameters()),
            outside_text=sum(parameter.numel() for parameter in outside_text(model)),
            dtypes=" and ".join(sorted({str(parameter.dtype).removeprefix("torch.") for parameter in trained})),
        )

    @property
    def of_text(self) -> int:
        """Those that a text reaches."""
        return self.total - self.outside_text


def announce(setup: Setup, model: torch.nn.Module, counts: ParameterCounts, layout: Layout) -> None:
    """Log what trains, on what, in how many steps, and write it into plan.json.

    Args:
        setup: config, run folder, data.
        model: the model that trains.
        counts: its parameters.
        layout: how steps are split.
    """
    cfg, run, source = setup.cfg, setup.run, setup.source
    lines, plan = mix_lines(source)
    run.write_plan(
        effective_batch_size=source.batch_size,
        num_steps=source.total,
        trainable_parameters=counts.trained,
        parameters=counts.total,
        weights_kept_in=counts.dtypes,
        auto_class=auto_class(base_of(model).config).__name__,
        **plan,
    )
    kind = "samples" if cfg.data.streaming else counted_as(setup.data.train)
    what = "a stream" if cfg.data.streaming else counted(setup.data.train)
    run.say(
        f"training {counts.trained:,} of {counts.total:,} parameters in {counts.dtypes} on {what}: "
        f"{source.total} steps of {source.batch_size} {kind}, micro-batches of at most {layout.max_tokens} tokens"
    )
    if counts.outside_text:
        run.say(f"the text part trains; {counts.outside_text:,} parameters that no text reaches stay as they are")
    if hasattr(model, "peft_config") and (line := line_on_base(cfg.model)):
        run.say(line)
    for line in [*length_lines(source, cfg.algo), *lines]:
        run.say(line)


def announce_smaller(before: Layout, now: Layout, run: Run, say: Callable[[str], None]) -> None:
    """Log that memory ran out and how steps are split from now on, and write it into plan.json.

    Args:
        before: the layout of the step.
        now: the one that fit. The same: nothing is logged.
        run: the run folder.
        say: logs a line.
    """
    checkpointed, tokens = now.num_checkpointed, now.max_tokens
    if checkpointed != before.num_checkpointed:
        say(
            f"out of memory: {checkpointed} layers use activation checkpointing from now on instead of "
            f"{before.num_checkpointed}. The step was retried, with the same result"
        )
        run.write_plan(layers_recomputed=checkpointed)
    if tokens != before.max_tokens:
        say(
            f"out of memory at {before.max_tokens} tokens: the step was retried in micro-batches of at most {tokens} "
            f"tokens, with the same result. Next time type algo.max_tokens_per_gpu={tokens}"
        )
        run.write_plan(max_tokens_per_gpu=tokens, max_tokens_per_gpu_because="memory ran out above it")


def announce_first_step(setup: Setup, say: Callable[[str], None]) -> None:
    """Write into plan.json where the seconds until the end of the first step went, and log it if `launch.timeline` asks for it.

    Args:
        setup: config and run folder.
        say: logs a line.
    """
    if (seconds := timeline.end()) is None:
        return
    stages = {stage: round(taken, 3) for stage, taken in seconds.items()}
    setup.run.write_plan(first_step_seconds=round(sum(seconds.values()), 3), timeline=stages)
    if setup.cfg.launch.timeline:
        for line in timeline.lines(seconds):
            say(line)
