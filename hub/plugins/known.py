"""Well-known algorithms and backends, and the distributions that bring them. Besides `api.py` the only place in hub/ that
names plugins.

They are used for hints and examples, and their names are kept for them: no other distribution takes one of these names unless
the user names that distribution.
"""

import re
from importlib.metadata import PackageNotFoundError, distribution

ALGORITHMS = {
    "sft": "hub-sft",
    "lora_sft": "hub-lora-sft",
    "qlora_sft": "hub-lora-sft",
    "osft": "hub-osft",
    "dpo": "hub-dpo",
    "lora_dpo": "hub-dpo",
    "qlora_dpo": "hub-dpo",
    "osft_dpo": "hub-dpo",
}
"""Algorithm or preset of one -> the distribution to install for it."""

BACKENDS = {("lora_sft", "unsloth"): "hub-unsloth"}
"""(Algorithm, backend) -> the distribution to install for it, if that is not the algorithm's own."""

ADAPTERS, QUANTIZED_ADAPTERS = "lora_sft", "qlora_sft"
"""What to suggest when memory does not suffice to train whole models."""

FIRST_PLUGIN = ALGORITHMS[ADAPTERS]
"""What to suggest where no plugin is installed."""

INSTALL_ONE = f"Type pip install {FIRST_PLUGIN}"

EXAMPLES = (
    ("try it: a random tiny model, seconds", f"python -m hub algo={ADAPTERS} model=tiny data=tiny"),
    ("LoRA on your own chats", f"python -m hub algo={ADAPTERS} model=llama3_8b data.path=chats.jsonl"),
    (
        "all weights, evaluated on 5 % of the rows",
        "python -m hub algo=sft model=smollm2_135m data.path=chats.jsonl data.eval_fraction=0.05",
    ),
)
"""(What it does, command) for the overview."""


def belongs_to(algorithm: str, distribution: str) -> str | None:
    """The distribution to which the name of an algorithm belongs. None: to any, or to this one.

    Args:
        algorithm: its name.
        distribution: the one that offers it.
    """
    owner = ALGORITHMS.get(algorithm)
    return None if owner is None or owner == normalized(distribution) else owner


def normalized(distribution: str) -> str:
    """The name of a distribution as package indexes compare it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def missing_algorithm(name: str) -> str | None:
    """The line for a well-known algorithm whose distribution is not installed; None for any other."""
    return _missing(f"algo={name}", ALGORITHMS.get(name))


def missing_backend(algorithm: str, name: str) -> str | None:
    """The line for a well-known backend whose distribution is not installed; None for any other."""
    return _missing(f"algo.backend={name}", BACKENDS.get((algorithm, name)))


def _missing(option: str, needed: str | None) -> str | None:
    if needed is None or _is_installed(needed):
        return None
    return f"{option}: its plugin {needed} is not installed. Type pip install {needed}"


def _is_installed(name: str) -> bool:
    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True
