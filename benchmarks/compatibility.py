"""With which versions of torch and transformers the hub works: a short run of the tests in a fresh environment for each pair.

python -m benchmarks.compatibility oldest newest               # the ends of the ranges in pyproject.toml
python -m benchmarks.compatibility newest --pin torch==2.13.0  # one of them held
python -m benchmarks.compatibility here                        # the environment that runs this, such as one with a GPU

Each pair is installed into build/compatibility/, with everything else as pip resolves it, and becomes a row of
docs/compatibility.md: one that it has already is replaced. The exit code is 1 if a test failed.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import venv
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- table: python -m benchmarks.compatibility -->\n", "<!-- end of table -->"
HEAD = ("torch", "transformers", "peft", "Python", "machine", "tests passed", "failed", "left out", "day")
PROJECTS = (".", "plugins/sft", "plugins/lora_sft", "plugins/osft", "plugins/dpo")
TESTS = (
    "tests/train/test_reference.py",  # gradients and steps beside a plain loop of transformers
    "tests/train/test_architectures.py",  # families of models
    "tests/train/test_loop.py",
    "tests/train/checkpoints",
    "tests/train/losses",
    "tests/models",  # loading, saving, merging
    "tests/launch/test_resume.py",
    "plugins/sft/tests",
    "plugins/lora_sft/tests",
    "plugins/osft/tests",
    "plugins/dpo/tests",
)
TOOLS = ("pytest>=8.3", "pytest-xdist>=3.6", "hypothesis>=6.100", "PyYAML", "bitsandbytes>=0.45")
OF_NEWER = (
    "(deepseek_v2 and default_options) or (mamba and (default_options or can_not_have or can_not_train))"
    " or a_pattern_for_weights_that_can_not_train or what_stays_in_full"
)
"""Tests that state what the transformers of constraints.txt does, and older ones do not: which layers DeepSeek V2 and Mamba
read without calling them, and the size of DBRX's experts."""
_VERSIONS = """
import importlib.metadata as m, json, platform, torch
gpu = torch.cuda.get_device_name().replace("NVIDIA ", "") if torch.cuda.is_available() else "CPU"
found = {"torch": torch.__version__, "Python": platform.python_version(), "machine": gpu}
print(json.dumps(found | {name: m.version(name) for name in ("transformers", "peft")}))
"""


@dataclass(frozen=True)
class Ran:
    """What a run of the tests came to."""

    passed: int
    failed: tuple[str, ...]
    """Names of the tests that failed."""

    left_out: int


def ends_of_range(which: str) -> list[str]:
    """What pip installs of torch and transformers: the oldest or the newest that pyproject.toml allows."""
    required = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["dependencies"]
    pairs = [word for word in required if re.split(r"[^\w-]", word)[0] in ("torch", "transformers")]
    return [f"{word.replace('>=', '==')}.*" for word in pairs] if which == "oldest" else pairs


