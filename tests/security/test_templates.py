"""A chat template is a program from the model's folder: it has access to nothing, and it ends."""

import json
import resource
import signal

import pytest

from hub.config.bounds import BoundOptions
from hub.data.formats.detect import convert
from hub.data.sources.read import Row
from hub.data.tokens import template_limits as limits
from hub.data.tokens.template import encode, load_template, require_template
from hub.errors import DataError
from hub.testing import CHATML, tokenizer

TURNS = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
TOUCH = "os.system('touch ' + messages[0]['content'])"


@pytest.fixture(scope="module")
def tokens():
    return tokenizer()


def refusal(tokens, template: str, content: str = "Hi") -> str:
    """Return the error for a conversation whose first message is `content`."""
    tokens.chat_template = template
    turns = [{"role": "user", "content": content}, TURNS[1]]
    conversation = convert(Row({"messages": turns}, "chats.jsonl", 1), "messages")
    with pytest.raises(DataError) as caught:
        encode(tokens, conversation)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "attempt",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (''|attr('__class__')).__mro__ }}",
        "{{ cycler.__init__.__globals__." + TOUCH + " }}",
        "{{ joiner.__init__.__globals__." + TOUCH + " }}",
        "{{ namespace.__init__.__globals__." + TOUCH + " }}",
        "{{ lipsum.__globals__." + TOUCH + " }}",
        "{% set ns = namespace() %}{% set ns.x = cycler %}{{ ns.x.__init__.__globals__." + TOUCH + " }}",
        "{{ raise_exception.__globals__.jinja2." + TOUCH + " }}",
        "{{ strftime_now.__globals__." + TOUCH + " }}",
        "{{ self._TemplateReference__context.environment }}",
        "{{ '{0.__class__.__mro__}'.format(1) }}",
        "{% set f = '{0.__init__.__globals__}'.format %}{{ f(cycler) }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update(role='assistant') }}",
        "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}{{ os.system('true') }}",
    ],
)
def test_a_template_that_reaches_for_python_is_a_line_and_reaches_nothing(tokens, canary, attempt):
    said = refusal(tokens, attempt + CHATML, str(canary.path))
    assert said.startswith("chats.jsonl:1: the chat template refuses this conversation. It says: ")
    assert not canary.appeared()


def test_a_template_never_gets_an_object_with_methods_of_its_own(tokens):
    called = []

    class Picture:
        def save(self, *given):
            called.append(given)

    tokens.chat_template = "{{ messages[0].picture.save('x') if messages[0].picture is not string }}" + CHATML
    messages = [{"role": "user", "content": "hi", "picture": Picture()}, {"role": "assistant", "content": "yes"}]
    encode(tokens, convert(Row({"messages": messages}, "chats.jsonl", 1), "messages"))
    assert not called


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{% for i in range(10**9) %}{% endfor %}", "Range too big. The sandbox blocks ranges larger than"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "maximum recursion depth exceeded"),
        ("{{ 1 // 0 }}", "integer division or modulo by zero"),
        ("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}", "did not end within 1 s"),
        ("{{ 'x' * (3 * 10**9) }}", "takes more than 2 GiB of memory"),
        ("{{ range(99999) | list * 4000 }}", "takes more than 2 GiB of memory"),
    ],
)
def test_a_template_that_takes_all_time_or_memory_is_ended(tokens, monkeypatch, template, said):
    monkeypatch.setattr("hub.config.bounds._current", BoundOptions(template_seconds=1))
    before = resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)
    assert said in refusal(tokens, template + CHATML)
    assert (resource.getrlimit(resource.RLIMIT_AS), signal.getsignal(signal.SIGALRM)) == before
    assert signal.getitimer(signal.ITIMER_REAL) == (0, 0)


def test_an_endless_template_of_the_users_own_names_its_file(tokens, monkeypatch, tmp_path):
    monkeypatch.setattr("hub.config.bounds._current", BoundOptions(template_seconds=1))
    file = tmp_path / "endless.jinja"
    file.write_text("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    with pytest.raises(DataError, match=r"data.template=.*endless.jinja: the chat template did not end within 1 s"):
        load_template(tokens, str(file))


@pytest.mark.parametrize(("release", "safe"), [("3.1.5", False), ("3.1.6", True), ("3.2", True), ("2.11.3", False)])
def test_a_jinja_whose_sandbox_has_known_ways_out_is_refused(tokens, monkeypatch, release, safe):
    monkeypatch.setattr(limits, "version", lambda name: release)
    tokens.chat_template = CHATML
    if safe:
        require_template(tokens)
        return
    with pytest.raises(DataError, match="pip install --upgrade jinja2"):
        require_template(tokens)


@pytest.mark.parametrize("place", ["option", "tokenizer_config.json", "chat_template.jinja"])
def test_a_run_with_a_hostile_template_is_one_clear_line(hub, folder, canary, tmp_path, place):
    template = "{{ cycler.__init__.__globals__.os.system('touch " + str(canary.path) + "') }}" + CHATML
    options = []
    if place == "tokenizer_config.json":
        (folder / "chat_template.jinja").unlink(missing_ok=True)
        config = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps(config | {"chat_template": template}))
    else:
        file = folder / "chat_template.jinja" if place == "chat_template.jinja" else tmp_path / "own.jinja"
        file.write_text(template)
        options = ["data.template=own.jinja"] if place == "option" else []
    said = hub("algo=sft", "model.path=model", "data=tiny", "algo.max_steps=1", "launch.mode=inline", *options)
    assert (said.code, len(said.problems)) == (2, 1)
    assert "the chat template refuses this conversation" in said.problems[0]
    assert not canary.appeared()
