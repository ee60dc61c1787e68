"""Compare the hub's log-likelihoods and answers with those of lm-eval's own hf model: seconds, ratio, differences.

python -m benchmarks.evaluation --model 1b                       # Llama 3.2 1B's shape with random weights
python -m benchmarks.evaluation --model smollm2_135m --json evaluation.json
python -m benchmarks.evaluation --model 1b --what generation     # answers only
python -m benchmarks.evaluation --model 135m --quick             # a check that takes less than a minute

Both answer the same multiple-choice requests with the same model on the same device, one after the other. Requests are made up,
with the lengths of known tasks: `hellaswag` (a context and four endings), `mmlu` (a question and four letters), `mmlu_5shot`
(the same behind five solved examples that a subject's questions share), `arc` (a short question and four short answers).
For answers: `short` (most end at once), `long` (all have as many tokens as are allowed), `mixed` (as GSM8K: five solved
examples, answers of 50 to 250 tokens). A model with random weights ends no answer by itself. So tokens that it generates
anyway are made ends, for all contenders, as many as give the lengths.
Seconds include tokenization, and for `auto` of lm-eval the search for its batch size. Needs lm-eval.
"""

import argparse
import contextlib
import io
import json
import logging
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.evaluation_answers import GENERATIONS, compare_answers
from benchmarks.shapes import SHAPES, made

Pair = tuple[str, str]


@dataclass(frozen=True)
class Workload:
    """Lengths of the requests of a task, in characters: with the benchmarks' own tokenizer a token each."""

    context: int
    end: int
    few_shot: int = 0
    """Characters in front of each question, which the questions of a subject share."""


# Mean lengths in tokens of Llama 3's tokenizer on the tasks' own data, about.
WORKLOADS = {
    "hellaswag": Workload(95, 28),
    "mmlu": Workload(110, 1),
    "mmlu_5shot": Workload(110, 1, 550),
    "arc": Workload(35, 6),
}
CHOICES = 4
QUESTIONS_OF_SUBJECT = 100
WARM_UP = 64
BATCHES: tuple[int | str, ...] = (8, 64, "auto")
CHECKED = 64
"""Requests whose log-likelihoods are compared in float32."""


def requests(workload: Workload, num_questions: int, per_token: float) -> list[Pair]:
    """Make up multiple-choice requests. The same in every call.

    Args:
        workload: mean lengths in tokens.
        num_questions: of `CHOICES` requests each.
        per_token: characters of a token.
    """
    draw = random.Random(0)

    def text(tokens: float) -> str:
        return " ".join(
            "".join(draw.choice("abcdefghijklmnopqrstuvwxyz") for _ in range(draw.randint(2, 8)))
            for _ in range(max(1, round(tokens * per_token / 6)))
        )

    pairs, shared = [], ""
    for number in range(num_questions):
        if workload.few_shot and number % QUESTIONS_OF_SUBJECT == 0:
            shared = f"{text(workload.few_shot)}\n\n"
        context = f"{shared}{text(workload.context * draw.lognormvariate(-0.1, 0.45))}"
        if workload.end == 1:
            ends = [f" {letter}" for letter in "ABCD"]
        else:
            ends = [f" {text(workload.end * draw.lognormvariate(-0.1, 0.45))}" for _ in range(CHOICES)]
        pairs += [(context, end) for end in ends]
    return pairs


