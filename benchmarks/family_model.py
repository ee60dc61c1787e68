"""A family's model with random weights, and plain transformers on it: processes of their own, since both hold a GPU.

    python -m benchmarks.family_model make CONFIG.json FOLDER
    python -m benchmarks.family_model loss FOLDER ROWS.jsonl OUT.json [4bit]

`make` writes the folder of a model whose weights are made on the GPU. `loss` writes what plain transformers says of rows: each
row by itself, without padding and without anything of the hub.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any


def make(config_file: Path, folder: Path) -> None:
    """Write a model with random weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from benchmarks.family_shapes import write_config

    held: dict[str, Any] = json.loads(config_file.read_text(encoding="utf-8"))
    write_config(folder, held)
    config = AutoConfig.from_pretrained(folder)
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size="4GB")


def loss(folder: Path, rows: Path, out: Path, in_4bit: bool) -> None:
    """Write the mean loss of all tokens of the rows but each row's first, in nats."""
    import torch
    import torch.nn.functional as F
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    device = "cuda" if torch.cuda.is_available() else "cpu"
    options: dict[str, Any] = {}
    if in_4bit:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    soft_capped = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("attn_logit_softcapping")
    if soft_capped:
        options["attn_implementation"] = "eager"  # the other kernels leave the cap out
    begun = time.monotonic()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map=device, **options).eval()
    for layer in model.modules():
        if hasattr(layer, "support_avx512bf16_for_cpu"):
            layer.support_avx512bf16_for_cpu = False  # bitsandbytes' kernel for CPUs takes no matrices as small as tiny ones
    if in_4bit:
        round_experts(model)
    sums, count = 0.0, 0
    with torch.no_grad():
        for line in rows.read_text(encoding="utf-8").splitlines():
            ids = torch.tensor([json.loads(line)["input_ids"]], device=device)
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
            for part, targets in zip(logits.split(256), ids[0, 1:].split(256), strict=True):
                sums += float(F.cross_entropy(part.float(), targets, reduction="sum"))
            count += ids.shape[1] - 1
    out.write_text(json.dumps({"loss": sums / count, "seconds": round(time.monotonic() - begun, 1)}), encoding="utf-8")


def round_experts(model: Any) -> None:
    """Give a model's experts the numbers that they have in 4 bits. transformers quantizes linear layers only."""
    import torch
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    for name, weight in model.named_parameters():
        if weight.ndim == 3 and ".experts." in name and weight.is_floating_point() and weight.numel() % 64 == 0:
            blocks = weight.data.view(-1, 64)  # the blocks follow each other, whatever the rows are
            packed = quantize_4bit(blocks, blocksize=64, compress_statistics=True, quant_type="nf4")
            weight.data.copy_(dequantize_4bit(*packed).view_as(weight))
            del blocks, packed
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def main() -> None:
    verb, first, *rest = sys.argv[1:]
    if verb == "make":
        make(Path(first), Path(rest[0]))
    else:
        loss(Path(first), Path(rest[0]), Path(rest[1]), rest[2:] == ["4bit"])


if __name__ == "__main__":
    main()
