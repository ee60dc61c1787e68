"""The verbs of the command line. Each task of hub/config/task.py is one, and there are some more.

Slow libraries are imported within the functions, so that `--help` and every error message take about a second.
"""

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from hub.cli.flags import FLAGS, OF_WORK, Flags, Verb
from hub.config.finished import FinishedVerb
from hub.config.task import TASKS
from hub.errors import ConfigError
from hub.result import Result
from hub.system import timeline
from hub.system.saying import drop_what_nobody_reads, lost_output, say_error
from hub.tables import fitted, for_terminal
from hub.tasks.verbs import FINISHED

DEFAULT_VERB = "train"


def run_task(task: str, overrides: list[str], flags: Flags) -> int:
    """Run a task of hub/config/task.py on the recipe that the overrides choose."""
    if task != DEFAULT_VERB:
        overrides = [*overrides, f"task={task}"]
    drop_what_nobody_reads()
    with _stdout_of_result(flags) as stdout:
        show = partial(_print_result, stdout, flags.json)
        if "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ:
            from hub.launch.torchrun import join_group

            return join_group(overrides, flags.config_dir, show)
        if flags.multirun:
            from hub.launch.sweep import sweep

            return sweep(overrides, flags.config_dir, partial(_print_sweep, stdout, flags.json))
        from hub.compose.compose import compose
        from hub.launch.launcher import launch

        show(launch(compose(*overrides, config_dir=flags.config_dir)))
    return 0


@contextlib.contextmanager
def _stdout_of_result(flags: Flags, all_is_progress: bool = False) -> Iterator[TextIO]:
    """Yield stdout, for the result. What else is printed meanwhile goes to stderr with `--json`, and nowhere with `--quiet`.

    Args:
        flags: of the command line.
        all_is_progress: whether what is printed on stderr meanwhile is progress too. Errors are raised, and printed later.
    """
    stdout = sys.stdout
    with contextlib.ExitStack() as stack:
        if flags.quiet:
            nothing = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(contextlib.redirect_stdout(nothing))
            if all_is_progress:
                stack.enter_context(contextlib.redirect_stderr(nothing))
        elif flags.json:
            stack.enter_context(contextlib.redirect_stdout(sys.stderr))
        yield stdout


def _say_what_takes_long(what: str, flags: Flags) -> None:
    """Say on a terminal what a verb is doing once it has taken most of a second. In a log its own lines are enough.

    Args:
        what: a text, or a stage of `timeline.STAGES`, which `timeline.close` has to end.
        flags: of the command line.
    """
    if sys.stderr is not None and sys.stderr.isatty() and not flags.quiet:
        timeline.of_run(say_error).begin(what)


def _say_what_is_next(overrides: list[str], flags: Flags) -> None:
    """Print the command that starts the run that was inspected."""
    if not flags.json and not flags.quiet:
        from hub.cli.pages import command_of_run

        print(f"\nnext: {command_of_run(overrides, flags.config_dir)}", flush=True)


def print_json(value: Any, stream: TextIO | None = None) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2, ensure_ascii=False, default=str), file=stream, flush=True)


def _print_result(stream: TextIO, as_json: bool, result: Result) -> None:
    from hub.cli.pages import result_lines

    if as_json:
        print_json(asdict(result), stream)
    else:
        print("\n".join(result_lines(result)), file=stream, flush=True)


def _print_sweep(stream: TextIO, as_json: bool, folder: Path, rows: list[dict[str, Any]], swept: list[str]) -> None:
    from hub.launch.sweep import print_table

    if as_json:
        print_json({"folder": str(folder), "swept": swept, "runs": rows}, stream)
        return
    with contextlib.redirect_stdout(stream):
        print_table(folder, rows, swept)


def run_finished(verb: FinishedVerb, words: list[str], flags: Flags) -> int:
    """Run a verb on a finished model, and print what it found."""
    drop_what_nobody_reads()
    with _stdout_of_result(flags, all_is_progress=True) as stdout:
        # No names of stages: these verbs say by themselves how far they are, and some ask.
        _say_what_takes_long("reading the run" if verb.reads_run else timeline.STAGES["libraries"], flags)
        from hub.launch.finished import ask

        words = [*words, *(f"{verb.own_section}.{name[2:]}=true" for name in verb.flags if getattr(flags, name[2:]))]
        found = ask(verb, words, flags.config_dir)
        if flags.json:
            print_json(found.as_json(), stdout)
        elif found is not None:
            text = repr(found)
            print(fitted(for_terminal(text)) if stdout.isatty() else text, file=stdout, flush=True)
    if (lost := lost_output()) is not None:
        say_error(f"hub: standard output could not be written ({lost.strerror})")
    return int(lost is not None or getattr(found, "failed", False))


