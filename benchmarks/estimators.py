"""What other estimators of memory say: those of training_hub and accelerate, on the shapes of these benchmarks.

    python -m benchmarks.estimators                            # accelerate, and training_hub if it is installed
    python -m benchmarks.estimators --training-hub FOLDER      # its package's folder, if its requirements are not

No weights are read: models are made on torch's meta device from their config alone. training_hub's estimator is for training
by training_hub, accelerate's for full fine-tuning without activations. Peaks that were measured are in docs/performance.md.
"""

import argparse
import importlib.util
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from accelerate.commands.estimate import estimate_training_usage
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, LlamaConfig

from benchmarks.shapes import SHAPES

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """A run whose memory was measured."""

    name: str
    shape: str
    method: str
    """As training_hub names it."""

    tokens: int
    """Of the largest micro-batch."""


CASES = (
    Case("LoRA, 8B", "8b", "lora", 16232),
    Case("LoRA, 8B, two rows of 2,048 tokens", "8b", "lora", 4096),
    Case("QLoRA, 8B, two rows of 2,048 tokens", "8b", "qlora", 4096),
    Case("full fine-tuning, 1B", "1b", "sft", 14956),
)


def on_meta(folder: str, **_: Any) -> torch.nn.Module:
    """A model without weights, in place of one that is loaded."""
    with torch.device("meta"):
        model: torch.nn.Module = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    return model


def training_hub_estimate(package: Path) -> Callable[..., tuple[float, float, float]]:
    """Its function, from its file alone: the package imports trainers. Of these it needs mini_trainer, for names of layers."""
    spec = importlib.util.spec_from_file_location("memory_estimator", package / "profiling" / "memory_estimator.py")
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    estimate: Callable[..., tuple[float, float, float]] = loaded.estimate
    return estimate


def accelerate_estimate(folder: str) -> float:
    """Bytes for weights, gradients and AdamW in mixed precision, as `accelerate estimate-memory` counts them."""
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    size = 4 * sum(weight.numel() for weight in model.parameters())
    sizes = estimate_training_usage(size, "bfloat16")
    return float(sizes["model"] + sizes["gradients"] + sizes["optimizer"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--training-hub", type=Path, help="folder of the package training_hub")
    package = parser.parse_args().training_hub
    if package is None and (found := importlib.util.find_spec("training_hub")) is not None:
        package = Path(str(found.origin)).parent
    if package is None:
        print("training_hub is not installed. Type pip install training_hub, or --training-hub FOLDER", file=sys.stderr)
    warnings.simplefilter("ignore")
    print("| run | tokens | accelerate, GiB | training_hub, GiB (lower and upper bound) |\n| --- | --- | --- | --- |")
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:  # its estimates are kept under the name of a folder
            values: dict[str, Any] = {"max_position_embeddings": 131072, **SHAPES[case.shape]}
            LlamaConfig(**values).save_pretrained(folder)
            accelerate = f"{accelerate_estimate(folder) / GIB:.1f}" if case.method == "sft" else "-"
            theirs = "-"
            if package is not None:
                with patch.object(AutoModel, "from_pretrained", on_meta):
                    low, expected, high = training_hub_estimate(package)(
                        training_method=case.method, num_gpus=1, model_path=folder, batch_size=1, max_seq_len=case.tokens,
                        use_liger=True, verbose=0, trust_remote_code=False, lora_r=16,
                    )  # fmt: skip
                theirs = f"{expected / GIB:.1f} ({low / GIB:.1f} to {high / GIB:.1f})"
            print(f"| {case.name} | {case.tokens:,} | {accelerate} | {theirs} |", flush=True)


if __name__ == "__main__":
    main()
