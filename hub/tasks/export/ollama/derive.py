"""Writes the template for Ollama from what was read off a chat template."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from hub.data.tokens.marks import CLOSE_THOUGHTS, OPEN_THOUGHTS
from hub.tasks.export.ollama.go_text import go_string, go_text, json_of_object, json_of_tool, json_of_value
from hub.tasks.export.ollama.probe import CONTENT, SYSTEM, THOUGHT, TOOLS, Found, Joint, JsonForm
from hub.tasks.export.ollama.small_chats import ASSISTANT, CALL, END, TOOL, USER
from hub.tasks.export.ollama.tree import Tree, conditions, leaves, mapped, tree

_SPACE = re.compile(r"\s+\Z")
_OPEN_TOKEN = re.compile(r"[<\[][^<>\[\]\s]*\Z")
_CLOSED_TOKEN = re.compile(r"\A[^<>\[\]\s]*[>\]]")
_TRIMS = {
    "\n": '"\\n"',
    " \t\r\n": '" " "\\n" "\\t" "\\r"',
}


def derive(found: Found, bos: str) -> str:
    """Write a template in Go's language.

    Args:
        found: how the chat template writes chats.
        bos: what the program puts before each prompt by itself: it is left out at the start. Empty: nothing.

    Raises:
        AmbiguousError: a text depends on something that Go's templates can't ask for.
    """
    return _Writer(found, bos).template()


class _Writer:
    def __init__(self, found: Found, bos: str) -> None:
        self.found = found
        self.joints = [_without_quotes(joint, found) for joint in found.joints]
        if bos:
            self.joints = [replace(one, text=one.text.removeprefix(bos)) if one.before == "" else one for one in self.joints]
        self.ends = {kind: text[1:] if kind in found.as_json else text for kind, text in found.ends.items()}
        self.trees = {kind: self._tree(kind) for kind in (USER, ASSISTANT, CALL, TOOL, END) if self._seen(kind)}
        self.used = set().union(*map(conditions, self.trees.values())) | ({"eq $i $first"} if found.refuses_system else set())
        self.cut: set[tuple[str, str]] = set()

    def template(self) -> str:
        """The whole template."""
        branches = []
        if USER in self.trees:
            branches.append(('eq .Role "user"', self._message(USER)))
        if TOOL in self.trees:
            branches.append(('eq .Role "tool"', self._message(TOOL)))
        if CALL in self.trees:
            branches.append(('and (eq .Role "assistant") .ToolCalls', self._message(CALL)))
        branches.append(('eq .Role "assistant"', self._message(ASSISTANT) if ASSISTANT in self.trees else ""))
        lines = ["{{- range $i, $_ := .Messages }}", *self._never_written()]
        for number, (condition, body) in enumerate(branches):
            lines.append(f"{{{{- {'else if' if number else 'if'} {condition} }}}}{_tight(body)}")
        lines += ["{{- end }}", "{{- end }}"]
        prompt = self._write(self.trees[END])
        lines += ['{{- if ne $before "open" }}' + _tight(prompt), "{{- end }}"]
        return "\n".join([*self._defined(), *self._variables(), *lines])

    def _seen(self, kind: str) -> list[Joint]:
        return [joint for joint in self.joints if joint.after == kind]

    def _tree(self, kind: str) -> Tree:
        return tree([(joint.seen, joint.text.removeprefix(self.ends.get(joint.before, ""))) for joint in self._seen(kind)])

    def _message(self, kind: str) -> str:
        """One message: what stands before it, its text, and what ends it."""
        before = self._write(self.trees[kind])
        end = go_text(self.ends[kind])
        if kind == CALL:
            return before + self._calls() + end + _set("before", '"calls"')
        if kind == USER and self.found.refuses_system:  # no template says where it belongs: it begins the first question
            before += "{{ if and $.System (eq $i $first) }}{{ $.System }}\n\n{{ end }}"
        if kind != ASSISTANT:
            results = _set("results", "true" if kind == TOOL else "false") if "$results" in self.used else ""
            return before + self._text(kind, ".Content") + end + _set("before", f'"{kind}"') + results
        # An answer at the end is one that goes on, so nothing ends it.
        closed, opened = end + _set("before", '"assistant"'), _set("before", '"open"')
        return before + self._text(kind, ".Content") + f"{{{{ if ne $i $end }}}}{closed}{{{{ else }}}}{opened}{{{{ end }}}}"

    def _never_written(self) -> list[str]:
        """Branches that are never true. Ollama reads off them what is around thoughts and calls in an answer."""
        lines = []
        if self.found.drops_thoughts and not any(THOUGHT in joint.text for joint in self.joints):
            lines.append(f"{{{{- if and .Thinking false }}}}{OPEN_THOUGHTS}{{{{ .Thinking }}}}{CLOSE_THOUGHTS}{{{{ end }}}}")
        first = [one.text for one in self._seen(CALL) if one.before == USER and not one.seen["thinking"] | one.seen["content"]]
        prompt = [one.text for one in self._seen(END) if one.before == USER and one.seen["tools"]]
        if first and prompt:
            tag = first[0][len(_shared([first[0], prompt[0]])) :].partition("{")[0].strip()
            lines += [f"{{{{- if and .ToolCalls false }}}}{go_text(tag)}{{{{ end }}}}"] if tag else []
        return lines

    def _text(self, kind: str, value: str) -> str:
        """The text of a message, cut as the chat template does."""
        if kind in self.found.as_json:
            return f"{{{{ json {value} }}}}"
        left, right = self.found.cuts.get(kind, ("", ""))
        if not left and not right:
            return f"{{{{ {value} }}}}"
        self.cut.add((left, right))
        return f'{{{{ template "{_name_of_cut(left, right)}" {value} }}}}'

    def _write(self, found: Tree) -> str:
        """A tree as nested `if`, with what all its texts begin and end with around them."""
        if isinstance(found, str):
            return self._literal(found)
        head, tail = _common(leaves(found))
        yes, no = (mapped(one, lambda text: text[len(head) : len(text) - len(tail)]) for one in (found.yes, found.no))
        return self._literal(head) + self._if(found.condition, yes, no) + self._literal(tail)

    def _if(self, condition: str, yes: Tree, no: Tree) -> str:
        one, other = self._write(yes), self._write(no)
        if not one:
            return f"{{{{ if not ({condition}) }}}}{other}{{{{ end }}}}" if other else ""
        return f"{{{{ if {condition} }}}}{one}{f'{{{{ else }}}}{other}' if other else ''}{{{{ end }}}}"

    def _literal(self, text: str) -> str:
        """A text in which characters stand for others."""
        parts: Mapping[str, Callable[[], str]] = {
            SYSTEM: lambda: self._text("system", "$.System"),
            CONTENT: lambda: self._text(ASSISTANT, ".Content"),
            THOUGHT: lambda: "{{ .Thinking }}",
            TOOLS: self._tools,
        }
        pieces = re.split(f"([{''.join(parts)}])", text)
        return "".join(parts[piece]() if piece in parts else go_text(piece) for piece in pieces)

    def _tools(self) -> str:
        form = self.found.tool_form or JsonForm()
        body = json_of_tool(form, self.found.is_function_only, self.found.tool_depth)
        between = go_text(self.found.between_tools)
        return f"{{{{ range $n, $_ := $.Tools }}}}{{{{ if $n }}}}{between}{{{{ end }}}}{body}{{{{ end }}}}"

    def _calls(self) -> str:
        found = self.found
        arguments = json_of_object(found.call_form or JsonForm(), ".Function.Arguments")
        name = "{{ .Function.Name }}"
        first, second = (name, arguments) if found.is_name_first else (arguments, name)
        body = first + go_text(found.within_call) + second
        return (
            f"{{{{ range $n, $_ := .ToolCalls }}}}{{{{ if $n }}}}{go_text(found.between_calls)}{{{{ end }}}}{body}{{{{ end }}}}"
        )

    def _defined(self) -> list[str]:
        lines = []
        if self.found.call_form or self.found.tool_form:
            lines.append(json_of_value(self.found.call_form or self.found.tool_form or JsonForm()))
        for left, right in sorted(self.cut):
            name = _name_of_cut(left, right)
            rest = "{{ . }}"
            if left and right:
                rest = f'{{{{ template "{_name_of_cut("", right)}" . }}}}'
            if left:
                lines.append(_cut(name, _TRIMS[left], "slice . 0 1", "slice . 1", rest))
            if right:
                last, without = "slice . (len (slice . 1))", "slice . 0 (len (slice . 1))"
                lines.append(_cut(_name_of_cut("", right), _TRIMS[right], last, without, "{{ . }}"))
        return list(dict.fromkeys(lines))

    def _variables(self) -> list[str]:
        """Variables, and where the questions are that the template asks for."""
        names = {"$first": "-1", "$last": "-1", "$tool": "-1", "$results": "false", "$system": "false"}
        used = {name: value for name, value in names.items() if any(name in one.split() for one in self.used)}
        lines = [
            '{{- $before := "" }}{{ $end := -1 }}' + "".join(f"{{{{ {name} := {value} }}}}" for name, value in used.items())
        ]
        lines.append("{{- range $i, $_ := .Messages }}" + _set("end", "$i"))
        if "$system" in used:
            lines.append('{{- if eq .Role "system" }}' + _set("system", "true") + "{{ end }}")
        for role, first in (("user", "first"), ("tool", "tool")):
            sets = f"{{{{ if eq ${first} -1 }}}}{_set(first, '$i')}{{{{ end }}}}" if f"${first}" in used else ""
            sets += _set("last", "$i") if role == "user" and "$last" in used else ""
            lines += [f'{{{{- if eq .Role "{role}" }}}}{sets}{{{{ end }}}}'] if sets else []
        return [*lines, "{{- end }}"]


def _without_quotes(joint: Joint, found: Found) -> Joint:
    """A joint without the quotes of texts that are written as JSON."""
    text = joint.text
    if joint.after in found.as_json:
        text = text.removesuffix('"')
    return replace(joint, text=text.removeprefix('"') if joint.before in found.as_json else text)


def _common(texts: Sequence[str]) -> tuple[str, str]:
    """What texts begin and end with. Tokens stay whole, and so does a block of thoughts: Ollama reads its tags off it."""
    head = _OPEN_TOKEN.sub("", _shared(texts))
    tail = _CLOSED_TOKEN.sub("", _shared([text[len(head) :][::-1] for text in texts])[::-1])
    for text in texts:
        if THOUGHT in text and OPEN_THOUGHTS in text and CLOSE_THOUGHTS in text:
            head = head[: text.rfind(OPEN_THOUGHTS, 0, text.index(THOUGHT))]
            rest = text[text.index(CLOSE_THOUGHTS) + len(CLOSE_THOUGHTS) :].lstrip()
            tail = tail[len(tail) - min(len(tail), len(rest)) :]
    return head, tail


def _shared(texts: Sequence[str]) -> str:
    first, last = min(texts), max(texts)
    return first[: next((place for place, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]


def _set(name: str, value: str) -> str:
    return f"{{{{ ${name} = {value} }}}}"


def _tight(line: str) -> str:
    """A part of a template in front of a line that begins with `{{-`: its last whitespace is written as a string."""
    space = _SPACE.search(line)
    return line if space is None else line[: space.start()] + f"{{{{ {go_string(space.group())} }}}}"


def _name_of_cut(left: str, right: str) -> str:
    kinds = {"": "", "\n": "line", " \t\r\n": "space"}
    return "-".join(filter(None, ["cut", left and f"{kinds[left]}-before", right and f"{kinds[right]}-behind"]))


def _cut(name: str, letters: str, one: str, rest: str, otherwise: str) -> str:
    """A definition that cuts letters off an end of a text, one at a time."""
    return (
        f'{{{{- define "{name}" }}}}{{{{ if and . (eq ({one}) {letters}) }}}}{{{{ template "{name}" ({rest}) }}}}'
        f"{{{{ else }}}}{otherwise}{{{{ end }}}}{{{{ end }}}}"
    )
