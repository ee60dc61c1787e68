"""What a study reads: the files of its tasks and of its text, the model's folder, and small made-up ones for a quick check."""

import random
from pathlib import Path

from hub.tasks.continual.study import write_rows

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
