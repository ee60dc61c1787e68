"""Tiny models, a tokenizer and chats for tests, those of plugin authors too. No network, milliseconds per step.

    from hub.testing import tiny_model, write_chats

    folder = tiny_model(tmp_path / "model", family="qwen3")
    chats = write_chats(tmp_path / "chats.jsonl", num_rows=32)

This is the public path. `hub.models.tiny` makes them.
"""

from hub.models.tiny import (
    CHATML,
    FAMILIES,
    VOCAB,
    tiny_data_path,
    tiny_model,
    tiny_model_path,
    tokenizer,
    write_chats,
)

__all__ = ["CHATML", "FAMILIES", "VOCAB", "tiny_data_path", "tiny_model", "tiny_model_path", "tokenizer", "write_chats"]
