"""Train an architecture by an algorithm, and compare with plain transformers, PEFT and an independent training loop.

    PYTHONPATH=tests python -m zoo.examine                            every architecture by every algorithm, as a table
    PYTHONPATH=tests python -m zoo.examine lora_sft,osft mamba,jamba  some of them
    PYTHONPATH=tests python -m zoo.examine sft all model.dtype=bfloat16   with other options of the run

`make zoo` runs the first. The exit code is 1 if anything in the table is not as expected.
"""

import contextlib
import io
import json
import sys
import tempfile
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from peft import PeftModel
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer
from zoo.zoo import MULTIMODAL, TEXT, processes, zoo_model

from hub import compose
from hub.compose import runfile
from hub.config.schema import RunConfig
from hub.data.prepare import Prepared, prepare
from hub.errors import HubError
from hub.launch.launcher import launch
from hub.protection import selfmade
from hub.result import Outcome, Result
from hub.tasks.train import train
from hub.train.batch.split import epoch_order

ALGORITHMS = ("sft", "lora_sft", "osft")
STEPS = 3
BATCH = 8

REFUSED: dict[tuple[str, str], str] = {}
"""(architecture, algorithm) -> part of the line with which a run is refused, where that is expected."""

PADDED = {
    "llama": False, "gemma2": False, "gpt2": False, "phi3_longrope": False, "gemma3": False, "qwen3": False, "mixtral": False,
    "deepseek_v2": False, "qwen3_moe": False, "gpt_oss": True, "falcon_h1": True, "zamba": True,
}  # fmt: skip
"""Whether samples are padded: packed they would see each other, since sinks need eager attention, and a state runs on.

Of the architectures of presets, and some that need care.
"""

LOSS_TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2}
"""Largest difference of a loss from the independent computation in float32, relative to the loss, by `model.dtype`."""


@dataclass
class Examined:
    """One architecture trained by one algorithm. Losses are means per token; differences are absolute."""

    name: str
    algo: str
    before: float = float("nan")
    """Held-out loss before training."""

    after: float = float("nan")
    base: float = float("nan")
    """Difference of the held-out loss before training from plain transformers."""

    steps: float = float("nan")
    """Largest difference of a step's loss from the independent loop. NaN for osft, which has none."""

    saved: float = float("nan")
    """Difference of the held-out loss after training from the saved model's, loaded by plain transformers or PEFT."""

    merged: float = float("nan")
    """Difference of the held-out loss after training from that of the merged adapter, loaded by plain transformers."""

    packed: str = ""
    """Whether samples are packed, and the measured leak."""

    trained: str = ""
    """Parameters that train, of how many."""

    refused: str = ""
    problem: str = ""

    def line(self) -> str:
        """One line of the table."""
        head = f"{'BAD' if self.problem else 'ref' if self.refused else 'ok':<4}{self.name:18}{self.algo:9}"
        if self.refused or self.trained == "":
            return f"{head} {self.problem or self.refused}"
        figures = (self.base, self.steps, self.saved, self.merged)
        words = " ".join(f"{figure:8.1e}" if figure == figure else f"{'-':>8}" for figure in figures)
        return f"{head} {self.before:7.4f} {self.after:7.4f} {words}  {self.trained:>15}  {self.packed} {self.problem}".rstrip()


HEAD = (
    f"{'':4}{'architecture':18}{'algorithm':9} {'before':>7} {'after':>7} {'base':>8} {'steps':>8} {'saved':>8} {'merged':>8}"
)