def data(overrides: list[str], flags: Flags) -> int:
    """Inspect the data of a run: lengths, trained tokens, errors."""
    _say_what_takes_long("libraries", flags)
    from hub.compose.compose import compose
    from hub.launch.preflight import prepare_data

    cfg = prepare_data(compose(*overrides, config_dir=flags.config_dir))
    from hub.data.doctor.examine import examine
    from hub.data.doctor.page import print_examined
    from hub.data.tokens.tokenizer import load_tokenizer
    from hub.models.load import load_config
    from hub.models.structure import max_positions
    from hub.models.weights import local_tokenizer
    from hub.parallel.session import quiet_libraries

    quiet_libraries()
    with _stdout_of_result(replace(flags, json=True), all_is_progress=True):
        path = local_tokenizer(cfg.model, print)
        tokenizer = load_tokenizer(cfg, path)
        positions = max_positions(load_config(cfg.model, path))
        report = examine(cfg, tokenizer, positions)
    timeline.close()
    print_examined(report, tokenizer, flags.json)
    if not report.spoils:
        _say_what_is_next(overrides, flags)
    return 1 if report.spoils else 0


def plan(overrides: list[str], flags: Flags) -> int:
    """Plan a run: memory, layout, time and price, before it runs and on hardware that is not here."""
    with _stdout_of_result(flags, all_is_progress=True) as stdout:
        _say_what_takes_long("libraries", flags)
        from hub.launch.planning import plan as plan_run

        try:
            found = plan_run(overrides, flags.config_dir, say=say_error)
        finally:
            timeline.close()
        if flags.json:
            print_json(found.as_json(), stdout)
        else:
            text = repr(found)
            print(fitted(for_terminal(text)) if stdout.isatty() else text, file=stdout, flush=True)
    if found.chosen.memory.fits:
        _say_what_is_next(overrides, flags)
    return 0 if found.chosen.memory.fits else 1


def show(words: list[str], flags: Flags) -> int:
    """Print the composed config: each option, its value, its source, its meaning."""
    from hub.cli.show import options_of, page, problems_of, select
    from hub.compose.compose import compose, origins
    from hub.config.schema import AlgoConfig
    from hub.launch.preflight import refuse_resume

    names = [word for word in words if "=" not in word and word[:1] not in "~+"]
    overrides = [word for word in words if word not in names]
    cfg = compose(*overrides, config_dir=flags.config_dir)
    refuse_resume(cfg, "shows options")
    options = options_of(cfg, origins(*overrides, config_dir=flags.config_dir))
    options = select(options, names, type(cfg.algo) is not AlgoConfig) if names else options
    if flags.json:
        print_json({"options": [asdict(option) for option in options], "problems": problems_of(cfg)})
    else:
        page(cfg, options, is_whole=not names)
    return 0


def plugins(words: list[str], flags: Flags) -> int:
    """List the installed plugins, their distributions and hooks."""
    from hub.cli.pages import plugin_values, show_plugins

    if words:
        raise ConfigError(f"hub plugins takes no options, but got {' '.join(words)}")
    print_json(plugin_values()) if flags.json else show_plugins()
    return 0


def runs(words: list[str], flags: Flags) -> int:
    """List the runs of a folder, or remove the oldest of them."""
    from hub.cli.runs import DEFAULT_FOLDER, list_runs, remove_runs

    folders = [word.removeprefix("output_dir=") for word in words]
    if len(folders) > 1 or any("=" in folder for folder in folders):
        raise ConfigError(f"hub runs takes one folder, but got {' '.join(words)}. Type hub runs, or hub runs FOLDER")
    folder = folders[0] if folders else DEFAULT_FOLDER
    if flags.keep is None:
        if flags.yes:
            raise ConfigError("--yes is for --keep. Type hub runs --keep N --yes")
        return list_runs(folder, flags.json)
    if flags.json:
        raise ConfigError("--json lists runs, --keep removes them. Leave one of them out")
    if not flags.keep.isdigit() or int(flags.keep) < 1:
        raise ConfigError(f"--keep {flags.keep} is not allowed. Allowed: a whole number at least 1")
    return remove_runs(folder, int(flags.keep), flags.yes)


def completion(words: list[str], flags: Flags) -> int:
    """Print a script that completes `hub` and `python -m hub` in a shell."""
    from hub.cli.completion import SHELLS, script
    from hub.errors import did_you_mean

    if len(words) != 1 or words[0] not in SHELLS:
        near = did_you_mean(words[0], SHELLS) if words else ""
        raise ConfigError(f"{' '.join(['hub completion', *words])}: name a shell. Allowed: {', '.join(SHELLS)}.{near}")
    sys.stdout.write(script(words[0], VERBS, FLAGS, flags.config_dir))
    return 0


def show_help(words: list[str], flags: Flags) -> int:
    """Print the help of a verb, or of all."""
    from hub.cli.help import usage, verb_help
    from hub.errors import did_you_mean

    if len(words) > 1:
        raise ConfigError(f"hub help takes one verb, but got {' '.join(words)}. Type hub help {words[0]}")
    if words and words[0] not in VERBS:
        raise ConfigError(f"{words[0]}: there is no such verb. Allowed: {', '.join(VERBS)}.{did_you_mean(words[0], VERBS)}")
    print(verb_help(words[0], VERBS[words[0]], FLAGS) if words else usage(VERBS, FLAGS))
    return 0


