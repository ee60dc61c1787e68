"""Options of plans: for which GPU, how many of them, and what is compared."""

from dataclasses import dataclass

from hub.config.option import AUTO, option

COMPARE = ("none", "algo", "gpu")


@dataclass(kw_only=True)
class PlanConfig:
    """What `plan` computes: memory, time and disk of a run that need not be able to run here."""

    gpu: str = AUTO
    """GPU that the plan is for: rtx4090, a100_80gb, h100, ... or a driver's name. auto: that of this machine, else the smallest
    that fits."""

    gpus: int | str = option(AUTO, ge=1)
    """Number of GPUs. auto: as many as the run would have processes, which is one for a GPU that is not here."""

    gpus_file: str | None = None
    """YAML file with further GPUs, in the form of hub/system/known_gpus.yaml. null: only the hub's, and those of
    ~/.config/finetune-hub/gpus.yaml if there is such a file."""

    compare: str = option("none", choices=COMPARE)
    """What is shown side by side. algo: the installed algorithms and their presets, such as sft, osft, lora_sft and qlora_sft.
    gpu: all known GPUs."""

    price_per_hour: float | None = option(None, gt=0)
    """Price of one GPU for an hour, in any currency. null: no price is shown."""

    price_per_kwh: float | None = option(None, gt=0)
    """Price of a kilowatt-hour for the GPUs' power limit, in the same currency. null: only the kilowatt-hours are shown."""

    measure: bool = False
    """Before the plan is shown, run 2 and 4 of the model's layers with random weights on the GPUs of this machine, and correct
    memory, speed and the first step by what they take. One to three minutes. Needs no weights, but the GPUs."""

    learn: bool = True
    """Keep what a run measured (memory, speed, seconds to its first step) in the user's cache, and begin the next plan of the
    same kind from it. Nothing leaves the machine."""