def examine(name: str, algo: str, folder: Path, *overrides: str) -> Examined:
    """Train `STEPS` steps in float32 in this process, and compare.

    Args:
        name: an architecture of the zoo.
        algo: sft, lora_sft or osft.
        folder: receives the run.
        overrides: more options of the run.
    """
    found = Examined(name, algo)
    start: dict[str, torch.Tensor] = {}

    def fit(setup: Any, recipe: Any, measurements: Any) -> Outcome:
        start.update({n: p.detach().clone() for n, p in recipe.model.named_parameters() if p.requires_grad})
        return original(setup, recipe, measurements)

    original, path = train.fit, zoo_model(name)
    try:
        # A few tokens of each model's own text are enough to see that it can be asked for them.
        few = mock.patch.multiple(selfmade, TOKENS_PER_DIRECTION=1, LEAST_TOKENS=128)
        with contextlib.redirect_stdout(io.StringIO()), mock.patch.object(train, "fit", fit), few:
            result = launch(compose(*_run_of(algo, path, folder), *overrides))
    except HubError as error:
        found.refused = str(error)
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        found.problem = f"{type(error).__name__}: {str(error)[:200]} ({frame.filename}:{frame.lineno})"
    else:
        try:
            _compare(found, result, start, path)
        except Exception as error:
            found.problem = f"in the comparison: {type(error).__name__}: {error}"[:400]
    expected = REFUSED.get((name, algo))
    if found.refused and not (expected and expected in found.refused):
        found.problem = f"refused: {found.refused}"
    elif expected and not found.refused and not found.problem:
        found.problem = "not refused, though that is expected"
    return found


def _run_of(algo: str, path: Path, folder: Path) -> list[str]:
    return [
        f"algo={algo}", f"model.path={path}", "data=tiny", "launch=inline", "model.dtype=float32", f"output_dir={folder}",
        f"algo.max_steps={STEPS}", f"algo.effective_batch_size={BATCH}", "algo.learning_rate=1e-2",
    ]  # fmt: skip


def _compare(found: Examined, result: Result, start: dict[str, torch.Tensor], path: Path) -> None:
    cfg = runfile.read(result.run_path / "run.yaml")
    plan = json.loads((result.run_path / "plan.json").read_text(encoding="utf-8"))
    data = prepare(cfg, AutoTokenizer.from_pretrained(result.model_path), None)
    found.trained = f"{plan['trainable_parameters']}/{plan['parameters']}"
    found.packed = ("packed " if plan["packed"] else "padded ") + plan["packed_because"].rpartition("measured leak ")[2].rstrip(
        ")"
    )
    assert result.eval_loss is not None
    assert result.eval_loss_before is not None
    found.before, found.after = result.eval_loss_before, result.eval_loss
    base = plain_model(path)
    found.base = abs(held_out_loss(base, data) - result.eval_loss_before)
    if found.algo == "lora_sft":
        trained: torch.nn.Module = PeftModel.from_pretrained(base, result.model_path).eval()
        found.saved = abs(held_out_loss(trained, data) - result.eval_loss)
        found.merged = abs(held_out_loss(trained.merge_and_unload(), data) - result.eval_loss)
        again = PeftModel.from_pretrained(plain_model(path), result.model_path, is_trainable=True)
    else:
        trained = plain_model(result.model_path)
        found.saved = abs(held_out_loss(trained, data) - result.eval_loss)
        again = plain_model(path)
    if found.algo != "osft":
        found.steps = _largest_difference(again, start, result, cfg, data)
    _judge(found, path, result, LOSS_TOLERANCE[cfg.model.dtype])


def _judge(found: Examined, path: Path, result: Result, tolerance: float) -> None:
    limit = tolerance * max(found.before, found.after)
    problems = [f"{what} differs" for what in ("base", "steps", "saved", "merged") if getattr(found, what) > limit]
    if found.packed.startswith("padded") != PADDED.get(found.name, found.packed.startswith("padded")):
        problems.append("not packed" if found.packed.startswith("padded") else "packed")
    if abs(found.after - found.before) < 1e-3:
        problems.append("the loss did not move")
    if found.algo != "lora_sft" and _kind_of(path) != _kind_of(result.model_path):
        problems.append(f"{_kind_of(path)} became {_kind_of(result.model_path)}")
    found.problem = ", ".join(problems)


def _kind_of(folder: Path) -> object:
    return json.loads((folder / "config.json").read_text(encoding="utf-8"))["architectures"]


