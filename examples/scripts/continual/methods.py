"""The methods to compare: parses a method's name into an algorithm and options of the hub."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

METHODS = (
    "untrained",
    "default",
    "default:lr=3e-4",
    "activations:strength=56,lr=3e-4,texts=50,embeddings=1",
    "activations:ratio=0.5",
    "sft",
    "replay",
    "lora_sft",
    "protected",
    "osft:ratio=0.25",
    "osft:ratio=0.25,form=factored",
    "activations:ratio=0.25",
    "activations:ratio=0.5,lr=3e-4,texts=50",
    "activations:ratio=0.5,lr=3e-4,texts=50,embeddings=1",
    "osft:ratio=1.0,lr=2e-4",
    "activations:ratio=0.25,lr=5e-4,texts=50",
    "osft:policy=adaptive",
    "osft:ratio=0.1",
    "osft:ratio=0.25,lr=1e-4",
    "osft:ratio=0.25,form=factored,lr=3e-5",
    "activations:ratio=0.75,lr=3e-4,texts=50",
    "sft:lr=2e-5",
    "activations:ratio=0.25,protect=10",
    "activations:ratio=0.25,memory=covariances",
    "activations:ratio=0.5,lr=3e-4,texts=50,epochs=6",
    "osft:policy=adaptive,form=factored",
    "activations:ratio=0.9,lr=3e-4,texts=50",
)
"""The most important first: with --time-limit the last ones may be left out."""

RATES = {
    "sft": (2e-5, 5e-5, 1e-4, 2e-4),
    "lora_sft": (3e-4, 1e-3, 3e-3),
    "protected": (3e-4, 1e-3, 3e-3),
    "osft fast": (3e-5, 1e-4, 3e-4),
    "osft factored": (1e-5, 3e-5, 1e-4),
    "activations": (1e-4, 3e-4, 1e-3),
    "default": (1e-4,),
}
"""Learning rates of the search."""

KINDS = ("untrained", "sft", "replay", "lora_sft", "protected", "osft", "activations", "default")
KNOWN = {"lr": float, "epochs": float, "protect": int, "ratio": float, "policy": str, "form": str, "memory": str,
         "texts": int, "embeddings": int, "strength": float}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One row of the table."""

    name: str

    @cached_property
    def kind(self) -> str:
        return self.name.partition(":")[0]

    @cached_property
    def options(self) -> dict[str, Any]:
        """Return the options after the colon.

        Raises:
            ValueError: there is no such method or option.
        """
        pairs = [pair.partition("=") for pair in self.name.partition(":")[2].split(",") if pair]
        unknown = [name for name, _, _ in pairs if name not in KNOWN]
        if unknown or self.kind not in (
            "untrained",
            "sft",
            "replay",
            "lora_sft",
            "protected",
            "osft",
            "activations",
            "default",
        ):
            raise ValueError(f"{self.name}: there is no such method or option. Type --help for a list")
        return {name: KNOWN[name](value) for name, _, value in pairs}

    @property
    def protect(self) -> int:
        return int(self.options.get("protect", 100))

    @property
    def texts(self) -> int:
        """Return the number of protected general texts."""
        return int(self.options.get("texts", 16))

    @property
    def by_covariances(self) -> bool:
        return self.options.get("memory") == "covariances"

    @property
    def protects_data(self) -> bool:
        return self.kind == "activations" or self.options.get("policy") == "adaptive"

    @property
    def searched_as(self) -> str:
        """Return the key of the search. Methods that do the same on the first task share one."""
        kind = "sft" if self.kind == "replay" else self.kind
        rest = [f"{name}={value}" for name, value in self.options.items() if name in ("ratio", "policy", "form", "strength")]
        return f"{kind}:{','.join(rest)}".rstrip(":")

    @property
    def rates(self) -> tuple[float, ...]:
        if "lr" in self.options or self.kind == "untrained":
            return (self.options.get("lr", 0.0),)
        kind = "sft" if self.kind == "replay" else self.kind
        return RATES[f"osft {self.options.get('form', 'fast')}" if kind == "osft" else kind]

    def of_the_hub(self) -> tuple[str, dict[str, Any]]:
        """Return the algorithm and its options."""
        if self.kind in ("sft", "replay"):
            return "sft", {}
        if self.kind == "lora_sft":
            return "lora_sft", {"lora_r": 16, "lora_alpha": 32.0}
        if self.kind == "protected":
            return "lora_sft", {"protect": "self", "unfreeze_rank_ratio": self.options.get("ratio", 0.5)}
        if self.kind == "default":
            return "osft", {} if "strength" not in self.options else {"protect_strength": self.options["strength"]}
        options: dict[str, Any] = {"parametrization": self.options.get("form", "fast"), "subspace": "weights"}
        if self.kind == "activations":
            options |= {
                "subspace": "activations",
                "protect_strength": self.options.get("strength", 0.0),
                "protect_samples": 512,
            }
        if self.options.get("policy") == "adaptive":
            options |= {"rank_policy": "adaptive"}
        else:
            options |= {"unfreeze_rank_ratio": self.options.get("ratio", 1.0 if "strength" in self.options else 0.25)}
        if self.options.get("embeddings"):
            options |= {"train_embeddings": True}
        if self.by_covariances:
            options |= {"save_protection": True, "protect_samples": max(self.protect, self.texts)}
        return "osft", options
