"""Measure what a model forgets when it learns one task after another. Compares fine-tuning, replay, LoRA and OSFT.

Each method trains a model through the tasks of a folder in order, on equal numbers of tokens. After each task the script
measures all tasks, and the loss on text that no method trained on. Each method's learning rate is searched on the first task.

    python examples/scripts/continual_learning.py --quick                      # a quick check with a tiny model
    python examples/scripts/continual_learning.py --data tasks --text general --seeds 0 1 2 --jobs 24 --out study

`tasks` has NAME_train.jsonl and NAME_test.jsonl for each task, with rows of `messages`. Tasks are trained in the order of their
names. `general_train.jsonl` has documents (`text`) of which some are protected. The loss on those of `general_test.jsonl` is
measured.

A method is a name, or NAME:OPTION=VALUE,...
    untrained      the base model
    sft            full fine-tuning; with any method lr=2e-5 sets the learning rate instead of a search
    replay         the same with rows of each earlier task mixed in; protect=100 is their number
    lora_sft       an adapter of rank 16, merged after each task
    osft           ratio=0.25 or policy=adaptive; form=fast or factored
    default        osft as one types it: without a single option, it protects by itself; strength=56
    activations    OSFT by activations: protects protect=100 rows of each earlier task and texts=16 general texts; ratio=0.5.
                   memory=covariances protects earlier tasks without their rows;
                   embeddings=1 trains the embeddings of tokens that the protected data does not have;
                   strength=56 frees all directions, and pulls used and important ones toward the base weights
`epochs=2` is the number of passes. Runs that --out already has are skipped.
"""

import argparse
import random
import sys
from pathlib import Path

from continual.methods import METHODS, RATES, Method
from continual.report import report
from continual.schedule import Schedule, run_all
from continual.study import Study, write_rows

from hub import HubError

BATCH, QUICK_BATCH = 32, 8


def quick_data(folder: Path) -> tuple[Path, Path]:
    """Write three small tasks and some text, for --quick."""
    folder.mkdir(parents=True, exist_ok=True)
    words = ["sky", "grass", "snow", "coal", "lemon", "blood", "cat", "dog", "cow", "duck", "sheep", "lion"]
    tasks = {
        "1_twice": lambda word: (f"Say {word} two times.", f"{word} {word}"),
        "2_first": lambda word: (f"What does {word} begin with?", word[0]),
        "3_is": lambda word: (f"What is the {word}?", f"The {word} is red." if len(word) > 3 else f"The {word} is blue."),
    }
    for name, make in tasks.items():
        rows = [dict(zip(("user", "assistant"), make(word), strict=True)) for word in words]
        chats = [{"messages": [{"role": role, "content": text} for role, text in row.items()]} for row in rows]
        write_rows(folder / f"{name}_train.jsonl", chats * 4)
        write_rows(folder / f"{name}_test.jsonl", chats)
    for part, seed in (("train", 0), ("test", 1)):
        draw = random.Random(seed)
        text = [{"text": " ".join(draw.choices(words, k=60))} for _ in range(4)]
        write_rows(folder.parent / f"quick-text_{part}.jsonl", text)
    return folder, folder.parent / "quick-text"


def model_folder(name: str) -> str:
    """Return a local folder of a preset's weights, so that each run need not find them again."""
    from hub import compose

    if Path(name).expanduser().is_dir():
        return str(Path(name).expanduser().absolute())
    from hub.models.weights import local_weights

    return str(local_weights(compose(f"model={name}").model, print).absolute())


def find(data: Path, text: Path) -> tuple[dict[str, list[str]], list[str]]:
    """Return the files of the tasks, and those of the text.

    Raises:
        SystemExit: a file is missing.
    """
    tasks = {}
    for file in sorted(data.glob("*_train.jsonl")):
        name = file.name.removesuffix("_train.jsonl")
        tasks[name] = [str(file.absolute()), str(file.absolute().with_name(f"{name}_test.jsonl"))]
    texts = [str(text.absolute().with_name(f"{text.name}_{part}.jsonl")) for part in ("train", "test")]
    missing = [file for file in [*texts, *(files[1] for files in tasks.values())] if not Path(file).is_file()]
    if not tasks or missing:
        raise SystemExit(f"--data {data} --text {text}: {missing[0] if missing else 'there are no files *_train.jsonl'}")
    return tasks, texts


def main() -> None:
    if sys.argv[1:2] == ["--job"]:
        from continual.job import one_job

        return one_job(sys.argv[2])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="preset or folder")
    parser.add_argument("--data", type=Path, help="folder with NAME_train.jsonl and NAME_test.jsonl for each task")
    parser.add_argument("--text", type=Path, help="general text: STEM of STEM_train.jsonl and STEM_test.jsonl")
    parser.add_argument("--methods", nargs="+", default=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1500, help="training rows of each task")
    parser.add_argument("--test-rows", type=int, default=200, help="test rows of each task")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, spread over the GPUs")
    parser.add_argument("--time-limit", type=float, metavar="SECONDS", help="no run is started after it")
    parser.add_argument("--out", type=Path, default=Path("runs/continual_learning"))
    parser.add_argument("--quick", action="store_true", help="tiny model, three generated tasks, one seed")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    if asked.quick:
        asked.data, asked.text = quick_data(asked.out / "quick-tasks")
        asked.model, asked.seeds = "tiny", asked.seeds[:1]
        for kind, rates in RATES.items():
            RATES[kind] = tuple(30 * rate for rate in rates[:2])
    if asked.data is None or asked.text is None:
        parser.error("type --data and --text, or --quick")
    methods = [Method(name) for name in asked.methods]
    try:
        for method in methods:
            _ = method.options
        tasks, texts = find(asked.data, asked.text)
        model = model_folder(asked.model)
    except (ValueError, HubError) as error:
        raise SystemExit(str(error)) from None
    batch = QUICK_BATCH if asked.quick else BATCH
    study = Study(model, tasks, texts, asked.rows, asked.test_rows, batch, 2.0)
    schedule = Schedule(methods, asked.seeds, asked.out.absolute())
    problems = run_all(study, schedule, asked.jobs, asked.time_limit)
    report(methods, asked.seeds, asked.out.absolute())
    if left := dict.fromkeys(job.method.name for job in schedule.open()):
        print(f"The time limit was reached before all runs of {' '.join(left)}. Type the same command again to run the rest.")
    for line in problems:
        print(f"failed: {line}", file=sys.stderr)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
