"""TRL's SFTTrainer, with flash-attn 2 and Liger if they are installed. Several GPUs by accelerate's FSDP2.

`trl` has its default of activation checkpointing in all layers. `trl_tuned` has none. In workloads for least memory it offloads
activations to the CPU.
"""

import os
import sys
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from benchmarks.peers import LORA_ALPHA, LORA_RANK, Peer, Task, step_log

FSDP = (
    "--use_fsdp", "--fsdp_version", "2", "--fsdp_auto_wrap_policy", "TRANSFORMER_BASED_WRAP",
    "--fsdp_transformer_layer_cls_to_wrap", "LlamaDecoderLayer", "--fsdp_reshard_after_forward", "true",
    "--fsdp_state_dict_type", "SHARDED_STATE_DICT", "--fsdp_cpu_ram_efficient_loading", "true",
    "--mixed_precision", "bf16",
)  # fmt: skip


def refuses(kind: str, gpus: int) -> str | None:
    if kind == "osft":
        return "it has no OSFT"
    return "accelerate's FSDP2 is not set up for 4-bit weights here" if gpus > 1 and kind == "qlora" else None


def command(task: Task, folder: Path) -> list[str]:
    words = ["-m", "benchmarks.peers.trl", str(folder)]
    if task.gpus == 1:
        return words
    checkpointing = ["--fsdp_activation_checkpointing", str(task.contender == "trl").lower()]
    processes = ["--num_processes", str(task.gpus), "--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0"]
    return ["-m", "accelerate.commands.launch", *FSDP, *checkpointing, *processes, *words]


def main(folder: Path) -> None:
    """Train, in the separate process."""
    task = Task.read(folder)
    import torch
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTConfig, SFTTrainer

    from benchmarks.peers import trainer

    cuda = torch.cuda.is_available()
    attention = "flash_attention_2" if cuda and find_spec("flash_attn") else "sdpa"
    liger = cuda and find_spec("liger_kernel") is not None
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    checkpointed = task.contender == "trl"
    offloaded = not checkpointed and task.least_memory and cuda
    # With FSDP accelerate does the checkpointing.
    asked = {"gradient_checkpointing": (checkpointed or offloaded) and task.gpus == 1, "activation_offloading": offloaded}
    # Before the model is loaded: it initializes the process group, which decides where weights are loaded.
    if task.pairs:
        _learn_preferences(task, folder, attention)
        return
    args = SFTConfig(**trainer.options(task, folder, task.micro_rows), **asked, use_liger_kernel=liger)
    load: dict[str, Any] = {"quantization_config": four_bit} if task.kind == "qlora" else {}
    if task.gpus == 1 and cuda:
        load["device_map"] = {"": 0}
    model = AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.bfloat16, attn_implementation=attention, **load)
    model.config.use_cache = False
    adapters = None
    if task.kind != "full":
        adapters = LoraConfig(
            task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, lora_dropout=0.0, target_modules="all-linear"
        )
    made = SFTTrainer(
        model=model,
        args=args,
        train_dataset=trainer.dataset(task, with_labels=True),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=adapters,
    )
    words = ["all layers checkpointed" if checkpointed or offloaded else "no checkpointing"]
    words += ["activations offloaded to the CPU"] if offloaded else []
    words += ["flash-attn 2" if attention != "sdpa" else "sdpa", *(["Liger"] if liger else [])]
    if task.kind == "full":
        words.append("fp32 weights" if task.gpus > 1 else "bf16 weights and moments")
    if task.gpus > 1:
        words.append("FSDP2" if made.is_fsdp_enabled else "DDP")
    trainer.train(made, task, folder, trainer.in_words(task, task.micro_rows, *words))


def _learn_preferences(task: Task, folder: Path, attention: str) -> None:
    """Train with DPOTrainer. `trl` as shipped: layers checkpointed. `trl_tuned`: none, references precomputed."""
    import json

    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import DPOConfig, DPOTrainer

    from benchmarks.peers import trainer

    class OnTheseTokens(DPOTrainer):  # type: ignore[misc]  # TRL has no types
        """TRL's trainer on rows that are tokens already."""

        def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
            return dataset

    tuned = task.contender == "trl_tuned"
    options = trainer.options(task, folder, task.micro_rows)
    for name in ("packing", "packing_strategy", "dataset_kwargs"):
        options.pop(name, None)
    options |= {
        "gradient_accumulation_steps": max(1, task.batch // (task.micro_rows * task.gpus)),
        "max_length": None,
        "beta": 0.1,
    }
    # With FSDP accelerate does the checkpointing.
    checkpointed = not tuned and task.gpus == 1
    args = DPOConfig(**options, gradient_checkpointing=checkpointed, precompute_ref_log_probs=tuned)
    load: dict[str, Any] = {"dtype": torch.bfloat16 if torch.cuda.is_available() else torch.float32}
    placed = {"device_map": {"": 0}} if torch.cuda.is_available() and task.gpus == 1 else {}
    load |= {"attn_implementation": attention, **placed}
    adapters = None
    if task.kind != "full":
        adapters = LoraConfig(task_type="CAUSAL_LM", r=LORA_RANK, lora_alpha=LORA_ALPHA, target_modules="all-linear")
    with open(task.rows, encoding="utf-8") as stream:
        rows = [json.loads(line) for line in stream]
    made = OnTheseTokens(
        model=AutoModelForCausalLM.from_pretrained(task.model, **load),
        ref_model=None if adapters or tuned else AutoModelForCausalLM.from_pretrained(task.model, **load),
        args=args,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(task.model),
        peft_config=adapters,
    )
    words = ["no checkpointing", "references precomputed"] if tuned else ["all layers checkpointed"]
    trainer.train(made, task, folder, ", ".join([f"{task.micro_rows} pairs, padded", *words, attention]))


_peer = partial(
    Peer, needs="trl", environment="trl", command=command, refuses=refuses, steps=step_log.steps, about=step_log.about
)
CONTENDERS = {"trl": _peer(title="TRL"), "trl_tuned": _peer(title="TRL, tuned")}

if __name__ == "__main__":
    main(Path(sys.argv[1]))
    sys.stdout.flush()
    os._exit(0)  # all figures are written, and a regular exit takes seconds