def environment_of(python: str) -> dict[str, str]:
    """This environment for this interpreter, that of a fresh shell for others."""
    if python == sys.executable:
        return dict(os.environ)
    return {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HUB_", "VIRTUAL_ENV"))}


def install(which: str, pins: list[str], python: str) -> str:
    """Make an environment with a pair of versions. Returns its interpreter.

    Args:
        which: `oldest` or `newest`.
        pins: requirements that take the place of those for the same package.
        python: the interpreter that makes the environment.
    """
    held = {re.split(r"[^\w-]", pin)[0] for pin in pins}
    wanted = [word for word in ends_of_range(which) if re.split(r"[^\w-]", word)[0] not in held] + pins
    folder = ROOT / "build" / "compatibility" / which
    shutil.rmtree(folder, ignore_errors=True)
    if python == sys.executable:
        venv.create(folder, with_pip=True, symlinks=True)
    else:
        subprocess.run([python, "-m", "venv", folder], check=True)
    own = str(folder / "bin" / "python")
    projects = [word for project in PROJECTS for word in ("--editable", project)]
    command = [own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted, *TOOLS, *projects]
    print(f"{which}: installing {' '.join(wanted)}", flush=True)
    subprocess.run(command, cwd=ROOT, env=environment_of(own), check=True)
    return own


def is_older(python: str) -> bool:
    """Whether the transformers of an environment is older than that of constraints.txt."""
    text = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    newest = next(line.partition("==")[2] for line in text.splitlines() if line.startswith("transformers=="))
    found = versions_of(python)["transformers"]
    return [int(part) for part in re.findall(r"\d+", found)] < [int(part) for part in re.findall(r"\d+", newest)]


def versions_of(python: str) -> dict[str, str]:
    """The versions of an environment, and its machine."""
    said = subprocess.run([python, "-c", _VERSIONS], env=environment_of(python), capture_output=True, text=True, check=True)
    found: dict[str, str] = json.loads(said.stdout.splitlines()[-1])
    return found


def run_tests(python: str, jobs: int, tests: list[str]) -> Ran:
    """Run the tests in an environment."""
    report = ROOT / "build" / "compatibility" / "report.xml"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.unlink(missing_ok=True)
    env = environment_of(python) | {"OMP_NUM_THREADS": "1"}
    if python != sys.executable:  # else its models would be those that another transformers has stored
        env["HUB_CACHE"] = str(Path(python).parents[1] / "cache")
    spread = ["--numprocesses", str(jobs)] if jobs > 1 else []
    chosen = ["-k", f"not ({OF_NEWER})"] if is_older(python) else []
    subprocess.run(
        [python, "-m", "pytest", "-q", *spread, *chosen, f"--junit-xml={report}", *tests], cwd=ROOT, env=env, check=False
    )
    cases = list(ElementTree.parse(report).iter("testcase"))
    failed = [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("failure") is not None]
    failed += [f"{case.get('classname')}::{case.get('name')}" for case in cases if case.find("error") is not None]
    skipped = sum(case.find("skipped") is not None for case in cases)
    return Ran(passed=len(cases) - len(failed) - skipped, failed=tuple(dict.fromkeys(failed)), left_out=skipped)


def row_of(python: str, ran: Ran) -> list[str]:
    """The cells of a run, in the order of `HEAD`."""
    figures = {"tests passed": ran.passed, "failed": len(ran.failed), "left out": ran.left_out, "day": date.today().isoformat()}
    cells = versions_of(python) | figures
    return [str(cells[name]) for name in HEAD]


def with_row(page: str, row: list[str]) -> str:
    """The page with a row: in place of the one of the same versions and machine, sorted by version."""
    before, _, rest = page.partition(BEGIN)
    table, _, after = rest.partition(END)
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    key = len(HEAD[:5])
    kept = [one for one in rows if one[:key] != row[:key]] + [row]
    kept.sort(key=lambda one: [[int(part) for part in re.findall(r"\d+", cell)] for cell in one[:2]] + [one[2:key]])
    lines = "".join(f"| {' | '.join(line)} |\n" for line in (HEAD, ["---"] * len(HEAD), *kept))
    return before + BEGIN + lines + END + after


def main() -> int:
    """Run what the command line names. Returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compatibility", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("which", nargs="+", choices=("oldest", "newest", "here"))
    parser.add_argument(
        "--pin", nargs="*", default=[], help="requirements in place of the end of a range, such as torch==2.13.0"
    )
    parser.add_argument("--python", default=sys.executable, help="the interpreter that makes the environments")
    parser.add_argument("--jobs", type=int, default=2, help="tests at a time")
    parser.add_argument("--tests", nargs="*", default=list(TESTS), help="others than those of the table: it is not written")
    asked = parser.parse_args()
    code = 0
    for which in asked.which:
        python = sys.executable if which == "here" else install(which, asked.pin, asked.python)
        ran = run_tests(python, asked.jobs, asked.tests)
        row = row_of(python, ran)
        print(", ".join(f"{name} {cell}" for name, cell in zip(HEAD, row, strict=True)), *ran.failed, sep="\n", flush=True)
        if asked.tests == list(TESTS):
            PAGE.write_text(with_row(PAGE.read_text(encoding="utf-8"), row), encoding="utf-8")
        code = code or int(bool(ran.failed) or not ran.passed)
    return code


if __name__ == "__main__":
    sys.exit(main())
