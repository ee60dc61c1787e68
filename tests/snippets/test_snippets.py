"""What the pages show is run: each command and each Python block, in order, in one folder for each page, on tiny models.

A preset of a model becomes the tiny model of its family, with whole weights in place of 4 bits. A run ends after two steps, and
one on several processes has one. Else all is as the reader types it. `<!-- not run: REASON -->` above a block says why it is
left out.
"""

import contextlib
import io
import os
import re
import shlex
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from snippets.pages import PAGES, ROOT, Snippet, snippets

from hub.cli.main import main
from hub.testing import tiny_model_path, write_chats

NUM_STEPS = 2
BATCH = 8
NUM_TOKENS = 512
"""Positions of the tiny models."""

NUM_ROWS = 8
"""Rows of an evaluation set that are measured."""

PROSE = "Snow is white, and coal is black. The sheep says baa, and the cow says moo. " * 20
FILES = {
    "prompts.jsonl": '{"prompt": "What color is snow?", "answer": "White.", "unit": "m"}\n' * 2,
    "faq.jsonl": '{"question": "What color is snow?", "reply": "White."}\n' * 4,
    "text.jsonl": f'{{"text": "{PROSE}"}}\n' * 4,
    "pairs.jsonl": "".join(
        f'{{"prompt": "Say {word}.", "chosen": "{word.title()}.", "rejected": "No, not {word}."}}\n'
        for word in ("snow", "coal", "blood", "grass", "milk", "gold", "sky", "sea", "sand", "rose") * 3
    ),
    "exp.yaml": "algo: lora_sft\nmodel: tiny\ndata: tiny\n",
}
MAKE = re.compile(r"^([a-z-]+):", re.MULTILINE)
done: set[str] = set()
"""Commands that this process has run. One that needs no earlier run is not run again for another page."""

WORD_FOR_WORD = ("mistakes",)
"""Pages that show all that their commands print, without a difference."""

IGNORED = ("source .venv/bin/activate", "mkdir ", "cat ", "ls ")


