"""Measure what a model learns from preferences, and what it forgets. Compares DPO on all weights, LoRA, OSFT with protection.

For each seed a model is taught the tasks of a folder, all at once and with all weights. From there each algorithm learns from
pairs with each of its learning rates. Held-out pairs are measured before and after, the tasks and the loss on general text too.
`osft_dpo` protects 100 rows of each task and 50 documents (docs/osft_evidence.md: strength 56).

    python examples/scripts/preference_learning.py --quick                     # a quick check with a tiny model
    python examples/scripts/preference_learning.py --pairs pairs --data tasks --text general --jobs 6 --out study

`pairs` has NAME_train.jsonl and NAME_test.jsonl with rows of prompt, chosen and rejected. `tasks` and `general` are those of
continual_learning.py. Each result is a line of OUT/results.jsonl; the same command again does what is left. The last lines are
the table: means and standard errors over the seeds.
"""

import argparse
import sys
from pathlib import Path

from continual.inputs import BATCH, QUICK_BATCH, find, model_folder, quick_data
from continual.preference_jobs import PairJob, PairStudy, work
from continual.preference_schedule import lines_of, run_all
from continual.preference_table import table

from hub import HubError
from hub.tasks.continual.study import Study, write_rows

RATES = {
    "dpo": (5e-6, 5e-7, 2e-5),
    "lora_dpo": (1e-4, 1e-5, 5e-4),
    "osft_dpo": (5e-5, 5e-6, 2e-4),
}
"""Ten times the default, the default, and the highest that is tried. In this order: the time may end before the last ones."""


def quick_pairs(folder: Path) -> Path:
    """Write a few pairs, for --quick."""
    folder.mkdir(parents=True, exist_ok=True)
    answers = ("yes", "no")
    rows = [{"prompt": f"Is {n} even?", "chosen": answers[n % 2], "rejected": "I do not know"} for n in range(40)]
    write_rows(folder / "even_train.jsonl", rows[:32])
    write_rows(folder / "even_test.jsonl", rows[32:])
    return folder


def pairs_in(folder: Path) -> dict[str, list[str]]:
    """The training and test files of pairs in a folder, by name.

    Raises:
        SystemExit: there are none.
    """
    files = {file.name.removesuffix("_train.jsonl"): file.absolute() for file in sorted(folder.glob("*_train.jsonl"))}
    found = {name: [str(file), str(file.with_name(f"{name}_test.jsonl"))] for name, file in files.items()}
    if not found:
        raise SystemExit(f"--pairs {folder}: there are no files *_train.jsonl")
    if missing := [test for _, test in found.values() if not Path(test).is_file()]:
        raise SystemExit(f"--pairs {folder}: there is no {missing[0]}")
    return found


def main() -> None:
    if sys.argv[1:] == ["--work"]:
        return work()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2_135m", help="preset or folder")
    parser.add_argument("--pairs", type=Path, help="folder with NAME_train.jsonl and NAME_test.jsonl of pairs")
    parser.add_argument("--data", type=Path, help="folder with NAME_train.jsonl and NAME_test.jsonl for each task")
    parser.add_argument("--text", type=Path, help="general text: STEM of STEM_train.jsonl and STEM_test.jsonl")
    parser.add_argument("--losses", nargs="*", default=[], help="others than dpo, at the end: by lora_dpo at its first rate")
    parser.add_argument("--algos", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--num-rates", type=int, choices=(1, 2, 3), default=3, help="learning rates of each algorithm")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--rows", type=int, default=1500, help="training rows of each task")
    parser.add_argument("--test-rows", type=int, default=200, help="test rows of each task")
    parser.add_argument("--epochs", type=float, default=2.0, help="passes over the tasks")
    parser.add_argument("--jobs", type=int, default=1, help="parallel processes, spread over the GPUs")
    parser.add_argument("--minutes", type=float, help="no job is begun after so long")
    parser.add_argument("--out", type=Path, default=Path("runs/preference_learning"))
    parser.add_argument("--quick", action="store_true", help="tiny model, made-up tasks and pairs, one seed, one rate")
    asked = parser.parse_args()
    out = asked.out.absolute()
    out.mkdir(parents=True, exist_ok=True)
    if asked.quick:
        asked.data, asked.text = quick_data(out / "quick-tasks")
        asked.pairs, asked.model, asked.seeds, asked.num_rates = quick_pairs(out / "quick-pairs"), "tiny", asked.seeds[:1], 1
    if asked.pairs is None or asked.data is None or asked.text is None:
        parser.error("type --pairs, --data and --text, or --quick")
    try:
        tasks, texts = find(asked.data, asked.text)
        pairs, model = pairs_in(asked.pairs), model_folder(asked.model)
    except HubError as error:
        raise SystemExit(str(error)) from None
    batch = QUICK_BATCH if asked.quick else BATCH
    study = Study({"path": model}, tasks, texts[1], asked.rows, asked.test_rows, 0, False)
    jobs = [PairJob(seed) for seed in asked.seeds]
    for place in range(asked.num_rates):
        for name in pairs:
            for seed in asked.seeds:
                jobs += [PairJob(seed, algo, name, RATES[algo][place]) for algo in asked.algos]
    for loss in asked.losses:
        jobs += [PairJob(seed, "lora_dpo", name, RATES["lora_dpo"][0], loss) for name in pairs for seed in asked.seeds]
    file = out / "results.jsonl"
    pair_batch = QUICK_BATCH if asked.quick else 16
    whole = PairStudy(study, pairs, texts[0], batch, asked.epochs, pair_batch, str(out))
    problems = run_all(whole, jobs, file, asked.jobs, asked.minutes)
    lines = lines_of(file)
    print("\n" + table(lines))
    if left := len({job.name for job in jobs} - {line["job"] for line in lines}) - len(problems):
        print(f"\n{left} jobs are left. Type the same command again to do them.")
    for line in problems:
        print(f"failed: {line}", file=sys.stderr)
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
