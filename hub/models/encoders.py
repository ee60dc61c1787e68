"""Families that are no causal language models, known by config.json alone. `causality.py` measures all others."""

from pathlib import Path

from hub.errors import ModelError
from hub.models.safety import read_json

ENCODERS = {
    "bert", "bert-generation", "big_bird", "camembert", "data2vec-text", "electra", "ernie", "megatron-bert", "reformer",
    "rembert", "roberta", "roberta-prelayernorm", "roc_bert", "roformer", "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Families whose causal class in transformers attends to later tokens unless config.json has `"is_decoder": true`. Each warns
"add `is_decoder=True`" in its modeling file, which is easily missed."""

INSTEAD = "Name a model that was made to write text, such as those of the presets (python -m hub --help)"


def refuse_encoders(folder: Path, name: str) -> None:
    """Refuse a model that sees the text after a token when it predicts it, by its config.json.

    Args:
        folder: with config.json.
        name: name of the model in messages.

    Raises:
        ModelError: it is an encoder, or has one.
    """
    config = read_json(folder / "config.json", name)
    family = config.get("model_type")
    if config.get("is_encoder_decoder"):
        raise ModelError(
            f"{name} is an encoder-decoder model ({family}), and the hub trains models with a decoder only. {INSTEAD}"
        )
    if isinstance(family, str) and family in ENCODERS and not config.get("is_decoder"):
        raise ModelError(f"{name} is an encoder ({family}): it sees the tokens that it would learn to predict. {INSTEAD}")
