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

from hub import Result, run
from hub.compose import runfile
from hub.models.finished import finished_run
from hub.tasks.continual.measure import DOCUMENT_TOKENS, measure
from hub.tasks.continual.study import Row, Study, rows_of, write_rows

START_RATE = 2e-4
"""Learning rate of the tasks, at which full fine-tuning learned most of them (docs/osft_evidence.md)."""

OSFT = {"train_embeddings": True, "protect_samples": 512, "protect_from": "none"}
"""Options of `osft_dpo`, beside what it protects: rows of each task, and the beginnings of documents."""

PROTECTED_ROWS, PROTECTED_TEXTS = 100, 50

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

    text: str
    """File with documents, of which `osft_dpo` protects some."""

    batch: int
    epochs: float
    """Passes over the rows of the tasks."""

    pair_batch: int
    folder: str

    def start(self, seed: int) -> Path:
        """Folder of the model that was taught the tasks with this seed."""
        return Path(self.folder) / "starts" / str(seed)


def teach(asked: PairStudy, seed: int, folder: Path) -> dict[str, Any]:
    """Train all weights on the rows of all tasks at once, and keep the model."""
    study = asked.study
    rows = [{"messages": row["messages"]} for task in study.tasks for row in study.train_rows(task)]
    random.Random(seed).shuffle(rows)
    data = write_rows(folder / "tasks.jsonl", rows)
    trained = run(
        "sft", model=study.model["path"], data=data, learning_rate=START_RATE, seed=seed, num_epochs=asked.epochs,
        effective_batch_size=asked.batch, **_settings(folder),
    )  # fmt: skip
    result = {"train_loss": trained.train_loss} | measured(asked, trained)
    kept = asked.start(seed)
    shutil.rmtree(kept, ignore_errors=True)
    kept.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(str(trained.model_path), kept)
    return result


def prefer(asked: PairStudy, job: PairJob, folder: Path) -> dict[str, Any]:
    """Learn from pairs, beginning at a start, and measure the pairs before and after, and the tasks and the text after."""
    assert job.algo is not None
    start = asked.start(job.seed)
    options: dict[str, Any] = {"label_smoothing": 0.001} if job.loss == "exo" else {}  # it has no target without
    if job.algo == "osft_dpo":
        options |= OSFT | {"protect_data": protected(asked, folder, start, job.seed)}
    train_file, test_file = asked.pairs[job.pairs]
    trained = run(
        job.algo, model=start, data=train_file, eval_path=test_file, loss=job.loss, learning_rate=job.rate, seed=job.seed,
        num_epochs=1, effective_batch_size=asked.pair_batch, **_settings(folder), **options,
    )  # fmt: skip
    first, last = trained.metrics[0], trained.metrics[-1]
    result = {f"{name}_before": first.get(f"{name}_before") for name in SAMPLES} | {name: last.get(name) for name in SAMPLES}
    result |= {"steps": last["step"], "train_loss": trained.train_loss}
    gc.collect()
    return result | measured(asked, trained)


def _settings(folder: Path) -> dict[str, Any]:
    """Settings of all runs."""
    import torch

    found: dict[str, Any] = {"torch_compile": "none", "mode": "inline", "output_dir": folder / "runs", "log_every_steps": 10}
    if torch.cuda.is_available():
        # Enough for a whole batch of short samples, and small enough for several runs on the same GPU.
        found |= {"max_tokens_per_gpu": 8192, "gradient_checkpointing": "none"}
    return found


def protected(asked: PairStudy, folder: Path, model: Path, seed: int) -> list[str]:
    """Write what `osft_dpo` protects into a folder. Returns the files: of text, and of each task."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    texts = [row["text"] for row in rows_of(asked.text)[:PROTECTED_TEXTS]]
    cut = [tokenizer.decode(tokenizer(text)["input_ids"][:DOCUMENT_TOKENS], skip_special_tokens=True) for text in texts]
    files = {"text": [{"text": text} for text in cut if text]}
    for task in asked.study.tasks:
        rows: list[Row] = asked.study.train_rows(task)
        chosen = random.Random(seed).sample(rows, min(PROTECTED_ROWS, len(rows)))
        files[task] = [{"messages": row["messages"]} for row in chosen]
    return [str(write_rows(folder / f"protect-{name}.jsonl", rows)) for name, rows in files.items()]


def measured(asked: PairStudy, trained: Result) -> dict[str, Any]:
    """Measure the tasks, by answers that are right and answers that contain the right one, and the loss on text."""
    cfg = runfile.read(trained.run_path / "run.yaml")
    knows = measure(asked.study, cfg, finished_run(str(trained.run_path), "runs", cfg))
    return {"strict": [*knows.right.values()], "containing": [*knows.containing.values()], "text_loss": knows.text_loss}


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
