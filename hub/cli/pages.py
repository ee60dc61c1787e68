"""Pages of the command line: overview, help, options with their sources, plugins, the result of a run."""

import json
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hub.config.option import leaves
from hub.errors import did_you_mean
from hub.plugins.known import EXAMPLES, INSTALL_ONE
from hub.plugins.registry import data_format_names, registry
from hub.run import Result, Run
from hub.secrets import without_secrets


def overview() -> str:
    """The page without arguments: algorithms, models, examples."""
    from hub.compose.compose import groups

    lines = ["Fine-tune a language model: python -m hub algo=ALGORITHM model=MODEL data.path=FILE.jsonl", ""]
    lines += ["algorithms (algo=)"]
    lines += [f"  {name:<18}{algorithm.summary}" for name, algorithm in sorted(registry().algorithms.items())]
    if not registry().algorithms:
        lines += [f"  none is installed. {INSTALL_ONE}"]
    lines += ["", "models (model=, or model.path=FOLDER_OR_HUB_ID)", *_wrapped(groups()["model"]), "", "examples"]
    for meaning, command in EXAMPLES:
        lines += [f"  # {meaning}", f"  {command}"]
    return "\n".join([*lines, "", "python -m hub --help lists the rest."])


def usage(verbs: Mapping[str, str]) -> str:
    """The page of `--help`.

    Args:
        verbs: the summary of each verb.
    """
    from hub.compose.compose import groups

    choices = groups()
    algorithms = registry().algorithms
    lines = ["usage: python -m hub [verb] [group=choice] [option=value] [flags]", "", "verbs"]
    lines += [f"  {name:<18}{summary}" for name, summary in verbs.items()]
    lines += ["", "algorithms (algo=)"]
    lines += [f"  {name:<18}{algorithm.summary}" for name, algorithm in sorted(algorithms.items())]
    presets = [name for name in choices["algo"] if name not in algorithms]
    if presets:
        lines += [f"  {'presets of these':<18}{', '.join(presets)}"]
    lines += ["", "models (model=, or model.path=FOLDER_OR_HUB_ID)", *_wrapped(choices["model"])]
    for group in (name for name in choices if name not in ("algo", "model")):
        lines += ["", f"{group} ({group}=)", *_wrapped(choices[group] or ["no presets"])]
    lines += [
        "",
        "flags",
        "  --multirun        one run for each combination of values: algo.num_epochs=1,2 algo.learning_rate=1e-4,2e-4",
        "  --config-dir DIR  your own folder with more choices for the groups above (DIR/model/mine.yaml)",
        "  --json            with the verb data: the report as JSON, for scripts",
        "  --version, --help",
        "",
        "options: python -m hub show algo=NAME lists every option with its value and meaning.",
        "several GPUs: all are used by default; launch.nproc_per_node=2 or torchrun --nproc-per-node=2 -m hub to choose.",
    ]
    return "\n".join(lines)


def show_config(overrides: list[str], config_dir: str | None) -> None:
    """Print every option with its value, source and meaning, then all problems of the config."""
    from hub.compose.compose import compose, origins

    cfg = compose(*overrides, config_dir=config_dir)
    came_from = origins(*overrides, config_dir=config_dir)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in ("option", "value", "from", "meaning"):
        table.add_column(column, overflow="fold", no_wrap=column == "option")
    for name, value, default, meaning in leaves(cfg):
        place = came_from.get(name, "default")
        style = "bold" if value != default or place == "command line" else None
        table.add_row(*(Text(cell) for cell in (name, without_secrets(_value(value)), place, meaning)), style=style)
    # In a file or a pipe each option is on one line, for grep.
    console = Console(width=None if Console().is_terminal else 500)
    console.print(table)
    if problems := cfg.problems(data_formats=data_format_names()):
        console.print("\nThis can't run yet:")
        for line in problems:
            console.print(f"  {line}", markup=False, highlight=False)


