"""`python -m hub chat`: reads what the user types, and shows the answers while they are generated."""

import re
import sys
from collections.abc import Callable
from contextlib import nullcontext, suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from hub.config.generate import GenerateConfig
from hub.errors import ConfigError, DataError, HubError, did_you_mean
from hub.models.finished import Asked
from hub.tasks.chat.screen import Screen
from hub.tasks.chat.verb import ChatOptions
from hub.tasks.generate.before import base_of_adapter, check_before, load_before
from hub.tasks.generate.data_options import OF_PROMPTS, check_data_options

if TYPE_CHECKING:
    from hub.tasks.generate.prompts import Prompter
    from hub.tasks.loading import Loaded

HELP = """/reset          forget the conversation
/undo           take the last question and its answer back
/system TEXT    set the system message; without TEXT remove it
/compare        show the answers of the model before training too, or stop doing so
/save FILE      add the conversation to FILE.jsonl, as a row of training data
/help           this list
/quit           end (also Ctrl-D)
Ctrl-C ends an answer. A line that ends with \\ continues on the next one."""
_COMMAND = re.compile(r"/([a-z]+)(?:\s+(.*))?", re.DOTALL)
_NEXT_SPEAKER = "\nUser:"
"""where a base model without a chat template continues with the user's part."""


def chat(asked: Asked) -> None:
    """Talk with a model until the input ends.

    Raises:
        ConfigError: an option can't be followed.
        ModelError: the model can't be loaded.
    """
    options = asked.options
    assert isinstance(options, ChatOptions)
    if asked.cfg.data.path and "data.path" not in asked.from_run:
        raise ConfigError("data.path: hub chat asks what you type. Type hub generate data.path=FILE out=answers.jsonl")
    check_data_options(asked, OF_PROMPTS)
    if options.compare:
        check_before(asked)
    screen = Screen()
    from hub.data.tokens.template import fallback_line, require_template
    from hub.tasks.generate.prompts import Prompter
    from hub.tasks.loading import load_finished

    loaded = load_finished(asked, asked.model, screen.remark)
    settings = asked.cfg.generate
    if not loaded.tokenizer.chat_template:
        require_template(loaded.tokenizer)
        screen.remark(fallback_line(loaded.tokenizer).partition(". It is saved")[0])
        settings = replace(settings, stop=[*settings.stop, _NEXT_SPEAKER])
    prompter = Prompter(loaded.tokenizer, settings.thinking, trained=asked.model.before is not None)
    for line in prompter.lines:
        screen.remark(line)
    screen.remark(f"{loaded.name} listens. /help lists the commands, Ctrl-D ends")
    _Chat(asked, loaded, prompter, settings, screen).run()


