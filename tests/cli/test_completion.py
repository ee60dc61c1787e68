"""`hub completion`: the scripts, and what each shell completes with its own."""

import shutil
import subprocess

import pytest

from hub.cli.completion import SHELLS
from hub.cli.main import VERBS

LINES = {
    "hub show algo.lora_a": "hub show algo.lora_alpha=",
    "hub --m": "hub --multirun ",
    "hub model=smol": "hub model=smollm2_135m ",
    "hub --config cha": "hub --config chats.jsonl ",
    "hub data.path=cha": "hub data.path=chats.jsonl ",
    "hub completion f": "hub completion fish ",
    "python -m hub sho": "python -m hub show ",
    "python3 -X dev -m hub algo.use_dora=t": "python3 -X dev -m hub algo.use_dora=true ",
    "torchrun --nproc-per-node=2 -m hub model=smol": "torchrun --nproc-per-node=2 -m hub model=smollm2_135m ",
    "python -m hub data.path=cha": "python -m hub data.path=chats.jsonl ",
    "python cha": "python chats.jsonl ",
    "python x.py -m hub sho": "python x.py -m hub sho",
}
"""A line -> the line after Tab."""


@pytest.fixture
def folder(hub, tmp_path):
    """A folder with a file, and a completion script for each shell."""
    for shell in SHELLS:
        (tmp_path / f"script.{shell}").write_text(hub("completion", shell).out)
    (tmp_path / "chats.jsonl").touch()
    return tmp_path


@pytest.fixture
def complete(folder):
    """Asks bash for the completions of a line."""

    def ask(*lines: str) -> list[list[str]]:
        script = ["_other() { COMPREPLY=(of python); }; complete -F _other python", "source ./script.bash"]
        for line in lines:
            # As readline does: a word ends at a blank and, with its default breaks, at each "=".
            words = line.replace("=", " = ").split() + ([""] if line[-1] in " =" else [])
            quoted = " ".join(f"'{word}'" for word in words)
            function = "_hub" if words[0] == "hub" else "_hub_module"
            script.append(
                f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}; "
                f'COMPREPLY=(); {function} {words[0]} 2>&1; echo "${{COMPREPLY[*]}}"'
            )
        done = subprocess.run(
            ["bash", "--norc", "-c", "\n".join(script)], cwd=folder, capture_output=True, text=True, check=True
        )
        assert done.stderr == ""
        return [line.split() for line in done.stdout.splitlines()]

    return ask


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_verbs_flags_groups_options_values_and_files(complete):
    verbs, flags, groups, options, models, choices, empty, booleans, file, shells, files = complete(
        "hub ", "hub --m", "hub show mod", "hub algo=lora_sft algo.lora_", "hub model=smol", "hub algo.lr_scheduler=cos",
        "hub launch=", "hub algo.use_dora=", "hub data.path=cha", "hub completion ", "hub --config cha",
    )  # fmt: skip
    assert set(VERBS) <= set(verbs)
    assert flags == ["--multirun"]
    assert [word for word in groups if word == "model="]
    assert {"algo.lora_r=", "algo.lora_alpha="} <= set(options)
    assert all(word.startswith("algo.lora_") for word in options)
    assert models == ["smollm2_135m"]
    assert {"cosine", "cosine_with_restarts"} <= set(choices)
    assert empty == ["inline", "kubernetes", "local", "single", "skypilot", "slurm"]
    assert booleans == ["true", "false"]
    assert file == files == ["chats.jsonl"]
    assert shells == list(SHELLS)
    found = complete(
        "torchrun --nproc-per-node=2 -m hub model=smol",
        "python -m hub ",
        "python3 -m hub algo.use_dora=",
        "python -m json.tool ",
        "python -m hub",
    )
    assert found[0] == models
    assert found[1] == verbs
    assert found[2:] == [booleans, ["of", "python"], ["of", "python"]]


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_them_behind_hub_and_behind_python_m_hub(folder):
    asked = "; ".join(f"complete -C '{line}' | string split -f 1 \\t; echo -" for line in LINES)
    command = ["fish", "--no-config", "-c", f"source script.fish; {asked}"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    found = [answer.split() for answer in done.stdout.split("-\n")[:-1]]
    assert done.stderr == ""
    assert found == [[after.split()[-1]] if after != line else [] for line, after in LINES.items()]


ZSH = """
zmodload zsh/zpty
zpty shell zsh -f -i
until_said() { local text all=; while [[ "$all" != *$1* ]]; do zpty -r shell text || exit 1; all+=$text; done }
zpty -w shell "PS1=; unsetopt beep auto_menu; autoload -Uz compinit; compinit -D -u; source ./script.zsh
line() { print -r -- \\$BUFFER >> lines; BUFFER=; print READY }; zle -N line; bindkey '^G' line; print STAR''TED"
until_said STARTED
for line in "$@"; do
    zpty -w -n shell "$line"$'\\t\\x07'
    until_said READY
done
"""
"""Types lines into an interactive zsh, and Tab behind each. What each becomes is a line of the file `lines`."""


@pytest.mark.skipif(shutil.which("zsh") is None, reason="there is no zsh")
def test_zsh_completes_them_behind_hub_and_behind_python_m_hub(folder):
    command = ["zsh", "-f", "-c", ZSH, "zsh", *LINES]
    subprocess.run(command, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, check=True, timeout=60)
    assert (folder / "lines").read_text().splitlines() == list(LINES.values())


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_all_verbs_options_and_presets_in_its_own_syntax(hub, shell, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/ours.yaml").write_text("path: a/b\n")
    text = hub("completion", shell, "--config-dir", "mine").out
    for word in (*VERBS, "multirun", "algo.lora_r", "algo.learning_rate", "run_name", "qlora_sft", "ours"):
        assert word in text
    if interpreter := shutil.which(shell):
        (tmp_path / "script").write_text(text)
        subprocess.run([interpreter, "-n", "script"], cwd=tmp_path, check=True)


def test_the_shell_must_be_known(hub):
    assert hub("completion").problems == ["hub completion: name a shell. Allowed: bash, zsh, fish."]
    assert hub("completion", "fsh").problems == [
        "hub completion fsh: name a shell. Allowed: bash, zsh, fish. Did you mean fish or zsh?"
    ]
