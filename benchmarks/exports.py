"""Measure each exporter on the architecture of each model preset: tiny random models, tuned by real runs, exported and checked.

python -m benchmarks.exports                                  # all families, width 256 and 288, LoRA. An hour on 2 cores
python -m benchmarks.exports --families phi3,gpt_oss --widths 256 --algorithms lora_sft,sft,osft
python -m benchmarks.exports --compressed /envs/llmc/bin/python --families llama_3_2

Results are kept in `--out`, a file for each model, so a table that was broken off goes on where it ended. It needs the extra
`gguf`. Tokenizers are made here too; those of BPE are named to llama.cpp's converter, which knows only those of real models.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from transformers import AutoConfig, AutoModelForCausalLM

import hub
from benchmarks.made_tokenizers import LLAMA_3, QWEN, named_converter, write_bpe, write_sentencepiece
from hub.errors import HubError, Interrupted
from hub.tasks.export.gguf.converter import converter_script
from hub.testing import write_chats

WIDTHS = (256, 288)
"""A width that blocks of 256 weights divide, and one that they do not."""

HEADS = 4
VOCAB = 520
SENTENCEPIECE = "sentencepiece"
TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""Begins with the begin token, as the templates of Mistral and Gemma do."""

TIED = {"tie_word_embeddings": True}
TWO_KINDS = ["sliding_attention", "full_attention"]
Config = dict[str, Any]


def _experts(width: int) -> Config:
    return {"num_local_experts": 4, "num_experts_per_tok": 2, "intermediate_size": width}


def _long_rope(width: int) -> Config:
    count = width // HEADS // 2
    factors = [1.0 + 0.02 * number for number in range(count)]
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": factors,
        "long_factor": [4.0 * factor for factor in factors],
        "original_max_position_embeddings": 4096,
    }
    return {"max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_parameters": rope}


def _yarn(truncate: bool) -> Config:
    rope = {"rope_type": "yarn", "rope_theta": 150000.0, "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0}
    return {"rope_parameters": rope | {"original_max_position_embeddings": 4096, "truncate": truncate}}


_LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_DEEPSEEK_ROPE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 40.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "mscale": 0.707,
    "mscale_all_dim": 0.707,
    "original_max_position_embeddings": 4096,
}


def _families(width: int) -> dict[str, tuple[str, str, Config]]:
    """Name -> architecture, tokenizer, and what its config has beside the common sizes, as the presets have it."""
    head = width // HEADS
    gpt_oss = _experts(width) | {"head_dim": 64, "sliding_window": 128, "layer_types": TWO_KINDS}
    gemma2 = {"head_dim": head, "query_pre_attn_scalar": head, "sliding_window": 64, "layer_types": TWO_KINDS} | TIED
    deepseek = {
        "num_key_value_heads": HEADS,
        "first_k_dense_replace": 1,
        "n_routed_experts": 4,
        "n_shared_experts": 2,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": width,
        "q_lora_rank": None,
        "kv_lora_rank": 64,
        "qk_nope_head_dim": 32,
        "qk_rope_head_dim": 16,
        "v_head_dim": 32,
        "topk_method": "greedy",
        "rope_parameters": _DEEPSEEK_ROPE,
        "max_position_embeddings": 163840,
    }
    granite = {
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_multiplier": 1 / head,
        "logits_scaling": 2.0,
        "tie_word_embeddings": True,
    }
    return {
        "llama_3": ("llama", LLAMA_3, {"rope_theta": 500000.0}),
        "llama_3_1": ("llama", LLAMA_3, {"rope_parameters": _LLAMA3_ROPE, "max_position_embeddings": 131072}),
        "llama_3_2": (
            "llama",
            LLAMA_3,
            {
                "rope_parameters": _LLAMA3_ROPE | {"factor": 32.0},
                "max_position_embeddings": 131072,
                "tie_word_embeddings": True,
            },
        ),
        "yi": ("llama", SENTENCEPIECE, {"rope_theta": 5000000.0}),
        "mistral": ("mistral", SENTENCEPIECE, {"sliding_window": None, "head_dim": head}),
        "mixtral": ("mixtral", SENTENCEPIECE, _experts(width) | {"sliding_window": None}),
        "qwen2": ("qwen2", QWEN, {}),
        "qwen3": ("qwen3", QWEN, {"head_dim": head}),
        "gemma2": ("gemma2", SENTENCEPIECE, gemma2 | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}),
        "granite": ("granite", LLAMA_3, granite),
        "phi3": ("phi3", SENTENCEPIECE, {"sliding_window": 2047, "max_position_embeddings": 4096}),
        "phi3_5": ("phi3", SENTENCEPIECE, _long_rope(width) | {"sliding_window": 262144}),
        "phi3_5_llama": ("llama", SENTENCEPIECE, _long_rope(width)),
        "deepseek_v2": ("deepseek_v2", LLAMA_3, deepseek),
        "gpt_oss": ("gpt_oss", LLAMA_3, gpt_oss | _yarn(truncate=False)),
        "gpt_oss_truncated": ("gpt_oss", LLAMA_3, gpt_oss | _yarn(truncate=True)),
        "gemma3_text": ("gemma3_text", SENTENCEPIECE, gemma2),
    }