@pytest.fixture(scope="session")
def presets(tmp_path_factory) -> Path:
    """A folder of presets: those of models, with tiny models in place of the real ones."""
    folder = tmp_path_factory.mktemp("presets")
    (folder / "model").mkdir()
    for file in (ROOT / "conf" / "model").glob("*.yaml"):
        family = yaml.safe_load(file.read_text(encoding="utf-8"))["family"]
        (folder / "model" / file.name).write_text(f"path: {tiny_model_path(family)}\nfamily: {family}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Path:
    """A finished run, for pages that say what to do with one."""
    folder = tmp_path_factory.mktemp("finished")
    saving = ["algo.max_steps=6", "algo.save_every_steps=2", "algo.keep_checkpoints=3"]
    options = [*saving, f"output_dir={folder}", "run_name=first"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert main(["algo=lora_sft", "model=tiny", "data=tiny", "launch=inline", *options]) == 0
    return folder / "first"


@pytest.fixture
def folder(tmp_path, monkeypatch, presets, finished) -> Path:
    """A reader's folder, in which small runs are short and models are tiny."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    for name, text in FILES.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    for name in ("chats", "own", "general", "large", "new", "old", "test"):
        write_chats(tmp_path / f"{name}.jsonl", num_rows=32)
    for name in ("a", "b", "c", "first"):
        shutil.copytree(finished, tmp_path / "runs" / name)
    (tmp_path / "runs" / "latest").symlink_to("first")
    shutil.copytree(finished / "model", tmp_path / "ADAPTER_FOLDER")
    monkeypatch.setenv("MPLBACKEND", "agg")
    make_small(monkeypatch, presets)
    return tmp_path


def make_small(monkeypatch: pytest.MonkeyPatch, presets: Path) -> None:
    """Let every run that is composed be one for this machine."""
    from hub.compose import compose as module

    original = module.compose

    def compose(*words, config_dir=None, **more):
        cfg = original(*words, config_dir=config_dir or str(presets), **more)
        if cfg.resume and cfg.resume != "auto":
            return cfg
        if cfg.launch.cluster is not None:  # pages print its file only
            if cfg.launch.cluster != "slurm":
                return replace(cfg, model=replace(cfg.model, path="organization/model"))
            return replace(cfg, output_dir=os.path.abspath(cfg.output_dir.lstrip("/")))
        limit = min(cfg.evaluate.limit or NUM_ROWS, NUM_ROWS)
        cfg = replace(cfg, generate=replace(cfg.generate, max_new_tokens=8), evaluate=replace(cfg.evaluate, limit=limit))
        if "parts" in more:
            return cfg
        local = cfg.model.path.startswith("tiny:") or os.path.exists(cfg.model.path)
        batch = cfg.algo.effective_batch_size
        algo = {
            "max_steps": min(cfg.algo.max_steps or NUM_STEPS, NUM_STEPS),
            "effective_batch_size": BATCH if batch == "auto" else min(batch, BATCH),
            "torch_compile": "none",
        }
        length = cfg.data.max_seq_len
        data = replace(cfg.data, max_seq_len=length if length == "auto" else min(length, NUM_TOKENS))
        if getattr(cfg.algo, "load_in_4bit", False):
            algo["load_in_4bit"] = False
        return replace(
            cfg,
            model=cfg.model if local or not cfg.model.path else replace(cfg.model, path="tiny:llama"),
            launch=replace(cfg.launch, mode="inline", nproc_per_node=1, nnodes=1, rdzv_endpoint=None, node_rank=0),
            algo=replace(cfg.algo, **algo),
            data=replace(data, block_size=data.block_size and min(data.block_size, NUM_TOKENS)),
            output_dir=cfg.output_dir.lstrip("/"),
        )

    for loaded in [loaded for name, loaded in sys.modules.items() if name.startswith("hub.")]:
        if getattr(loaded, "compose", None) is original:
            monkeypatch.setattr(loaded, "compose", compose)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_shows_runs(page, folder, monkeypatch, record_property):
    names: dict[str, object] = {"__name__": "snippet"}
    counts = dict.fromkeys(("run", "checked", "left out"), 0)
    for snippet in snippets(page):
        if snippet.why_not:
            counts["left out"] += 1
            if snippet.language == "python":
                compile(snippet.text, str(snippet), "exec")
            continue
        monkeypatch.setattr(sys, "stdin", io.StringIO("What color is snow?\n"))
        is_run = True
        if snippet.language == "python":
            exec(compile("\n" * (snippet.line - 1) + snippet.text, str(page), "exec"), names)
        else:
            is_run = run_command(snippet)
        counts["run" if is_run else "checked"] += 1
    for name, number in counts.items():
        record_property(name, number)


def run_command(snippet: Snippet) -> bool:
    """Run one command as the reader's shell would. False: it is of the shell or of make, and only looked at."""
    words = shlex.split(snippet.text)
    if ">" in words:
        words = words[: words.index(">")]
    if words[0] == "make":
        assert words[1] in MAKE.findall((ROOT / "Makefile").read_text(encoding="utf-8")), snippet
        return False
    if snippet.text.startswith(IGNORED):
        return False
    if words[0] == "torchrun":
        words = ["python", *words[words.index("-m") :]]
    if words[0].rpartition("/")[2] == "hub":
        words = ["python", "-m", "hub", *words[1:]]
    assert words[:3] == ["python", "-m", "hub"], f"{snippet}: say why it is not run"
    stands_alone = not {"run", "runs", "resume", "run_name"} & {word.partition("=")[0] for word in words}
    if stands_alone and snippet.text in done and not snippet.shown:
        return True
    done.add(snippet.text)
    prepare(words)
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        code = main(words[3:])
    assert code == expected_code(snippet), f"{snippet}\nexit code {code}\n{out.getvalue()}"
    if snippet.page.stem in WORD_FOR_WORD:
        assert out.getvalue().splitlines() == list(snippet.shown), snippet
    for line in snippet.shown:
        assert occurs(line, out.getvalue()), f"{snippet}\nthe page says: {line}\nbut it prints:\n{out.getvalue()}"
    return True


def prepare(words: list[str]) -> None:
    """Bring the folder into the state in which a reader types the command: a run to resume was stopped, a new one is new."""
    options = dict(word.split("=", 1) for word in words if "=" in word)
    if (resumed := options.get("resume", "auto")) != "auto":
        run = Path("runs", Path(resumed).name).resolve()
        shutil.rmtree(run)
        shutil.copytree(Path("runs", "a"), run)
        shutil.rmtree(max((run / "checkpoints").glob("step-*")))
        shutil.rmtree(run / "model")
        (run / "result.json").unlink()
    elif "run_name" in options and "resume" not in options:
        shutil.rmtree(Path("runs", options["run_name"]), ignore_errors=True)


def expected_code(snippet: Snippet) -> int:
    """What the command ends with: 0, but where the page shows an error line."""
    return 2 if any(line.startswith("hub: ") and "with backend" not in line for line in snippet.shown) else 0


def occurs(expected: str, output: str) -> bool:
    """Whether a line of the page is in the output. Figures and paths may differ; `...` stands for anything."""
    pattern = ".*".join(re.escape(without_figures(part)) for part in expected.split("..."))
    return any(re.search(pattern, without_figures(line)) for line in output.splitlines())


def without_figures(line: str) -> str:
    line = re.sub(r"/[\w./-]+/runs/[\w.-]+", "RUN", " ".join(line.split()))
    return re.sub(r"\d[\d,.:e+-]*", "N", line)
