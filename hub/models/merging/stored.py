"""The weights of a folder in full, whatever they are stored as, by the names that the model's files have without a wrapper."""

import json
import re
from pathlib import Path
from typing import Any

import torch

from hub.config.schema import ModelConfig
from hub.errors import LaunchError, ModelError
from hub.models.load import renamed_weights
from hub.models.merging.shards import StoredFiles
from hub.models.safety import read_json
from hub.models.storage import stored_as

_BNB_STATE = ".quant_state.bitsandbytes__"
_BNB_PARTS = re.compile(r"\.weight\..+$|\.(SCB|weight_format)$")
_MXFP4 = re.compile(r"_(blocks|scales)$")
_MXFP4_VALUES = 32
"""Values that share a scale."""

FULL = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class StoredWeights:
    """The weights of a model's folder. Quantized ones are dequantized when they are read."""

    def __init__(self, folder: Path, cfg: ModelConfig) -> None:
        """Read the headers.

        Args:
            folder: of the weights.
            cfg: for messages and `trust_remote_code`.

        Raises:
            ModelError: they can't be read, or are stored in a way that is not known here.
        """
        self._files = StoredFiles(folder)
        config = read_json(folder / "config.json", str(folder))
        inner = config.get("text_config")
        text: dict[str, Any] = inner if isinstance(inner, dict) else {}
        named = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
        self.dtype = FULL.get(str(named), torch.bfloat16)
        """The main dtype of the model: that of config.json, and in full precision that of most of its values."""

        method = stored_as(folder)
        if method not in (None, "bnb-4bit", "bnb-8bit"):
            raise ModelError(
                f"model.path={cfg.path}: its weights are stored as {method}, and no adapter can be merged into these. Name a "
                "folder or id of the same model stored in bfloat16"
            )
        names = list(self._files.tensors)
        blocks = {_MXFP4.sub("", name) for name in names if name.endswith("_blocks") and _MXFP4.sub("_scales", name) in names}
        self._how: dict[str, str] = {}
        self.tensors: dict[str, torch.Tensor] = {}
        """Name -> a tensor without data, of the shape and dtype in full."""

        self.is_quantized = method is not None or bool(blocks)
        if not self.is_quantized:
            sizes: dict[torch.dtype, int] = {}
            for tensor in self._files.tensors.values():
                if tensor.is_floating_point():
                    sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
            self.dtype = max(sizes, key=lambda dtype: sizes[dtype], default=self.dtype)
        renamed = {} if self.is_quantized else renamed_weights(cfg, folder)
        self._stored_name: dict[str, str] = {}
        for name in names:
            plain = name
            for pattern, other in renamed.items():
                plain = re.sub(pattern, other, plain)
            self._add(plain, name, method, blocks)

    def _add(self, plain: str, name: str, method: str | None, blocks: set[str]) -> None:
        like = self._files.tensors[name]
        if (whole := _MXFP4.sub("", name)) in blocks:
            if name.endswith("_blocks"):
                *leading, rows, groups, _ = like.shape
                self._remember(whole, whole, "mxfp4", (*leading, groups * _MXFP4_VALUES, rows))
            return
        if method and _BNB_PARTS.search(name):
            return
        if method == "bnb-4bit" and like.dtype in (torch.uint8, torch.int8) and (state := self._state(name)):
            self._remember(plain, name, "bnb-4bit", tuple(state["shape"]))
        elif method == "bnb-8bit" and name.removesuffix("weight") + "SCB" in self._files.tensors:
            self._remember(plain, name, "bnb-8bit", tuple(like.shape))
        else:
            self._how[plain], self._stored_name[plain], self.tensors[plain] = "", name, like

    def _remember(self, plain: str, name: str, how: str, shape: tuple[int, ...]) -> None:
        self._how[plain], self._stored_name[plain] = how, name
        self.tensors[plain] = torch.empty(shape, dtype=self.dtype, device="meta")

    def read(self, name: str) -> torch.Tensor:
        """A weight in full: in its own dtype, or if it is quantized in the model's dtype, as it is loaded for training.

        Raises:
            LaunchError: bitsandbytes is needed for that, and is not installed.
        """
        stored = self._stored_name[name]
        match self._how[name]:
            case "mxfp4":
                return self._mxfp4(stored)
            case "bnb-4bit":
                return self._four_bit(stored)
            case "bnb-8bit":
                scale = self._files.read(stored.removesuffix("weight") + "SCB").float()
                return (self._files.read(stored).float() * (scale / 127)[:, None]).to(self.dtype)
            case _:
                return self._files.read(stored)

    def _state(self, name: str) -> dict[str, Any]:
        found = [other for other in self._files.tensors if other.startswith(name + _BNB_STATE)]
        return json.loads(bytes(self._files.read(found[0]).tolist())) if found else {}

    def _four_bit(self, name: str) -> torch.Tensor:
        try:
            from bitsandbytes.functional import QuantState, dequantize_4bit
        except ImportError:
            raise LaunchError(
                "these weights are stored in 4 bits, which needs bitsandbytes. Type pip install bitsandbytes"
            ) from None
        parts = {other: self._files.read(other) for other in self._files.tensors if other.startswith(f"{name}.")}
        state = QuantState.from_dict(parts, device=torch.device("cpu"))
        full: torch.Tensor = dequantize_4bit(self._files.read(name), state)
        return full.to(self.dtype)

    def _mxfp4(self, name: str) -> torch.Tensor:
        from transformers.integrations.mxfp4 import convert_moe_packed_tensors

        blocks, scales = self._files.read(f"{name}_blocks"), self._files.read(f"{name}_scales")
        full: torch.Tensor = convert_moe_packed_tensors(blocks, scales, dtype=self.dtype)
        return full