FAMILIES = tuple(_families(WIDTHS[0]))
EXTRA = ("gpt_oss_truncated", "gemma3_text")
"""Of no preset: made only if they are named."""

COLUMNS = (
    "merged bfloat16", "merged float32", "gguf f16", "gguf q8_0", "gguf q4_k_m", "gguf q4_k_m imatrix", "ollama",
    "compressed w8a8_fp8",
)  # fmt: skip


def write_model(family: str, width: int, folder: Path) -> Path:
    """Write a random model in bfloat16 with weights large enough that each shows, and its tokenizer.

    Args:
        family: one of `FAMILIES`.
        width: hidden size.
        folder: a new one.
    """
    architecture, kind, values = _families(width)[family]
    folder.mkdir(parents=True)
    if kind == SENTENCEPIECE:
        tokenizer = write_sentencepiece(folder, _lines(), VOCAB, TEMPLATE)
    else:
        tokenizer = write_bpe(folder, _lines(), VOCAB, TEMPLATE, kind)
    common: Config = {
        "vocab_size": len(tokenizer),
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "max_position_embeddings": 8192,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "tie_word_embeddings": False,
    }
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(architecture, **common | values), dtype=torch.float32)
    for name, weight in model.named_parameters():
        if weight.ndim > 1 or "bias" in name or "sinks" in name:
            of_words = (2.0 if model.config.tie_word_embeddings else 5.0) if "embed" in name else 1.5
            torch.nn.init.normal_(weight, std=of_words * weight.shape[-1] ** -0.5)
        else:
            weight.data += 0.1 * torch.randn_like(weight)
    model.to(torch.bfloat16).save_pretrained(folder)
    return folder


def _lines() -> list[str]:
    """Text that tokenizers are trained on: tiny chats and this file."""
    with tempfile.TemporaryDirectory() as folder:
        chats = write_chats(Path(folder) / "words.jsonl", num_rows=200).read_text(encoding="utf-8")
    return chats.splitlines() + Path(__file__).read_text(encoding="utf-8").splitlines()


def converter_for(family: str, folder: Path) -> dict[str, str]:
    """The environment in which a family's tokenizer is known to the converter. `folder` is a new one."""
    rule = _families(WIDTHS[0])[family][1]
    if rule == SENTENCEPIECE:
        return {}
    return {"LLAMA_CPP_DIR": str(named_converter(folder, converter_script(), rule))}


def tune(base: Path, algorithm: str, folder: Path) -> Path:
    """Train a base for a few steps at a high rate, as a real run of the hub. Returns the run folder."""
    options: Config = {"lora_sft": {"learning_rate": 1e-2, "lora_alpha": 32}}.get(algorithm, {"learning_rate": 3e-3})
    getattr(hub, algorithm)(
        model=base,
        data="tiny",
        eval_fraction=0.2,
        effective_batch_size=8,
        max_steps=6,
        dtype="float32",
        mode="inline",
        output_dir=folder,
        run_name=algorithm,
        **options,
    )
    return folder / algorithm


def calls(compressed: str | None, brief: bool) -> Iterator[tuple[Sequence[str], Config]]:
    """The columns that a call of `export` fills, and its options."""
    kinds = {"dtype": "bfloat16", "quant": ["f16", "q8_0", "q4_k_m"]}
    yield (("merged bfloat16", "gguf f16", "gguf q8_0", "gguf q4_k_m", "ollama"), {"to": ["merged", "gguf", "ollama"]} | kinds)
    if brief:
        return
    yield (("merged float32",), {"to": ["merged"], "dtype": "float32"})
    yield (("gguf q4_k_m imatrix",), {"to": ["gguf"], "quant": ["q4_k_m"], "imatrix": "train", "num_calibration_rows": 32})
    if compressed:
        options = {"to": ["compressed"], "scheme": ["w8a8_fp8"], "python": compressed, "num_calibration_rows": 16}
        yield (COLUMNS[-1:], options)


