"""`python -m hub generate`: reads the prompts, generates what is missing, writes each answer as it comes."""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from hub.data.sources.files import path_problem
from hub.errors import ConfigError, DataError, Interrupted, ModelError
from hub.models.finished import Asked
from hub.system.saying import moving_terminal
from hub.tasks.generate.answers_file import AnswersFile, fingerprint, refuse_own_data
from hub.tasks.generate.before import base_of_adapter, check_before, load_before
from hub.tasks.generate.data_options import READ, check_data_options, data_asked
from hub.tasks.generate.result import Answers, left_out_line
from hub.tasks.generate.rows import Question, check_first, questions, with_system
from hub.tasks.generate.verb import GenerateOptions

if TYPE_CHECKING:
    from hub.tasks.generate.prompts import Prompter
    from hub.tasks.loading import Loaded

_OF_ANSWER = ("answer", "thoughts", "finish_reason", "num_tokens")
_FIELDS = {"answer": _OF_ANSWER, "base_answer": tuple(f"base_{name}" for name in _OF_ANSWER)}


def say(line: str) -> None:
    """Print a remark for the user. Answers alone go to stdout."""
    print(line, file=sys.stderr, flush=True)


def generate(asked: Asked) -> Answers:
    """Answer a question, or each row of a file.

    Raises:
        ConfigError: an option can't be followed.
        DataError: a row can't be used.
        ModelError: the model can't be loaded, or a prompt does not fit.
        Interrupted: Ctrl-C. What was done is in the file.
    """
    options = asked.options
    assert isinstance(options, GenerateOptions)
    check_data_options(asked, READ)
    data, of_run = data_asked(asked)
    if (options.prompt is None) == (not data.path):
        raise ConfigError(_which(options.prompt is not None))
    if options.compare:
        check_before(asked)
    left_out: list[str] = []
    if options.prompt is not None:
        rows = [Question(1, "prompt", messages=({"role": "user", "content": options.prompt},))]
    else:
        if problem := path_problem("data.path", data.path, data.split):
            raise ConfigError(problem)
        refuse_own_data(options.out, data.path)
        check_first(data, of_run)
        rows = list(questions(data, of_run, left_out))
    rows = [with_system(row, options.system) for row in rows]
    file = AnswersFile(options.out, fingerprint(_settings(asked)), options.overwrite)
    wanted = {"answer": [row for row in rows if not file.done(row.number, row.shown(), "answer")], "base_answer": []}
    if options.compare:
        wanted["base_answer"] = [row for row in rows if not file.done(row.number, row.shown(), "base_answer")]
    counts = _Counts(left_out)
    if any(wanted.values()):
        try:
            with file:
                _fill(asked, file, wanted, counts)
        except KeyboardInterrupt:
            raise _stopped(file, rows) from None
    elif file.path is not None:
        say(f"{file.path} has all answers already. overwrite=true begins anew")
    if left_out and file.path is None:
        say(left_out_line(left_out))
    numbers = {row.number for row in rows} & file.records.keys()
    found = [{k: v for k, v in file.records[n].items() if k != "settings"} for n in sorted(numbers)]
    return Answers(found, file.path, counts.answers, counts.tokens, counts.seconds, left_out, options.prompt is not None)


class _Counts:
    """What was generated in this call."""

    def __init__(self, left_out: list[str]) -> None:
        self.answers = self.tokens = 0
        self.seconds = 0.0
        self.left_out = left_out


def _which(both: bool) -> str:
    if both:
        return "prompt= and data.path= are two sources of prompts. Leave one of them out"
    return 'there is nothing to answer. Type prompt="..." for one question, or data.path=FILE out=answers.jsonl for many'


def _settings(asked: Asked) -> dict[str, object]:
    """What decides the answers besides the prompts."""
    finished, options = asked.model, asdict(asked.cfg.generate)
    options.pop("batch_size")
    folder = finished.folder
    weights = sorted(folder.glob("*.safetensors")) if folder is not None else []
    return options | {
        "base": [finished.base.path, finished.base.revision, asked.cfg.model.dtype],
        "folder": str(folder),
        "weights": [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in weights],
        "template": asked.cfg.data.template,
    }


def _stopped(file: AnswersFile, rows: Sequence[Question]) -> Interrupted:
    if file.path is None:
        return Interrupted("stopped. To keep what is done when you stop, type out=answers.jsonl", 2)
    done = sum("answer" in record for record in file.records.values())
    return Interrupted(
        f"stopped: {done} of {len(rows)} answers are in {file.path}. To continue, type the same command again", 2
    )


