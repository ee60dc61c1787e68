"""Compare what algorithms learn and forget over tasks: the study behind docs/osft_evidence.md, done by `hub continual`.

    python examples/scripts/continual_learning.py --quick                      # a quick check with a tiny model
    python examples/scripts/continual_learning.py --data tasks --text general --jobs 8 --out study

`tasks` has NAME_train.jsonl and NAME_test.jsonl for each task, with rows of `messages`. They are learned in the order of their
names. `general_train.jsonl` has documents (`text`) that the method `given` protects. The loss on those of `general_test.jsonl`
is measured. The same command again does what is left. OUT has table.md, report.html with the curves, and the runs.

A method is a name of METHODS, or an algorithm with options as `python -m hub continual` takes it, for example
"osft:protect_strength=112;learning_rate=3e-4". All methods get OPTIONS, and equal numbers of tokens.
"""

import argparse
from pathlib import Path

from continual.inputs import QUICK_BATCH, find, quick_data

from hub import HubError, continual

OPTIONS = ("num_epochs=2", "effective_batch_size=32", "torch_compile=none", "max_tokens_per_gpu=8192",
           "gradient_checkpointing=none")  # fmt: skip
"""Enough tokens for a whole batch of short samples, and few enough for several runs on the same GPU."""

METHODS = {
    "default": "osft",
    "osft": "osft:learning_rate=3e-4",
    "given": "osft:learning_rate=3e-4;train_embeddings=true;protect_samples=100;protect_data=TEXT",
    "protected": "lora_sft:learning_rate=1e-3;protect=self",
    "pulled": "lora_sft:learning_rate=1e-3;protect=self;protect_strength=56",
    "lora": "lora_sft:learning_rate=1e-3",
    "replay": "replay:learning_rate=2e-4",
    "sft": "sft:learning_rate=2e-4",
    "cut": "osft:learning_rate=3e-4;protect_strength=0",
    "paper": "osft:learning_rate=1e-4;subspace=weights",
    "factors": "osft:learning_rate=3e-5;subspace=weights;parametrization=factored",
}
"""The most important first: with --time-limit the last ones may be left out. TEXT is the file to protect."""


def method(name: str, text: str, options: tuple[str, ...]) -> str:
    """A method as `hub continual` takes it. What it sets itself is not set twice.

    Args:
        name: of METHODS, or an algorithm with options.
        text: file to protect.
        options: of all methods.
    """
    algorithm, _, own = METHODS.get(name, name).replace("TEXT", text).partition(":")
    words = [word for word in own.split(";") if word]
    named = {word.partition("=")[0] for word in words}
    return f"{algorithm}:{';'.join([*words, *(word for word in options if word.partition('=')[0] not in named)])}"


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="preset or folder")
    parser.add_argument("--data", type=Path, help="folder with NAME_train.jsonl and NAME_test.jsonl for each task")
    parser.add_argument("--text", type=Path, help="general text: STEM of STEM_train.jsonl and STEM_test.jsonl")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1500, help="training rows of each task")
    parser.add_argument("--test-rows", type=int, default=200, help="test rows of each task")
    parser.add_argument("--shuffle", action="store_true", help="another order of the tasks for each seed")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, spread over the GPUs")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="no run is started after it")
    parser.add_argument("--out", type=Path, default=Path("runs/continual_learning"))
    parser.add_argument("--quick", action="store_true", help="tiny model, three generated tasks, one seed, two steps")
    asked = parser.parse_args()
    options = OPTIONS
    if asked.quick:
        asked.out.mkdir(parents=True, exist_ok=True)
        asked.data, asked.text = quick_data(asked.out / "quick-tasks")
        asked.model, asked.seeds = "tiny", asked.seeds[:1]
        options = (f"effective_batch_size={QUICK_BATCH}", "max_steps=2")
    if asked.data is None or asked.text is None:
        parser.error("type --data and --text, or --quick")
    _, (protected, measured) = find(asked.data, asked.text)
    try:
        compared = continual(
            model=asked.model, tasks=str(asked.data), text=measured, seeds=asked.seeds, rows=asked.rows,
            test_rows=asked.test_rows, shuffle=asked.shuffle, jobs=asked.jobs, time_limit=asked.time_limit, out=str(asked.out),
            methods=[method(name, protected, options) for name in asked.methods],
        )  # fmt: skip
    except HubError as error:
        raise SystemExit(str(error)) from None
    print(compared)
    raise SystemExit(any(note.startswith("failed") for note in compared.notes))


if __name__ == "__main__":
    main()
