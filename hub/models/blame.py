"""Which field of config.json makes a pass fail: for errors of a model that could be built, but not run.

transformers takes many values without a look, such as a dropout rate of null, and fails in the middle of a layer.
"""

import re
from pathlib import Path

import torch
from transformers import AutoConfig

from hub.config.schema import ModelConfig
from hub.errors import HubError
from hub.models.multimodal import auto_class
from hub.models.reading import CONFIG, ModelFileError, culprit, is_of_files, words_of

NUM_TOKENS = 8
_VARIES = re.compile(r"\d+|cuda|cpu|meta")
"""What may differ between two errors of the same cause: shapes, devices."""


def field_at_fault(cfg: ModelConfig, path: Path, error: BaseException) -> ModelFileError | None:
    """The error of the field without which a short pass, on a model without data, does not fail as it did.

    Args:
        cfg: for messages and `trust_remote_code`.
        path: local folder of the model.
        error: of a pass, or an error of the hub that was raised from one.

    Returns:
        None: there is no single such field, or a model without data fails in another way.
    """
    first = error.__cause__ if isinstance(error, HubError) else error
    if first is None or isinstance(first, HubError) or cfg.trust_remote_code or not is_of_files(first):
        return None
    said = _kind(first)

    def read(folder: Path) -> None:
        config = AutoConfig.from_pretrained(folder)
        with torch.device("meta"):
            model = auto_class(config).from_config(config).train()
            ids = torch.zeros(1, NUM_TOKENS, dtype=torch.long)
            # Most families look at the content of masks of two dimensions, which a model without data has none of.
            for mask in (torch.ones(1, 1, NUM_TOKENS, NUM_TOKENS, dtype=torch.bool), torch.ones_like(ids)):
                try:
                    model(input_ids=ids, attention_mask=mask, position_ids=torch.arange(NUM_TOKENS)[None], use_cache=False)
                except Exception as own:
                    if _kind(own) == said:
                        raise

    found = culprit(read, path, first, CONFIG)
    return ModelFileError.of(f"model.path={cfg.path}", *found, words_of(first)) if found is not None else None


def _kind(error: BaseException) -> tuple[type[BaseException], str]:
    return type(error), _VARIES.sub("", words_of(error))
