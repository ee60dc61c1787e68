"""One job in a separate process: the search for a learning rate on the first task, or training on all tasks in order."""

import gc
import json
import math
import random
import tempfile
import time
from itertools import accumulate
from pathlib import Path
from typing import Any

from continual.measure import accuracies, load, text_loss
from continual.methods import Method
from continual.study import DOCUMENT_TOKENS, Study, as_rows, chosen, rows_of, write_rows
from hub import DivergedError, run

MOST_REPLAYED = 0.8
"""Maximum fraction of a task's tokens that rows of earlier tasks may take. The rest is for new ones."""


def train(study: Study, method: Method, model: str, data: str, rate: float, seed: int, folder: Path, **options: Any) -> Any:
    """Train on one task in this process."""
    import torch

    algo, own = method.of_the_hub()
    if torch.cuda.is_available():
        # Enough for a whole batch of short samples, and small enough for several runs on the same GPU.
        own |= {"max_tokens_per_gpu": 8192, "gradient_checkpointing": "none"}
    return run(
        algo, model=model, data=data, learning_rate=rate, seed=seed, num_epochs=method.options.get("epochs", study.epochs),
        effective_batch_size=study.batch, torch_compile="none", mode="inline", output_dir=folder / "runs", log_every_steps=10,
        **{**own, **options},
    )  # fmt: skip


def search(study: Study, method: Method, rate: float, folder: Path) -> dict[str, Any]:
    """Train on a part of the first task and measure the loss on the rest of its training rows."""
    rows = study.read(next(iter(study.tasks)))
    held_out = max(4, min(200, len(rows) // 5))
    options: dict[str, Any] = {"eval_path": write_rows(folder / "held_out.jsonl", as_rows(rows[-held_out:]))}
    options |= protection(study, method, folder, [], study.model, 0) if method.protects_data else {}
    data = write_rows(folder / "train.jsonl", as_rows(rows[:-held_out]))
    try:
        loss = train(study, method, study.model, data, rate, 0, folder, **options).eval_loss
    except DivergedError as error:
        return {"loss": None, "error": str(error)}
    return {"loss": loss if math.isfinite(loss) else None}


def protection(study: Study, method: Method, folder: Path, earlier: list[str], model: str, seed: int) -> dict[str, Any]:
    """Return the options for the protected data: rows of earlier tasks, and general text."""
    from transformers import AutoTokenizer

    if method.by_covariances and earlier:
        return {"protect_from": model}
    tokenizer = AutoTokenizer.from_pretrained(study.model)
    texts = [row["text"] for row in rows_of(study.text[0])[: method.texts]]
    cut = [tokenizer.decode(tokenizer(text)["input_ids"][:DOCUMENT_TOKENS], skip_special_tokens=True) for text in texts]
    files = [write_rows(folder / "text.jsonl", [{"text": text} for text in cut if text])]
    for task in earlier:
        files.append(write_rows(folder / f"protect-{task}.jsonl", as_rows(chosen(study, task, method.protect, seed))))
    given: dict[str, Any] = {"protect_data": files}
    if method.kind == "activations" and not method.by_covariances:
        given["protect_from"] = "none"
    return given


def through_all_tasks(study: Study, method: Method, rate: float, seed: int, folder: Path, so_far: Path) -> dict[str, Any]:
    """Train on the tasks one after another, and measure after each. What is measured is written to a file each time."""
    import torch
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(study.model)
    names, model, earlier = list(study.tasks), study.model, ""
    result: dict[str, Any] = {"strict": [], "containing": [], "text_loss": [], "train_loss": [], "tokens": []}

    def measure(also_tasks: bool = True) -> None:
        network = load(model)
        result["text_loss"].append(text_loss(study, tokenizer, network))
        if also_tasks:
            strict, containing = accuracies(study, tokenizer, network)
            result["strict"].append(strict)
            result["containing"].append(containing)
        so_far.write_text(json.dumps(result), encoding="utf-8")

    measure(also_tasks=method.kind == "untrained")
    for number, task in enumerate(names if method.kind != "untrained" else []):
        rows = study.read(task)
        tokens = [len(tokenizer.apply_chat_template(row, return_dict=True)["input_ids"]) for row in rows]
        if method.kind == "replay":
            rows, tokens = with_replay(study, method, tokenizer, rows, tokens, names[:number], seed)
        options: dict[str, Any] = {}
        if method.protects_data:
            options |= protection(study, method, folder, names[:number], model, seed)
        if method.kind == "osft" and number:
            options["cache"] = False  # the directions of these weights are used only once
        if method.kind == "protected" and number:
            options["protect"] = earlier
        data = write_rows(folder / f"train-{task}.jsonl", as_rows(rows))
        trained = train(study, method, model, data, rate, seed, folder, **options)
        before, model, earlier = model, str(trained.model_path), str(trained.run_path)
        if method.kind in ("lora_sft", "protected"):
            model = merged(trained, folder / f"merged-{task}")
        if number:
            remove(before)
        result["train_loss"].append(trained.train_loss)
        result["tokens"].append(round(sum(tokens) * method.options.get("epochs", study.epochs)))
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        measure()
    return result


def with_replay(
    study: Study, method: Method, tokenizer: Any, rows: list[Any], tokens: list[int], earlier: list[str], seed: int
) -> tuple[list[Any], list[int]]:
    """Return rows of earlier tasks, and as many new ones as keep the number of tokens."""
    old = [row for task in earlier for row in chosen(study, task, method.protect, seed)]
    random.Random(seed).shuffle(old)
    old_tokens = [len(tokenizer.apply_chat_template(row, return_dict=True)["input_ids"]) for row in old]
    num_old = num_within(old_tokens, MOST_REPLAYED * sum(tokens))
    num_new = num_within(tokens, sum(tokens) - sum(old_tokens[:num_old]))
    return old[:num_old] + rows[:num_new], old_tokens[:num_old] + tokens[:num_new]


def num_within(tokens: list[int], bound: float) -> int:
    """Return how many of the first rows have at most `bound` tokens in total."""
    return sum(total <= bound for total in accumulate(tokens))


def merged(trained: Any, folder: Path) -> str:
    """Merge the adapter of a run into its base model, and save the dense model."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    cuda = torch.cuda.is_available()
    base = AutoModelForCausalLM.from_pretrained(trained.base_model_path, dtype=torch.float32)
    model = PeftModel.from_pretrained(base.to("cuda" if cuda else "cpu"), trained.model_path)
    model.merge_and_unload().to(torch.bfloat16 if cuda else torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(trained.model_path).save_pretrained(folder)
    return str(folder)


def remove(model: str) -> None:
    for file in Path(model).glob("*.safetensors"):
        file.unlink()


def one_job(text: str) -> None:
    """Run the job that a child process gets as JSON."""
    asked = json.loads(text)
    study, method, target = Study(**asked["study"]), Method(asked["method"]), Path(asked["file"])
    begun = time.monotonic()
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".run-") as name:
        folder = Path(name)
        if asked["seed"] is None:
            result = search(study, method, asked["rate"], folder)
        else:
            so_far = target.with_suffix(".so_far")
            result = through_all_tasks(study, method, asked["rate"], asked["seed"], folder, so_far)
            so_far.unlink()
            result |= {"tasks": list(study.tasks), "seed": asked["seed"]}
    result |= {"method": method.name, "learning_rate": asked["rate"], "seconds": round(time.monotonic() - begun, 1)}
    aside = target.with_suffix(".part")
    aside.write_text(json.dumps(result, indent=1), encoding="utf-8")
    aside.rename(target)