def load(name: str, dtype: torch.dtype, device: torch.device) -> Any:
    """Load a shape with random weights, a folder or a preset of the hub."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from hub.tasks.loading import Loaded

    if name in SHAPES:
        folder = made(name)
    elif Path(name).is_dir():
        folder = Path(name)
    else:
        from hub import compose
        from hub.models.weights import local_weights

        folder = local_weights(compose(f"model={name}").model, print)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    model.to(device).eval()
    model.requires_grad_(False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return Loaded(name, model, tokenizer, device, dtype, model.config.max_position_embeddings, folder)


def contenders(loaded: Any, batches: tuple[int | str, ...]) -> dict[str, Callable[[], Any]]:
    """Name -> a function that makes the model of lm-eval."""
    from lm_eval.models.huggingface import HFLM

    from hub.tasks.evaluate.harness import HubLM

    found: dict[str, Callable[[], Any]] = {"hub": lambda: HubLM(loaded)}
    for batch in batches:
        found[f"lm-eval hf, batch {batch}"] = partial(
            HFLM, pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=batch
        )
    return found


def answered(make: Callable[[], Any], pairs: list[Pair]) -> tuple[list[tuple[float, bool]], float]:
    """Log-likelihoods of requests, and the seconds that they took, without those of a first few."""
    from lm_eval.api.instance import Instance

    instances = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(pairs)]
    with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
        make().loglikelihood(instances[: min(WARM_UP, len(instances) // 4)])
        lm = make()
        synchronize()
        begin = time.perf_counter()
        values = lm.loglikelihood(instances)
        synchronize()
        return values, time.perf_counter() - begin


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def compare(
    loaded: Any, name: str, num_questions: int, batches: tuple[int | str, ...], per_token: float
) -> list[dict[str, Any]]:
    """Run one workload by all contenders, and print a line for each as it comes."""
    pairs = requests(WORKLOADS[name], num_questions, per_token)
    rows: list[dict[str, Any]] = []
    ours: list[tuple[float, bool]] = []
    for who, make in contenders(loaded, batches).items():
        row: dict[str, Any] = {"workload": name, "requests": len(pairs), "who": who}
        try:
            values, seconds = answered(make, pairs)
        except (RuntimeError, ValueError) as error:
            print(f"| {name} | {len(pairs)} | {who} | failed: {str(error).splitlines()[0][:80]} | | |", flush=True)
            continue
        ours = ours or values
        row["seconds"] = seconds
        row["ratio"] = seconds / rows[0]["seconds"] if rows else 1.0
        row["difference"] = max(abs(a - b) for (a, _), (b, _) in zip(values, ours, strict=True))
        best = [[max(range(CHOICES), key=lambda i: part[i][0]) for part in chunked(found)] for found in (values, ours)]
        row["same_choice"] = sum(a == b for a, b in zip(*best, strict=True)) / len(best[0])
        rows.append(row)
        print(
            f"| {name} | {len(pairs)} | {who} | {seconds:.2f} | {row['ratio']:.2f} | {row['difference']:.1e} | "
            f"{row['same_choice']:.1%} |",
            flush=True,
        )
    return rows


def chunked(values: list[tuple[float, bool]]) -> list[list[tuple[float, bool]]]:
    """The values of each question."""
    return [values[place : place + CHOICES] for place in range(0, len(values), CHOICES)]


def check(name: str, device: torch.device, per_token: float) -> float:
    """The largest difference of log-likelihoods in float32."""
    loaded = load(name, torch.float32, device)
    worst = 0.0
    for workload in WORKLOADS.values():
        pairs = requests(workload, CHECKED // CHOICES // len(WORKLOADS), per_token)
        found = [answered(make, pairs)[0] for make in contenders(loaded, (1,)).values()]
        worst = max(worst, *(abs(a - b) for (a, _), (b, _) in zip(*found, strict=True)))
    return worst


def characters_per_token(loaded: Any) -> float:
    """How many characters of such texts a token of the model has."""
    ((text, _),) = requests(Workload(2000, 1), 1, 1.0)[:1]
    return len(text) / max(1, len(loaded.tokenizer(text)["input_ids"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="135m", help=f"{', '.join(SHAPES)}, a folder or a preset")
    parser.add_argument("--what", choices=("loglikelihood", "generation", "both"), default="both")
    parser.add_argument("--questions", type=int, help="of each workload (a GPU: 2000, and 256 to answer; a CPU: 16 and 32)")
    names = [*WORKLOADS, *GENERATIONS]
    parser.add_argument("--workloads", nargs="+", choices=names, default=names)
    parser.add_argument("--batches", nargs="+", default=list(map(str, BATCHES)), help="batch sizes of lm-eval's hf model")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), help="a GPU: bfloat16, a CPU: float32")
    parser.add_argument("--quick", action="store_true", help="few questions, batch 8 only, no check in float32")
    parser.add_argument("--json", type=Path, help="file for the figures")
    asked = parser.parse_args()
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from hub.tasks.loading import device_here

    device = device_here()
    on_gpu = device.type == "cuda"
    batches: tuple[int | str, ...] = tuple(int(word) if word.isdigit() else word for word in asked.batches)
    batches = batches[:1] if asked.quick else batches
    dtype = getattr(torch, asked.dtype or ("bfloat16" if on_gpu else "float32"))
    begin = time.perf_counter()
    loaded = load(asked.model, dtype, device)
    per_token = characters_per_token(loaded)
    where = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(f"{asked.model}, {dtype}, {where}, torch {torch.__version__}; loaded in {time.perf_counter() - begin:.0f} s\n")
    rows: list[dict[str, Any]] = []

    def keep(more: list[dict[str, Any]]) -> None:
        rows.extend(more)
        if asked.json:
            asked.json.write_text(json.dumps(rows, indent=2), encoding="utf-8")

    names = [name for name in asked.workloads if name in WORKLOADS] if asked.what != "generation" else []
    if names:
        print("| workload | requests | who | seconds | times the hub's | largest difference, nats | same choice |")
        print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    num_questions = asked.questions or ((100 if asked.quick else 2000) if on_gpu else (2 if asked.quick else 16))
    for name in names:
        keep(compare(loaded, name, num_questions, batches, per_token))
    if asked.what != "loglikelihood":
        answer(loaded, asked, batches, per_token, keep)
    if names and not asked.quick and dtype != torch.float32:
        del loaded
        print(f"\nin float32 the largest difference is {check(asked.model, device, per_token):.1e} nats")


def answer(loaded: Any, asked: Any, batches: tuple[int | str, ...], per_token: float, keep: Callable[[Any], None]) -> None:
    """Run the workloads of generation. `--quick`: with a quarter of the tokens."""
    on_gpu, scale = loaded.device.type == "cuda", 0.25 if asked.quick else 1.0
    num_questions = asked.questions or ((64 if asked.quick else 256) if on_gpu else (4 if asked.quick else 32))
    print("\n| workload | requests | tokens of an answer | who | seconds | times the hub's | equal answers |")
    print("| --- | --- | --- | --- | --- | --- | --- |", flush=True)
    for name in (name for name in asked.workloads if name in GENERATIONS):
        one = GENERATIONS[name]
        workload = Workload(round(one.context * scale), 1, round(one.few_shot * scale))
        contexts = [context for context, _ in requests(workload, num_questions, per_token)[::CHOICES]]
        keep(compare_answers(loaded, name, contexts, scale, contenders(loaded, batches)))


if __name__ == "__main__":
    main()
