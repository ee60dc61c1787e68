"""Tokenizers that are trained here in a second, of the two kinds that llama.cpp reads: SentencePiece, and BPE on bytes.

llama.cpp's converter recognizes BPE tokenizers of known models by a hash of token ids. For those made here `named_converter`
stands before the converter, and gives it the name of the rule by which they split texts.
"""

import io
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer

BEGIN, START, END, UNKNOWN = "<s>", "<|im_start|>", "<|im_end|>", "<unk>"
LLAMA_3, QWEN = "llama-bpe", "qwen2"
"""llama.cpp's names for the rules of Llama 3 and of Qwen 2 (src/llama-vocab.cpp)."""

_LLAMA_3_RULE = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_CONVERTER = """\
import runpy
import sys

real = {real!r}
sys.path[:0] = [{folder!r}, {folder!r} + "/gguf-py"]
from conversion.base import TextModel

TextModel.get_vocab_base_pre = lambda self, tokenizer: {rule!r}
sys.argv[0] = real
runpy.run_path(real, run_name="__main__")
"""


def write_sentencepiece(folder: Path, lines: Iterable[str], num_tokens: int, template: str) -> Any:
    """Train a tokenizer of SentencePiece and write it into a folder, with `tokenizer.model`.

    Args:
        folder: an existing one.
        lines: text to learn from.
        num_tokens: size of the vocabulary.
        template: chat template.

    Returns:
        The tokenizer.
    """
    import sentencepiece

    made = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=made,
        vocab_size=num_tokens,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        allow_whitespace_only_pieces=True,
        control_symbols=[START, END],
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(made.getvalue())
    words = {"tokenizer_class": "LlamaTokenizer", "bos_token": BEGIN, "eos_token": END, "unk_token": UNKNOWN}
    settings = json.dumps(words | {"add_bos_token": False, "add_prefix_space": False})
    (folder / "tokenizer_config.json").write_text(settings, encoding="utf-8")
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template, tokenizer.pad_token = template, UNKNOWN
    tokenizer.save_pretrained(folder)
    return tokenizer


def write_bpe(folder: Path, lines: Iterable[str], num_tokens: int, template: str, rule: str) -> Any:
    """Train a tokenizer of BPE on bytes and write it into a folder.

    Args:
        folder: an existing one.
        lines: text to learn from.
        num_tokens: size of the vocabulary.
        template: chat template.
        rule: `LLAMA_3` or `QWEN`. That of Qwen has no begin token, as Qwen's own.

    Returns:
        The tokenizer.
    """
    if rule == QWEN:
        tokenizer: Any = Qwen2Tokenizer()
        inner = tokenizer.backend_tokenizer
    else:
        inner = Tokenizer(models.BPE())
        split = pre_tokenizers.Split(Regex(_LLAMA_3_RULE), behavior="isolated")
        inner.pre_tokenizer = pre_tokenizers.Sequence(
            [split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        inner.decoder = decoders.ByteLevel()
    words = [BEGIN, UNKNOWN, START, END]
    inner.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=num_tokens,
            special_tokens=words,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    if rule == QWEN:
        stored = json.loads(inner.to_str())["model"]
        merges: Any = [tuple(pair) for pair in stored["merges"]]
        tokenizer = Qwen2Tokenizer(stored["vocab"], merges, unk_token=UNKNOWN, eos_token=END, pad_token=UNKNOWN)
        tokenizer.add_tokens(words, special_tokens=True)
    else:
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, bos_token=BEGIN, eos_token=END, unk_token=UNKNOWN, pad_token=UNKNOWN
        )
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    return tokenizer


def named_converter(folder: Path, real: Path, rule: str) -> Path:
    """Write a converter that takes each BPE tokenizer as one of a rule. Returns the folder for `LLAMA_CPP_DIR`.

    Args:
        folder: a new one.
        real: llama.cpp's `convert_hf_to_gguf.py`.
        rule: llama.cpp's name of the rule.
    """
    folder.mkdir(parents=True)
    text = _CONVERTER.format(real=str(real), folder=str(real.parent), rule=rule)
    (folder / real.name).write_text(text, encoding="utf-8")
    (folder / "conversion").symlink_to(real.parent / "conversion")
    return folder