def _fill(asked: Asked, file: AnswersFile, wanted: dict[str, list[Question]], counts: _Counts) -> None:
    """Generate the answers that are missing: those of the model, then those of the model before training."""
    from hub.tasks.generate.prompts import Prompter
    from hub.tasks.loading import load_finished

    loaded = load_finished(asked, asked.model, say)
    trained, thinking = asked.model.before is not None, asked.cfg.generate.thinking
    prompter = Prompter(loaded.tokenizer, thinking, trained)
    for line in prompter.lines:
        say(line)
    _answer(asked, loaded, prompter, file, wanted["answer"], "answer", counts)
    if not (before := wanted["base_answer"]):
        return
    with ExitStack() as stack:
        if loaded.has_adapter:
            base = stack.enter_context(base_of_adapter(loaded))
        else:
            template = loaded.tokenizer.chat_template
            del loaded
            base = load_before(asked, template, say)
            prompter = Prompter(base.tokenizer, thinking, trained)
        _answer(asked, base, prompter, file, before, "base_answer", counts)


def _answer(
    asked: Asked,
    loaded: "Loaded",
    prompter: "Prompter",
    file: AnswersFile,
    rows: list[Question],
    field: str,
    counts: _Counts,
) -> None:
    """Generate one field of rows."""
    from hub.data.tokens.omissions import omission_lines
    from hub.tasks.generate.engine import generated

    ids: list[list[int]] = []
    chosen: list[Question] = []
    for row in rows:
        try:
            ids.append(prompt_ids(row, prompter, loaded.max_positions))
            chosen.append(row)
        except DataError as error:
            if asked.cfg.data.on_bad_row == "error" or row.where == "prompt":
                raise
            if str(error) not in counts.left_out:
                counts.left_out.append(str(error))
    if not chosen:
        if rows:
            raise ModelError(counts.left_out[-1])
        return
    for line in omission_lines(prompter.omitted, loaded.tokenizer):
        say(line)
    prompter.omitted.clear()
    settings = asked.cfg.generate
    keys = [str(row.number) for row in chosen]
    begun = time.monotonic()
    with _progress(len(chosen), field) as show:
        for batch in generated(loaded, ids, settings, keys):
            records = []
            for number, answer in sorted(batch.items()):
                row = chosen[number]
                values = (answer.text, answer.thoughts or None, answer.finish_reason, len(answer.token_ids))
                record = {"row": row.number, **({"id": row.id} if row.id is not None else {}), **row.shown()}
                if row.reference is not None:
                    record["reference"] = row.reference
                record |= {name: value for name, value in zip(_FIELDS[field], values, strict=True) if value is not None}
                records.append(record)
                counts.tokens += len(answer.token_ids)
            file.add(records)
            counts.answers += len(records)
            show(len(records))
    counts.seconds += time.monotonic() - begun


def prompt_ids(row: Question, prompter: "Prompter", max_positions: int | None) -> list[int]:
    """The tokens of a prompt.

    Args:
        row: what is asked.
        prompter: of the model.
        max_positions: the longest sequence in tokens that the model can hold. None: any.

    Raises:
        DataError: the template refuses it, or the model can't hold it and an answer.
    """
    if row.ids:
        ids = prompter.of_ids(row.ids, row.where)
    elif row.messages:
        ids = prompter.of_messages(list(row.messages), list(row.tools) or None, row.where).ids
    else:
        ids = prompter.of_text(row.text, row.where).ids
    if max_positions is not None and len(ids) >= max_positions:
        raise DataError(
            f"{row.where}: the prompt has {len(ids)} tokens, and the model can hold {max_positions} with the answer. Shorten it"
            + ("" if row.where == "prompt" else ", or type data.on_bad_row=skip to leave it out")
        )
    if not ids:
        raise DataError(f"{row.where}: the prompt has no token. Give a text")
    return ids


@contextmanager
def _progress(total: int, field: str) -> Iterator[Any]:
    """Show how many answers are done: a bar on a terminal, lines elsewhere, nothing for a single one."""
    if total == 1:
        yield lambda number: None
        return
    what = "answers" if field == "answer" else "answers before training"
    done, last, begun = 0, 0.0, time.monotonic()
    is_terminal = moving_terminal() is not None

    def show(number: int) -> None:
        nonlocal done, last
        done += number
        now = time.monotonic()
        left = (now - begun) / done * (total - done)
        text = f"{done:,}/{total:,} {what}, {int(left) // 60}:{int(left) % 60:02d} left"
        if is_terminal:
            print(f"\r{text}\033[K", end="\n" if done == total else "", file=sys.stderr, flush=True)
        elif done == total or now - last >= 5:
            last = now
            say(text)

    yield show
