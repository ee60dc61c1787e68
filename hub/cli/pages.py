"""Pages of the command line: plugins, the result of a run."""

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from hub.compose.overrides import FromFile
from hub.errors import did_you_mean
from hub.plugins.known import INSTALL_ONE
from hub.plugins.offers import Backend
from hub.plugins.registry import registry
from hub.result import Result, Submitted
from hub.run import Run


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
    for backend, state in _backends():
        print(f"backend {backend.name} of {backend.algorithm} (priority {backend.priority}): {state}")


def plugin_values() -> dict[str, Any]:
    """The installed plugins for scripts, with the same content as `show_plugins`."""
    installed = registry()
    return {
        "plugins": [
            {
                "name": plugin.name,
                "distribution": plugin.source,
                "module": plugin.module,
                "error": plugin.error,
                "algorithms": {
                    name: installed.algorithms[name].summary for name, owner in installed.owners.items() if owner == plugin.name
                },
                "hooks": list(plugin.hooks),
                "warnings": list(plugin.warnings),
                "heavy": list(plugin.heavy),
            }
            for plugin in installed.plugins
        ],
        "backends": [
            {"name": backend.name, "algorithm": backend.algorithm, "priority": backend.priority, "state": state}
            for backend, state in _backends()
        ],
    }


def _backends() -> Iterator[tuple[Backend, str]]:
    """Yield each backend with its state in words, those of an algorithm by priority."""
    installed = registry()
    for algorithm, backends in sorted(installed.backends.items()):
        for backend in sorted(backends.values(), key=lambda b: (-b.priority, b.name)):
            state = backend.obstacle() or "available"
            if algorithm not in installed.algorithms:
                state = f"unused: no plugin has the algorithm {algorithm}.{did_you_mean(algorithm, installed.algorithms)}"
            yield backend, state


def result_lines(result: Result) -> list[str]:
    """Lines with the result of a run, the path of the model, and what to type next."""
    if isinstance(result, Submitted):
        from hub.launch.clusters.submit import lines as job_lines

        return job_lines(result)
    if result.status == "verified":
        return [f"verified in {result.seconds:.0f} s: all checks passed, see {result.run_path / 'verify.json'}"]
    loss = f"train loss {result.train_loss:.4f}" if result.train_loss is not None else ""
    if result.eval_loss_before is not None and result.eval_loss is not None:
        loss += f", held-out loss {result.eval_loss_before:.4f} -> {result.eval_loss:.4f}"
    speed = f", {result.tokens_per_second:,.0f} tokens/s" if result.tokens_per_second else ""
    early = ", ended early" if result.ended_early else ""
    best = f", the model of step {result.best_step}" if result.best_step else ""
    lines = [f"{result.status}: {result.num_steps} steps{early} in {result.seconds:.0f} s, {loss}{speed}{best}"]
    if result.model_path is not None:
        options = ", trust_remote_code=True" if _ran_its_code(result) else ""
        adapter = (result.model_path / "adapter_config.json").is_file()
        lines.append(f"{'adapter' if adapter else 'model'}: {result.model_path}")
        lines.append(f"next: python -m hub chat run={_short(result.run_path)}, or report, evaluate, export in place of chat")
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


def command_of_run(overrides: Sequence[str], config_dir: str | None = None) -> str:
    """The command that trains what another verb has inspected.

    Args:
        overrides: what was given to the verb. Those of `plan.` are left out, and LoRA is chosen if no algorithm is.
        config_dir: the folder of `--config-dir`.
    """
    files = dict.fromkeys(word.file for word in overrides if isinstance(word, FromFile))
    typed = [word for word in overrides if not isinstance(word, FromFile) and not word.lstrip("+~").startswith("plan.")]
    has_algo = any(word.startswith(("algo=", "experiment=", "+experiment=")) for word in overrides)
    words = [*files, *([] if has_algo else ["algo=lora_sft"]), *typed]
    return shlex.join(["python", "-m", "hub", *(["--config-dir", config_dir] if config_dir else []), *words])


def _short(folder: Path) -> str:
    """A folder as one would type it here: relative, if it is below the current folder."""
    with suppress(OSError):  # the current folder is gone
        folder = folder.relative_to(here) if folder.is_relative_to(here := Path.cwd()) else folder
    return shlex.quote(str(folder))


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