class _Chat:
    """One conversation."""

    def __init__(self, asked: Asked, loaded: "Loaded", prompter: "Prompter", settings: GenerateConfig, screen: Screen) -> None:
        from hub.tasks.chat.conversation import Conversation

        options = asked.options
        assert isinstance(options, ChatOptions)
        self.asked, self.loaded, self.prompter, self.settings, self.screen = asked, loaded, prompter, settings, screen
        self.said = Conversation(options.system)
        self.compares = options.compare
        self._before: Loaded | None = None
        self._num_asked = 0
        self._omitted: set[str] = set()
        self._commands: dict[str, Callable[[str], None]] = {
            "reset": lambda _: self._reset(),
            "undo": lambda _: self._undo(),
            "system": self._system,
            "compare": lambda _: self._compare(),
            "save": self._save,
            "help": lambda _: screen.remark(HELP),
        }

    def run(self) -> None:
        """Read and answer until the input ends."""
        while (line := self._read()) is not None:
            if not line.strip():
                continue
            command = _COMMAND.fullmatch(line.strip())
            if command is None:
                self._answer(line.strip())
            elif command[1] in ("quit", "exit"):
                return
            elif command[1] in self._commands:
                self._commands[command[1]]((command[2] or "").strip())
            else:
                near = did_you_mean(command[1], self._commands).replace("mean ", "mean /")
                self.screen.remark(f"/{command[1]}: there is no such command.{near} /help lists them")

    def _read(self) -> str | None:
        """What the user typed. None: the input has ended."""
        lines: list[str] = []
        while True:
            try:
                line = input(("... " if lines else "> ") if sys.stdin.isatty() else "")
            except EOFError:
                if sys.stdin.isatty():
                    print()
                return "\n".join(lines) if lines else None
            except KeyboardInterrupt:
                print()
                self.screen.remark("Ctrl-D or /quit ends the conversation")
                lines = []
                continue
            if not line.endswith("\\"):
                return "\n".join([*lines, line])
            lines.append(line[:-1])

    def _answer(self, question: str) -> None:
        self.said.ask(question)
        self._num_asked += 1
        left_out = self.said.left_out
        try:
            ids = self.said.prompt(self.prompter, self.loaded.max_positions, self.settings.max_new_tokens)
            if self.said.left_out > left_out:
                self.screen.remark(
                    f"The oldest {self.said.left_out} messages no longer fit into {self.loaded.max_positions:,} tokens and are "
                    "left out"
                )
            self._say_omissions()
            text, thoughts = self._both(ids) if self.compares else self._one(self.loaded, ids, show=True)
        except HubError as error:
            self.said.turns.pop()
            self.screen.remark(f"{error}. The question was taken back" if isinstance(error, DataError) else str(error))
            return
        if not text.strip():
            self.screen.remark("(no answer: the question was taken back)")
        self.said.answer(text, thoughts)

    def _say_omissions(self) -> None:
        """Say once what the chat template leaves out of the conversation."""
        from hub.data.tokens.omissions import omission_lines

        new = {kind: where[:1] for kind, where in self.prompter.omitted.items() if kind not in self._omitted}
        for line in omission_lines(new, self.loaded.tokenizer):
            self.screen.remark(line)
        self._omitted |= new.keys()

    def _one(self, loaded: "Loaded", ids: list[int], show: bool) -> tuple[str, str]:
        """Generate one answer. Returns its text and its thoughts, as far as Ctrl-C let them come."""
        from hub.tasks.chat.stream import TextStream
        from hub.tasks.generate.answer_shape import opens_thoughts
        from hub.tasks.generate.engine import one_answer, shape_of

        opened = opens_thoughts(str(loaded.tokenizer.decode(ids[-16:], skip_special_tokens=False)))
        stream = TextStream(
            loaded.tokenizer, shape_of(loaded), self.settings.stop, opened, self.screen.piece if show else lambda *_: None
        )
        reason = "stopped"
        with suppress(KeyboardInterrupt):
            reason = one_answer(loaded, ids, self.settings, str(self._num_asked), stream.feed).finish_reason
        stream.finish()
        if show:
            self.screen.end()
            if reason == "length":
                self.screen.remark(f"(cut at {len(stream.ids)} tokens: generate.max_new_tokens, or the end of the context)")
            elif reason == "stopped":
                self.screen.remark("(stopped)")
            print(flush=True)
        return stream.answer, stream.thoughts

    def _both(self, ids: list[int]) -> tuple[str, str]:
        """Show the answers before and after training. Returns the one of the tuned model."""
        beside = self.screen.is_wide
        context = base_of_adapter(self.loaded) if self.loaded.has_adapter else nullcontext(self._loaded_before())
        if not beside:
            self.screen.line("before:")
        with context as before:
            text_before, _ = self._one(before, ids, show=not beside)
        if not beside:
            self.screen.line("tuned:")
        text, thoughts = self._one(self.loaded, ids, show=not beside)
        if beside:
            self.screen.beside(("before", text_before), ("tuned", text))
            print(flush=True)
        return text, thoughts

    def _loaded_before(self) -> "Loaded":
        if self._before is None:
            self._before = load_before(self.asked, self.loaded.tokenizer.chat_template, self.screen.remark)
        return self._before

    def _reset(self) -> None:
        self.said.reset()
        self.screen.remark("The conversation begins anew")

    def _undo(self) -> None:
        self.screen.remark("Taken back" if self.said.undo() else "There is nothing to take back")

    def _system(self, text: str) -> None:
        self.said.system = text or None
        self.screen.remark(f"System message: {text}" if text else "No system message")

    def _compare(self) -> None:
        if not self.compares:
            try:
                check_before(self.asked)
            except ConfigError as error:
                self.screen.remark(str(error))
                return
        self.compares = not self.compares
        self.screen.remark("Answers before training are shown too" if self.compares else "The tuned model answers alone")

    def _save(self, file: str) -> None:
        if not file:
            self.screen.remark("Type /save FILE.jsonl")
            return
        try:
            self.screen.remark(f"Added to {self.said.save(file)}")
        except DataError as error:
            self.screen.remark(str(error))
