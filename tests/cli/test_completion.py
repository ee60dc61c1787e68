"""`hub completion`: the scripts, and what bash really completes with one."""

import shutil
import subprocess

import pytest

from hub.cli.completion import SHELLS
from hub.cli.main import VERBS


@pytest.fixture
def complete(hub, tmp_path):
    """Asks bash for the completions of a line."""
    (tmp_path / "script").write_text(hub("completion", "bash").out)
    (tmp_path / "chats.jsonl").touch()

    def ask(*lines: str) -> list[list[str]]:
        script = ["source ./script"]
        for line in lines:
            # As readline does: a word ends at a blank and, with its default breaks, at each "=".
            words = line.replace("=", " = ").split() + ([""] if line[-1] in " =" else [])
            quoted = " ".join(f"'{word}'" for word in words)
            script.append(
                f"COMP_LINE='{line}' COMP_POINT={len(line)} COMP_WORDS=({quoted}) COMP_CWORD={len(words) - 1}; "
                'COMPREPLY=(); _hub 2>&1; echo "${COMPREPLY[*]}"'
            )
        done = subprocess.run(
            ["bash", "--norc", "-c", "\n".join(script)], cwd=tmp_path, capture_output=True, text=True, check=True
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
    assert empty == ["inline", "local", "single"]
    assert booleans == ["true", "false"]
    assert file == files == ["chats.jsonl"]
    assert shells == list(SHELLS)


@pytest.mark.parametrize("shell", SHELLS)
def test_each_shell_gets_all_verbs_options_and_presets_in_its_own_syntax(hub, shell, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/ours.yaml").write_text("path: a/b\n")
    text = hub("completion", shell, "--config-dir", "mine").out
    for word in (*VERBS, "multirun", "algo.lora_r", "algo.learning_rate", "run_name", "qlora_sft", "ours"):
        assert word in text
    if interpreter := shutil.which(shell):
        subprocess.run([interpreter, "-n", "-"], input=text, text=True, check=True)


def test_the_shell_must_be_known(hub):
    assert hub("completion").problems == ["hub completion: name a shell. Allowed: bash, zsh, fish."]
    assert hub("completion", "fsh").problems == [
        "hub completion fsh: name a shell. Allowed: bash, zsh, fish. Did you mean fish or zsh?"
    ]
