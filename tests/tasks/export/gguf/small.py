"""Small models whose tokenizer llama.cpp's converter knows: a vocabulary of SentencePiece that is trained here."""

import json
import struct
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from benchmarks.made_tokenizers import write_sentencepiece
from hub.tasks.export.gguf.container import pack_container, read_container

TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCAB = 420


def write_tokenizer(folder: Path) -> None:
    files = Path(__file__), Path(json.__file__)
    write_sentencepiece(folder, [line for file in files for line in file.read_text("utf-8").splitlines()], VOCAB, TEMPLATE)


def write_model(folder: Path, config: PretrainedConfig) -> PreTrainedModel:
    """A model with weights large enough that each shows in the logits."""
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.2)
        else:
            weight.data += 0.1 * torch.randn_like(weight) * ("norm" in name)
    model.save_pretrained(folder)
    return model


def with_metadata(file: Path, target: Path, **changed: bool | int | str) -> Path:
    """The same file with other metadata. Keys have `__` for a dot."""
    container = read_container(file)
    metadata = dict(container.metadata)
    for key, value in changed.items():
        raw = value.encode() if isinstance(value, str) else b""
        metadata[key.replace("__", ".")] = (
            struct.pack("<I?", 7, value)
            if isinstance(value, bool)
            else struct.pack("<II", 4, value)
            if isinstance(value, int)
            else struct.pack("<IQ", 8, len(raw)) + raw
        )
    head = pack_container(metadata, container.tensors, container.alignment)
    target.write_bytes(head + file.read_bytes()[container.data_start :])
    return target
