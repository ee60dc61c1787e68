"""A tiny gpt-oss whose experts are stored in MXFP4, as those of the family's own checkpoints."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from hub.testing import tiny_model


def in_mxfp4_on_disk(folder: Path) -> Path:
    """Make it, with random codes. Layout: `transformers.integrations.mxfp4`."""
    tiny_model(folder, "gpt_oss")
    tensors = load_file(folder / "model.safetensors")
    draw = torch.Generator().manual_seed(0)
    for name in [name for name in tensors if "experts" in name and not name.endswith("bias")]:
        experts, inputs, outputs = tensors.pop(name).shape
        shape = (experts, outputs, inputs // 32)
        tensors[f"{name}_blocks"] = torch.randint(0, 256, (*shape, 16), dtype=torch.uint8, generator=draw)
        tensors[f"{name}_scales"] = torch.randint(118, 122, shape, dtype=torch.uint8, generator=draw)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head", "model.layers.*.self_attn"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
