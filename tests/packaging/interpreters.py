"""Installs built wheels into an empty environment of each Python that the hub supports, and uses the command line there.

    python tests/packaging/interpreters.py dist

`make release` runs it. What needs torch is left out: its wheels for each Python take gigabytes, and the command line answers
without it. `tests/packaging/test_wheels.py` installs everything and trains, for one Python.
"""

import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from shutil import which

VERSIONS = ("3.11", "3.12", "3.13")
HEAVY = ("torch", "transformers", "accelerate", "datasets", "tokenizers", "safetensors", "numpy", "huggingface-hub", "peft")
"""What is imported in workers only."""
ALGORITHMS = ("sft", "lora_sft", "osft", "dpo", "lora_dpo", "osft_dpo")


def interpreter(version: str) -> str | None:
    """The Python of this version on this machine. None: there is none."""
    found = sorted(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"))
    of_pyenv = [str(path) for path in found]
    for candidate in (which(f"python{version}"), *of_pyenv):
        if (
            candidate
            and subprocess.run([candidate, "-c", "import venv, ensurepip"], capture_output=True, check=False).returncode == 0
        ):
            return candidate
    return None


def run(*words: str | Path, cwd: Path, exit_code: int = 0) -> str:
    """Run a command as from a fresh shell. Returns what it prints.

    Raises:
        SystemExit: it ended with another exit code.
    """
    env = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "HUB_", "VIRTUAL_ENV"))}
    command = [str(word) for word in words]
    done = subprocess.run(command, env=env, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != exit_code:
        sys.exit(f"$ {' '.join(command)}\nexit code {done.returncode}, not {exit_code}\n{done.stdout}")
    return done.stdout


def light_requirements(wheels: list[Path]) -> Iterator[str]:
    """What the wheels require, without extras, without each other and without what is heavy."""
    own = {wheel.name.split("-")[0].replace("_", "-") for wheel in wheels}
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            metadata = next(archive.read(name).decode() for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        for line in re.findall(r"^Requires-Dist: (.+)$", metadata, re.MULTILINE):
            name = re.split(r"[^\w.-]", line)[0]
            if "extra ==" not in line and name not in (*own, *HEAVY):
                yield line


def check(python: str, wheels: list[Path], constraints: Path) -> None:
    """Install the wheels for one interpreter, and use them.

    Raises:
        SystemExit: something does not work.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run(python, "-m", "venv", "venv", cwd=folder)
        own = folder / "venv" / "bin" / "python"
        install = (own, "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        run(*install, "--constraint", constraints, *sorted(set(light_requirements(wheels))), cwd=folder)
        run(*install, "--no-deps", *wheels, cwd=folder)
        empty = folder / "empty"
        empty.mkdir()
        place = run(own, "-c", "import hub; print(hub.__path__[0])", cwd=empty).strip()
        packages = sorted(Path(place).parent.glob("hub*/__init__.py"))
        run(own, "-W", "error", "-m", "compileall", "-q", "-f", *(file.parent for file in packages), cwd=empty)
        version = run(own, "-m", "hub", "--version", cwd=empty).strip()
        for wheel in wheels:
            if wheel.name.split("-")[1] != version:
                sys.exit(f"{wheel.name} is not of version {version}")
        listed = run(own, "-m", "hub", "plugins", cwd=empty)
        if "left out" in listed:
            sys.exit(listed)
        run(own, "-m", "hub", "--help", cwd=empty)
        run(own, "-m", "hub", "completion", "bash", cwd=empty)
        for algorithm in ALGORITHMS:
            run(own, "-m", "hub", "show", f"algo={algorithm}", "model=tiny", "data=tiny", cwd=empty)
        said = run(own, "-m", "hub", "algo=lora_sft", "modle=tiny", cwd=empty, exit_code=2)
        if "modle: there is no such option. Did you mean model?" not in said:
            sys.exit(said)
        if left := list(empty.iterdir()):
            sys.exit(f"files were left behind: {left}")


def main(dist: Path) -> None:
    """Check each interpreter that is here, and say which are not."""
    wheels = sorted(dist.glob("*.whl"))
    if not wheels:
        sys.exit(f"{dist} has no wheels. Type python -m build first, or make release")
    constraints = Path(__file__).parents[2] / "constraints.txt"
    missing = []
    for version in VERSIONS:
        if (python := interpreter(version)) is None:
            missing.append(version)
            continue
        check(python, wheels, constraints)
        print(f"Python {version}: {len(wheels)} wheels are installed, and their command line works", flush=True)
    if missing:
        print(f"not checked, since they are not on this machine: Python {', '.join(missing)}")
    if len(missing) == len(VERSIONS):
        sys.exit("no Python was checked")


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