def plain_model(folder: Path) -> torch.nn.Module:
    """A model in float32 as plain transformers loads it, in evaluation mode."""
    config = AutoConfig.from_pretrained(folder)
    loader = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    own = {"attn_implementation": "eager"} if getattr(config, "attn_logit_softcapping", None) else {}
    model: torch.nn.Module = loader.from_pretrained(folder, dtype=torch.float32, **own).eval()
    return model


def sample_loss(model: torch.nn.Module, sample: Any) -> tuple[torch.Tensor, int]:
    """The summed loss of one sample alone, and its number of tokens with loss."""
    _forget_lengths(model)
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None]
    labels = torch.where(torch.from_numpy(sample.loss_mask), ids[0], -100)[1:]
    logits = model(input_ids=ids, use_cache=False).logits[0, :-1].float()
    return F.cross_entropy(logits, labels, reduction="sum"), int((labels != -100).sum())


def _forget_lengths(model: torch.nn.Module) -> None:
    """Dynamic NTK keeps the frequencies of the longest sample so far. Take those of a fresh model."""
    for module in model.modules():
        if getattr(module, "rope_type", None) == "dynamic":
            module.inv_freq, module.max_seq_len_cached = module.original_inv_freq, module.original_max_seq_len


@torch.no_grad()
def held_out_loss(model: torch.nn.Module, data: Prepared) -> float:
    """The loss on the evaluation set, one sample at a time."""
    losses = [sample_loss(model, sample) for sample in data.evaluation]
    return float(sum(loss.item() for loss, _ in losses)) / sum(count for _, count in losses)


def _largest_difference(
    model: torch.nn.Module, start: dict[str, torch.Tensor], result: Result, cfg: RunConfig, data: Prepared
) -> float:
    """Train from the same start on the same samples, one at a time, with AdamW and clipping. Compare each step's loss."""
    weights = dict(model.named_parameters())
    for name, parameter in weights.items():
        parameter.requires_grad_(name in start)
        if name in start:
            parameter.data.copy_(start[name])
    if missing := start.keys() - weights.keys():
        return float("inf") if missing else 0.0
    model.train()
    trained = [weights[name] for name in start]
    optimizer = torch.optim.AdamW(trained, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0)
    lines = [json.loads(line) for line in (result.run_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    order = epoch_order(len(data.train), cfg.algo.seed, 0)
    worst = 0.0
    for number, line in enumerate(lines):
        batch = [data.train[i] for i in order[number * BATCH : (number + 1) * BATCH]]
        total = sum(int(sample.loss_mask[1:].sum()) for sample in batch)
        optimizer.zero_grad()
        loss = 0.0
        for sample in batch:
            part = sample_loss(model, sample)[0] / total
            part.backward()
            loss += part.item()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        for group in optimizer.param_groups:
            group["lr"] = line["learning_rate"]
        optimizer.step()
        worst = max(worst, abs(loss - line["loss"]))
    return worst


def _examine_aside(job: tuple[str, str, list[str]]) -> Examined:
    name, algo, overrides = job
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        return examine(name, algo, Path(folder), *overrides)


def table(algorithms: list[str], names: list[str], overrides: list[str]) -> bool:
    """Print the table, two architectures at a time. Returns whether all is as expected."""
    print(HEAD)
    jobs = [(name, algo, overrides) for name in names for algo in algorithms]
    with processes() as pool:
        results: Iterator[Examined] = pool.imap(_examine_aside, jobs)
        good = True
        for found in results:
            print(found.line(), flush=True)
            good &= not found.problem
    return good


if __name__ == "__main__":
    words = sys.argv[1:]
    chosen = words[0].split(",") if words else list(ALGORITHMS)
    architectures = words[1].split(",") if len(words) > 1 and words[1] != "all" else [*TEXT, *MULTIMODAL]
    sys.exit(0 if table(chosen, architectures, words[2:]) else 1)
