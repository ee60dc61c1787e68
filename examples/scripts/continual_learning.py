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
    protected      the same with algo.protect=self: protects by itself, and what was learned before; ratio=0.5
    osft           ratio=0.25 or policy=adaptive; form=fast or factored
    default        osft as one types it: without a single option, it protects by itself; strength=56
    activations    OSFT by activations: protects protect=100 rows of each earlier task and texts=16 general texts; ratio=0.5.
                   memory=covariances protects earlier tasks without their rows;
                   embeddings=1 trains the embeddings of tokens that the protected data does not have;
                   strength=56 frees all directions, and pulls used and important ones toward the base weights
`epochs=2` is the number of passes. Runs that --out already has are skipped.
"""

import argparse
import sys
from pathlib import Path

from continual.inputs import BATCH, QUICK_BATCH, find, model_folder, quick_data
from continual.methods import METHODS, RATES, Method
from continual.report import report
from continual.schedule import Schedule, run_all
from continual.study import Study

from hub import HubError


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