def show_plugins() -> None:
    """Print each installed plugin: its distribution, what it offers and the hooks it implements."""
    installed = registry()
    if not installed.plugins:
        print(f"no plugin is installed. {INSTALL_ONE}")
    for plugin in installed.plugins:
        print(f"{plugin.name}  {plugin.source}  ({plugin.module})")
        if plugin.error:
            print(f"  left out: {plugin.error}")
            continue
        for name, owner in installed.owners.items():
            if owner == plugin.name:
                print(f"  algo={name}: {installed.algorithms[name].summary}")
        print(f"  hooks: {', '.join(plugin.hooks)}")
        for line in plugin.warnings:
            print(f"  {line}")
        if plugin.heavy:
            print(f"  slow: it imports {', '.join(plugin.heavy)} while it is loaded, which every command waits for")
    for algorithm, backends in sorted(installed.backends.items()):
        for backend in sorted(backends.values(), key=lambda b: (-b.priority, b.name)):
            state = backend.obstacle() or "available"
            if algorithm not in installed.algorithms:
                state = f"unused: no plugin has the algorithm {algorithm}.{did_you_mean(algorithm, installed.algorithms)}"
            print(f"backend {backend.name} of {algorithm} (priority {backend.priority}): {state}")


def print_result(result: Result) -> None:
    """Print the last lines of a run."""
    print("\n".join(result_lines(result)), flush=True)


def result_lines(result: Result) -> list[str]:
    """Lines with the result of a run, the path of the model, and what to type next."""
    if result.status == "verified":
        return [f"verified in {result.seconds:.0f} s: all checks passed, see {result.run_path / 'verify.json'}"]
    loss = f"train loss {result.train_loss:.4f}" if result.train_loss is not None else ""
    if result.eval_loss_before is not None and result.eval_loss is not None:
        loss += f", held-out loss {result.eval_loss_before:.4f} -> {result.eval_loss:.4f}"
    speed = f", {result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
    lines = [f"{result.status}: {result.num_steps} steps in {result.seconds:.0f} s, {loss}{speed}"]
    if result.model_path is not None:
        options = ", trust_remote_code=True" if _ran_its_code(result) else ""
        adapter = (result.model_path / "adapter_config.json").is_file()
        lines.append(f"{'adapter' if adapter else 'model'}: {result.model_path}")
        if adapter and (renamed := Run(result.run_path).plan().get("weights_renamed")):
            options += f", key_mapping={renamed}"
        if adapter and (num_rows := _padded_rows(result)):
            lines.append(
                f"load it: base.resize_token_embeddings({num_rows}), and peft.PeftModel.from_pretrained(base, "
                f"'{result.model_path}')"
            )
        else:
            lines.append(f"load it: {_loader(result, adapter, options)}")
    return lines


def _loader(result: Result, adapter: bool, options: str) -> str:
    """The Python expression that loads what a run has made."""
    assert result.model_path is not None
    chosen = Run(result.run_path).plan().get("auto_class", "AutoModelForCausalLM")
    if not adapter:
        return f"transformers.{chosen}.from_pretrained('{result.model_path}'{options})"
    named = json.loads((result.model_path / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
    base_path = result.base_model_path
    by_name = named == str(base_path) or (base_path is not None and base_path.parent.name == "snapshots")
    if chosen == "AutoModelForCausalLM" and by_name:  # else peft finds no base of that name: it was made on this machine
        return f"peft.AutoPeftModelForCausalLM.from_pretrained('{result.model_path}'{options})"
    base = f"transformers.{chosen}.from_pretrained('{result.base_model_path}'{options})"
    return f"peft.PeftModel.from_pretrained({base}, '{result.model_path}')"


def _ran_its_code(result: Result) -> bool:
    """Whether the run had `model.trust_remote_code=true`, which whoever loads the model then needs too."""
    from hub.compose import runfile

    file = Run(result.run_path).config_file
    return file.is_file() and runfile.read(file).model.trust_remote_code


def _padded_rows(result: Result) -> int | None:
    """Rows of embeddings that were padded beyond the tokens. AutoPeftModel would make as many as there are tokens."""
    plan = Run(result.run_path).plan()
    rows: int | None = plan.get("embedding_rows")
    return rows if rows and rows > max(plan["embedding_rows_stored"], plan["tokens"]) else None


def _value(value: Any) -> str:
    """A value as it is typed."""
    if value is None:
        return "null"
    if isinstance(value, list):
        return f"[{','.join(_value(item) for item in value)}]"
    if isinstance(value, bool):
        return str(value).lower()
    if is_dataclass(value):
        set_here = [item for item in fields(value) if getattr(value, item.name) != item.default]
        return f"{{{', '.join(f'{item.name}: {_value(getattr(value, item.name))}' for item in set_here)}}}"
    return str(value)


def _wrapped(names: list[str], width: int = 100) -> list[str]:
    lines, line = [], " "
    for name in names:
        if len(line) + len(name) + 1 > width:
            lines.append(line)
            line = " "
        line += f" {name}"
    return [*lines, line]