_TINY = "algo=lora_sft model=tiny data=tiny"
_OF_TASKS: dict[str, dict[str, Any]] = {
    "train": {
        "flags": (*OF_WORK, "--multirun"),
        "examples": (
            ("a random tiny model, seconds", f"python -m hub {_TINY}"),
            ("the options of a file, and one more", "python -m hub exp.yaml algo.num_epochs=1"),
            ("the same run again", "python -m hub runs/latest/run.yaml"),
            ("continue the newest run", "python -m hub resume=latest"),
            ("a run for each value", "python -m hub --multirun exp.yaml algo.lora_r=8,16"),
        ),
        "notes": "All visible GPUs are used. For two type launch.nproc_per_node=2, or torchrun --nproc-per-node=2 -m hub.",
    },
    "verify": {"flags": OF_WORK, "examples": (("the layout of your own run", f"python -m hub verify {_TINY}"),)},
}

_ON_FINISHED_MODELS = {
    verb.name: Verb(
        partial(run_finished, verb),
        verb.summary,
        words="[run=latest] [group=choice] [option=value]",
        examples=verb.examples,
        notes=verb.notes,
        flags=(*OF_WORK, *verb.flags),
        options=verb.options,
        section=verb.own_section,
    )
    for verb in FINISHED.values()
}

for _name in (name for name, verb in FINISHED.items() if not verb.has_result):  # there is nothing to print as JSON
    _verb = _ON_FINISHED_MODELS[_name]
    _ON_FINISHED_MODELS[_name] = replace(_verb, flags=tuple(flag for flag in _verb.flags if flag not in ("--json", "--quiet")))

_TASKS = {
    task.name: Verb(partial(run_task, task.name), task.summary, **_OF_TASKS.get(task.name, {})) for task in TASKS.values()
}

VERBS = {
    **_TASKS,
    **_ON_FINISHED_MODELS,
    "data": Verb(
        data,
        "Inspect the data of a run: lengths, trained tokens, errors.",
        flags=OF_WORK,
        examples=(("the data of a run", "python -m hub data model=tiny data.path=chats.jsonl"),),
        notes="Only the options of data. and model. matter. The exit code is 1 if there are errors.",
    ),
    "plan": Verb(
        plan,
        "Plan a run: memory, layout, time and price, on hardware that need not be here.",
        flags=OF_WORK,
        examples=(
            ("on a GPU", "python -m hub plan algo=lora_sft model=llama3_1_8b plan.gpu=rtx4090"),
            ("on eight of them", "python -m hub plan algo=sft model=llama3_1_8b plan.gpu=h100 plan.gpus=8"),
            ("algorithms side by side", "python -m hub plan algo=sft model=llama3_1_8b plan.gpu=h100 plan.compare=algo"),
        ),
        notes="It needs the model's config.json, no weights and no GPU. The exit code is 1 if the run does not fit.",
    ),
    "show": Verb(
        show,
        "Show each option of a run: its value, its source, its meaning.",
        words="[FILE.yaml] [group=choice] [option=value] [NAME ...]",
        examples=(
            ("all options", f"python -m hub show {_TINY}"),
            ("those of one section", "python -m hub show algo=lora_sft algo."),
            ("those with a word in their name", "python -m hub show algo=lora_sft lr batch"),
        ),
        notes="NAME is the beginning or a part of an option's name. What would be refused is listed at the end.",
    ),
    "runs": Verb(
        runs,
        "List runs: what, when, status, loss, size. With --keep N remove old ones.",
        words="[FOLDER]",
        flags=("--json", "--keep", "--yes"),
        examples=(
            ("the runs in runs/", "python -m hub runs"),
            ("what would go", "python -m hub runs --keep 5"),
            ("remove it", "python -m hub runs --keep 5 --yes"),
        ),
        notes="The latest run, runs that may be running and runs whose model a kept run uses are never removed.",
    ),
    "plugins": Verb(plugins, "List the installed plugins, their distributions and hooks.", words="", flags=("--json",)),
    "completion": Verb(
        completion,
        "Print a script that completes hub and python -m hub in bash, zsh or fish.",
        words="bash|zsh|fish",
        flags=("--config-dir",),
        examples=(
            ("bash, and in ~/.bashrc the line: . ~/.hub.bash", "python -m hub completion bash > ~/.hub.bash"),
            ("zsh, and in ~/.zshrc, behind compinit, the line: . ~/.hub.zsh", "python -m hub completion zsh > ~/.hub.zsh"),
            ("fish", "python -m hub completion fish > ~/.config/fish/conf.d/hub.fish"),
        ),
        notes="It knows the plugins and presets that are installed now. Run it again when these change.",
    ),
    "help": Verb(show_help, "Show the help of a verb.", words="[VERB]", flags=()),
}
