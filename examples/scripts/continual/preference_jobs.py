"""Jobs of `preference_learning.py`, done by workers one after the other: teach the tasks, learn from pairs, measure."""

import gc
import json
import math
import random
import shutil
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from continual.job import merged, protection, remove, train
from continual.measure import accuracies, load, text_loss
from continual.methods import Method
from continual.study import Study, as_rows, write_rows

START_RATE = 2e-4
"""Learning rate of the tasks, at which full fine-tuning learned most of them (docs/osft_evidence.md)."""

TRAINED_BY = {
    "dpo": Method("sft"),
    "lora_dpo": Method("lora_sft"),
    "osft_dpo": Method("activations:strength=56,texts=50,embeddings=1"),
}
"""What trains in each algorithm. The last one protects 100 rows of each task and the beginnings of 50 documents."""

SAMPLES = ("eval_likelier", "eval_accuracy", "eval_margin", "eval_logp_chosen", "eval_logp_rejected", "eval_loss")


@dataclass(frozen=True)
class PairJob:
    """One job: a start (a model that is taught the tasks), or learning from pairs beginning at it."""

    seed: int
    algo: str | None = None
    """None: a start."""

    pairs: str = ""
    """Name of the pairs."""

    rate: float = START_RATE
    loss: str = "dpo"

    @property
    def name(self) -> str:
        if self.algo is None:
            return f"start-seed{self.seed}"
        return f"{self.pairs}-{self.algo}-{self.loss}-{self.rate:g}-seed{self.seed}"


@dataclass(frozen=True)
class PairStudy:
    """What all jobs share."""

    study: Study
    pairs: dict[str, list[str]]
    """Training and test file of the pairs by name."""

    pair_batch: int
    folder: str

    def start(self, seed: int) -> Path:
        """Folder of the model that was taught the tasks with this seed."""
        return Path(self.folder) / "starts" / str(seed)


def teach(asked: PairStudy, seed: int, folder: Path) -> dict[str, Any]:
    """Train all weights on the rows of all tasks at once, and keep the model."""
    study = asked.study
    rows = [row for task in study.tasks for row in study.read(task)]
    random.Random(seed).shuffle(rows)
    data = write_rows(folder / "tasks.jsonl", as_rows(rows))
    trained = train(study, Method("sft"), study.model, data, START_RATE, seed, folder)
    result = {"train_loss": trained.train_loss} | measured(asked, str(trained.model_path))
    kept = asked.start(seed)
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(trained.model_path, kept)
    return result


def prefer(asked: PairStudy, job: PairJob, folder: Path) -> dict[str, Any]:
    """Learn from pairs, beginning at a start, and measure the pairs before and after, and the tasks and the text after."""
    import torch

    from hub import run

    assert job.algo is not None
    method, start = TRAINED_BY[job.algo], str(asked.start(job.seed))
    _, options = method.of_the_hub()
    options |= {"label_smoothing": 0.001} if job.loss == "exo" else {}  # it has no target without
    if torch.cuda.is_available():
        options |= {"max_tokens_per_gpu": 8192, "gradient_checkpointing": "none"}
    if method.protects_data:
        options |= protection(asked.study, method, folder, list(asked.study.tasks), start, job.seed)
    train_file, test_file = asked.pairs[job.pairs]
    trained = run(
        job.algo, model=start, data=train_file, eval_path=test_file, loss=job.loss, learning_rate=job.rate, seed=job.seed,
        num_epochs=1, effective_batch_size=asked.pair_batch, torch_compile="none", mode="inline", output_dir=folder / "runs",
        log_every_steps=10, **options,
    )  # fmt: skip
    first, last = trained.metrics[0], trained.metrics[-1]
    result = {f"{name}_before": first.get(f"{name}_before") for name in SAMPLES} | {name: last.get(name) for name in SAMPLES}
    result |= {"steps": last["step"], "train_loss": trained.train_loss}
    model = merged(trained, folder / "merged") if job.algo == "lora_dpo" else str(trained.model_path)
    gc.collect()
    result |= measured(asked, model)
    remove(model)
    return result


def measured(asked: PairStudy, model: str) -> dict[str, Any]:
    """Measure the tasks, by answers that are right and answers that contain the right one, and the loss on text."""
    from transformers import AutoTokenizer

    tokenizer, network = AutoTokenizer.from_pretrained(asked.study.model), load(model)
    strict, containing = accuracies(asked.study, tokenizer, network)
    return {"strict": strict, "containing": containing, "text_loss": text_loss(asked.study, tokenizer, network)}


def done(asked: PairStudy, job: PairJob) -> dict[str, Any]:
    """Do a job, and return its line of the results."""
    import torch

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(dir=asked.folder, prefix=".run-") as name:
        result = teach(asked, job.seed, Path(name)) if job.algo is None else prefer(asked, job, Path(name))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    values = {key: None if isinstance(value, float) and not math.isfinite(value) else value for key, value in result.items()}
    return {"job": job.name, **asdict(job), **values, "seconds": round(time.monotonic() - begun, 1)}


def work() -> None:
    """Do the jobs that the parent writes to the standard input, a line of JSON each. The result of each is a file."""
    values = json.loads(sys.stdin.readline())
    asked = PairStudy(**(values | {"study": Study(**values["study"])}))
    for line in sys.stdin:
        order = json.loads(line)
        target, job = Path(order["file"]), PairJob(**order["job"])
        try:
            result = done(asked, job)
        except Exception as error:
            traceback.print_exc()
            result = {"job": job.name, "failure": f"{type(error).__name__}: {error}"}
        aside = target.with_suffix(".part")
        aside.write_text(json.dumps(result), encoding="utf-8")
        aside.rename(target)