def measure(run: Path, known: dict[str, Any], wanted: Sequence[tuple[Sequence[str], Config]]) -> Iterator[dict[str, Any]]:
    """Export a run each way that is not known yet. Yields all results after each call."""
    for columns, options in wanted:
        if all(column in known for column in columns):
            continue
        try:
            found = hub.export(run=run, num_check_rows=16, num_check_tokens=512, force=True, **options)
            for one in found.exports:
                names = {"ollama": "ollama", "merged": "merged bfloat16"}
                column = columns[0] if len(columns) == 1 else names.get(one.exporter, f"{one.exporter} {one.kind}")
                known[column] = one.check or {"passed": True, "note": one.note}
                known[column]["bytes"] = one.num_bytes
        except Interrupted:
            raise
        except HubError as error:
            line = str(error)
            for column in columns:
                known.setdefault(column, {"passed": False, "error": line})
        shutil.rmtree(run / "exports", ignore_errors=True)
        yield known


def table(results: Mapping[tuple[str, int, str], Mapping[str, Any]]) -> str:
    """The results as a table in Markdown. Figures are KL(tuned || export) / KL(tuned || base)."""
    columns = [column for column in COLUMNS if any(column in found for found in results.values())]
    lines = ["| family | width | tuned by | KL(tuned \\|\\| base) | " + " | ".join(columns) + " |"]
    lines.append("| --- " * (4 + len(columns)) + "|")
    for (family, width, algorithm), found in results.items():
        base = next((one["kl_base"] for one in found.values() if one.get("kl_base")), None)
        first = f"| {family} | {width} | {algorithm} | {base:.2f} | " if base else f"| {family} | {width} | {algorithm} | | "
        lines.append(first + " | ".join(cell(found.get(column)) for column in columns) + " |")
    return "\n".join(lines)


def cell(one: Mapping[str, Any] | None) -> str:
    """A figure, in bold if it failed, or why there is none."""
    if one is None:
        return ""
    if "error" in one:
        return "refused"
    if "ratio" not in one:
        return "same prompts" if one["passed"] else "**other prompts**"
    figure = f"{one['ratio']:.2g}"
    return figure if one["passed"] else f"**{figure}**"


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", default=",".join(name for name in FAMILIES if name not in EXTRA))
    parser.add_argument("--widths", default=",".join(map(str, WIDTHS)))
    parser.add_argument("--algorithms", default="lora_sft")
    parser.add_argument("--compressed", metavar="PYTHON", help="Python of an environment that has llmcompressor")
    parser.add_argument("--brief", action="store_true", help="without merged float32, imatrix and compressed")
    parser.add_argument("--out", type=Path, default=Path("exports-table"))
    asked = parser.parse_args(words)
    results: dict[tuple[str, int, str], dict[str, Any]] = {}
    exports = list(calls(asked.compressed, asked.brief))
    wanted = [
        (family, int(width), algorithm)
        for width in asked.widths.split(",")
        for family in asked.families.split(",")
        for algorithm in asked.algorithms.split(",")
    ]
    for one in wanted:
        family, width, algorithm = one
        file = asked.out / f"{family}-{width}-{algorithm}.json"
        known: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        results[one] = known
        if all(column in known for columns, _ in exports for column in columns):
            continue
        begin, folder = time.monotonic(), asked.out / f"{family}-{width}"
        shutil.rmtree(folder, ignore_errors=True)
        base = write_model(family, width, folder / "base")
        run = tune(base.absolute(), algorithm, folder.absolute())
        with patch.dict(os.environ, converter_for(family, folder.absolute() / "converter")):
            for _ in measure(run, known, exports):
                file.write_text(json.dumps(known, indent=1), encoding="utf-8")
        shutil.rmtree(folder)
        print(table({one: known}).splitlines()[-1], f"{time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
    print(table(results))
    print(*(f"{name}: {line}" for name, line in refusals(results).items()), sep="\n")


def refusals(results: Mapping[tuple[str, int, str], Mapping[str, Any]]) -> dict[str, str]:
    """What was refused or failed its check, and the line on it."""
    lines = {}
    for (family, width, algorithm), found in results.items():
        for column, one in found.items():
            why = one.get("error") or (one.get("differs") if not one["passed"] else None)
            if why:
                lines[f"{family} {width} {algorithm} {column}"] = why
    return lines


if __name__ == "__main__":
    main()
