"""Writes texts and JSON in Go's template language."""

import re

from hub.tasks.export.ollama.modelfile import is_printed
from hub.tasks.export.ollama.probe import JsonForm

_NOT_PLAIN = re.compile(r'\{*(?:\?|"""+)+|\{\{+|\{\Z')
"""What can't stand in a template as it is, where `?` stands for a character that is not printed."""


def go_string(text: str) -> str:
    """A string of Go. Non-printing characters are escaped: a Modelfile loses them."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return '"' + "".join(one if is_printed(one) else _escape(one) for one in escaped) + '"'


def _escape(letter: str) -> str:
    return f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}"


def go_text(text: str) -> str:
    """A text of a template that is written as it is. What would mean something else becomes a string in an action."""
    kinds = "".join(one if one in '{"' else "." if one in "\n\t" or is_printed(one) else "?" for one in text)
    parts, place = [], 0
    for match in _NOT_PLAIN.finditer(kinds):
        parts += [text[place : match.start()], f"{{{{ {go_string(text[match.start() : match.end()])} }}}}"]
        place = match.end()
    return "".join([*parts, text[place:]])


def json_of_object(form: JsonForm, over: str) -> str:
    """An object as JSON. Its values are written by `value`."""
    more = f"{{{{ if $more }}}}{go_text(form.comma)}{{{{ end }}}}{{{{ $more = true }}}}"
    pair = f'{{{{ json $key }}}}{go_text(form.colon)}{{{{ template "value" $value }}}}'
    return f'{{{{ $more := false }}}}{{{{ "{{" }}}}{{{{ range $key, $value := {over} }}}}{more}{pair}{{{{ end }}}}}}'


def json_of_value(form: JsonForm) -> str:
    """A definition that writes any value as JSON: the function `json` of Ollama writes no spaces."""
    more = f"{{{{ if $more }}}}{go_text(form.comma)}{{{{ end }}}}{{{{ $more = true }}}}"
    items = f'{{{{ $more := false }}}}[{{{{ range . }}}}{more}{{{{ template "value" . }}}}{{{{ end }}}}]'
    kind = '{{ $kind := slice (printf "%T" .) 0 3 }}'
    branches = f'{{{{ if eq $kind "map" }}}}{json_of_object(form, ".")}{{{{ else if eq $kind "[]i" }}}}{items}'
    return f'{{{{- define "value" }}}}{kind}{branches}{{{{ else }}}}{{{{ json . }}}}{{{{ end }}}}{{{{ end }}}}'


def json_of_tool(form: JsonForm, function_only: bool, depth: int) -> str:
    """The schema of a tool as JSON, its keys in the usual order: Ollama keeps no other."""

    def line(depth: int) -> str:
        return "" if form.indent is None else "\n" + " " * (form.indent * depth)

    def pairs(depth: int, *items: tuple[str, str, str]) -> str:
        """An object. Items: condition or empty, key, value. The first has no condition."""
        text = '{{ "{" }}'
        for number, (condition, key, value) in enumerate(items):
            comma = form.comma if number else ""
            one = f'{comma}{line(depth + 1)}"{key}"{form.colon}{value}'
            text += f"{{{{ if {condition} }}}}{one}{{{{ end }}}}" if condition else one
        return text + line(depth) + "}"

    def items(depth: int, over: str) -> str:
        comma = f"{{{{ if $n }}}}{form.comma}{{{{ end }}}}{line(depth + 1)}"
        return f"[{{{{ range $n, $_ := {over} }}}}{comma}{{{{ json . }}}}{{{{ end }}}}{line(depth)}]"

    top = depth if function_only else depth + 1
    plain = pairs(
        top + 3,
        ("", "type", "{{ json .Type }}"),
        (".Items", "items", '{{ template "value" .Items }}' if form.indent is None else "{{ json .Items }}"),
        (".Description", "description", "{{ json .Description }}"),
        (".Enum", "enum", items(top + 4, ".Enum")),
    )
    # Ollama keeps more of an object, and of what may have several types, than templates of all its releases can ask for.
    whole = '{{ if and .Type (ne (json .Type) "\\"object\\"") }}' + plain + "{{ else }}{{ json . }}{{ end }}"
    comma = f"{{{{ if $more }}}}{form.comma}{{{{ end }}}}{{{{ $more = true }}}}{line(top + 3)}"
    each = f"{comma}{{{{ json $name }}}}{form.colon}{whole}"
    every = f"{{{{ range $name, $_ := .Function.Parameters.Properties }}}}{each}{{{{ end }}}}"
    properties = f'{{{{ $more := false }}}}{{{{ "{{" }}}}{every}{line(top + 2)}}}'
    parameters = pairs(
        top + 1,
        ("", "type", "{{ json .Function.Parameters.Type }}"),
        ("", "properties", properties),
        (".Function.Parameters.Required", "required", items(top + 2, ".Function.Parameters.Required")),
    )
    function = pairs(
        top,
        ("", "name", "{{ json .Function.Name }}"),
        (".Function.Description", "description", "{{ json .Function.Description }}"),
        ("", "parameters", parameters),
    )
    return function if function_only else pairs(depth, ("", "type", "{{ json .Type }}"), ("", "function", function))
