"""Modelfiles for Ollama: prompts with the token ids of training, read off how chat templates render, in Go's own engine too."""

import json
import shutil
import struct
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from data.fuzz import tokenizer_for
from data.test_loss_fuzz import FILES

from hub.config.export import ExportConfig
from hub.config.generate import GenerateConfig
from hub.errors import ModelError
from hub.tasks.export import export
from hub.tasks.export.card_sections import warning
from hub.tasks.export.job import Delivered
from hub.tasks.export.ollama.compare import differences, references, samples, system, tool, user
from hub.tasks.export.ollama.go_template import GoTemplate
from hub.tasks.export.ollama.header import header
from hub.tasks.export.ollama.modelfile import modelfile, parameters, read, stop_texts
from hub.tasks.export.ollama.prompts import find_prompts
from hub.tasks.export.ollama.values import values
from hub.tasks.export.ollama.write import added_bos, check_read_again, write
from hub.tasks.export.result import Exports

WITH_TOOLS = {"granite", "hub_chatml", "llama31", "mistral_v3", "qwen3", "tagged"}
"""Templates whose tools, calls and results Ollama can write as they do. The other ones of these drop them, or have XML."""

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def found():
    """Name of a template -> tokenizer and prompts."""
    tokenizers = {name: tokenizer_for(file.read_text(encoding="utf-8")) for name, file in FILES.items()}
    return {name: (tokenizer, find_prompts(tokenizer, "")) for name, tokenizer in tokenizers.items()}


def test_prompts_have_the_token_ids_of_training(found):
    assert {name: prompts.failures for name, (_, prompts) in found.items() if prompts.failures} == {}
    assert {name for name, (_, prompts) in found.items() if "$.Tools" in prompts.template} == WITH_TOOLS
    assert all(prompts.num_compared >= (20 if name in WITH_TOOLS else 7) for name, (_, prompts) in found.items())
    assert "without tools" not in "".join(
        found["deepseek_r1"][1].notes
    )  # its first result has another beginning than later ones
    assert "without tools: the chat template leaves out calls of tools" in found["smolvlm"][1].notes[0]
    # Ollama reads off the template in what thoughts and calls stand, and takes these out of answers.
    assert "{{ if .Thinking }}<think>\n{{ .Thinking }}\n</think>\n\n{{ end }}" in found["qwen3"][1].template
    assert "{{- if and .Thinking false }}<think>{{ .Thinking }}</think>{{ end }}" in found["deepseek_r1"][1].template
    assert "{{- if and .ToolCalls false }}<tool_call>{{ end }}" in found["qwen3"][1].template


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """Go's own text/template, with the values of Ollama."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("no Go here, whose text/template is the reference: apt-get install golang-go")
    program = tmp_path_factory.mktemp("go") / "engine"
    subprocess.run([go, "build", "-o", program, Path(__file__).with_name("engine.go")], check=True)

    def run(cases):
        lines = "".join(json.dumps(case) + "\n" for case in cases)
        return [
            json.loads(line)
            for line in subprocess.run([program], input=lines, capture_output=True, text=True).stdout.splitlines()
        ]

    return run


def test_the_evaluator_renders_what_go_does(found, engine):
    deep = {"type": "object", "properties": {"q": {"type": "string"}}, "description": "<x>"}
    more = {
        "messages": [system("A"), user("B"), system("C"), user("D"), user("E")],
        "tools": [tool("f", "", [], a=deep, b={"type": "integer"})],
    }
    cases = [
        {"template": prompts.template, "messages": sample.messages, "tools": sample.tools, "think": sample.think}
        for _, prompts in found.values()
        for sample in samples()
    ]
    cases += [{"template": prompts.template, **more} for _, prompts in found.values()]
    mine = [GoTemplate(case["template"]).render(values(case["messages"], case["tools"], case.get("think"))) for case in cases]
    assert engine(cases) == [{"text": text} for text in mine]


def test_other_prompts_are_found(found):
    tokenizer, prompts = found["llama31"]
    known, bos, template = references(tokenizer), tokenizer.bos_token, prompts.template

    def lines(changed, added=""):
        assert changed != template or added
        return [one.line for one in differences(changed, tokenizer, added, known)]

    assert lines(template, bos)[0].startswith(f"a question: '{bos}{bos}<|start_header_id|>")
    assert lines(template.replace("$.System", '""'))[0].startswith("a question behind a system prompt: ")
    assert lines(template.replace("<|eot_id|>", "<|eom_id|>"))[0].startswith("a question: ")
    assert lines(template.replace("ipython", "tool"))[0].startswith("a call of a tool and its result: ")
    assert lines(template.replace('" " "\\n"', '"\\n"'))[0].startswith("texts with spaces around them: ")
    assert lines(template.replace(".Role", ".Rolle"))[0] == "a question: Go template: no field Rolle"


@pytest.mark.parametrize(
    "text", ["{{ print 1 }}", "{{ .Prompt | json }}", "{{ with .System }}{{ end }}", "{{ $x }}", "{{ if .System }}", "{{"]
)
def test_what_the_evaluator_does_not_know_is_refused(text):
    with pytest.raises(ModelError, match="Go template: "):
        GoTemplate(text).render(values([user("Hi")], None))


def gguf(file, **keys):
    def text(value):
        return struct.pack("<Q", len(value.encode())) + value.encode()

    def value(one):
        if isinstance(one, bool):
            return struct.pack("<I?", 7, one)
        if isinstance(one, int):
            return struct.pack("<II", 4, one)
        if isinstance(one, str):
            return struct.pack("<I", 8) + text(one)
        return struct.pack("<IIQ", 9, 8, len(one)) + b"".join(map(text, one))

    packed = b"".join(text(name.replace("__", ".")) + value(one) for name, one in keys.items())
    file.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, len(keys)) + packed)
    return file


def job_for(folder, tokenizer, quants=("q4_k_m",), adds_bos=False, rows=(), **options):
    """A job whose GGUF files are headers only."""
    (folder / "gguf").mkdir()
    (folder / "ollama").mkdir()
    keys = {
        "general__architecture": "llama",
        "tokenizer__ggml__tokens": ["a", "é"],
        "llama__context_length": 6000,
        "tokenizer__ggml__add_bos_token": adds_bos,
    }
    files = [gguf(folder / "gguf" / f"my.{quant}.gguf", **keys) for quant in quants]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [tokenizer.eos_token_id]}), encoding="utf-8")
    done = [
        Delivered(exporter="gguf", kind=quant, path=file, num_bytes=1, seconds=0)
        for quant, file in zip(quants, files, strict=True)
    ]
    lines = []
    return SimpleNamespace(
        done={"gguf": done},
        tokenizer=tokenizer,
        out=folder / "ollama",
        cfg=ExportConfig(**options),
        asked=SimpleNamespace(cfg=SimpleNamespace(generate=GenerateConfig(temperature=0.2, stop=['say "x"', "\nUser:"]))),
        finished=SimpleNamespace(name="runs/My Run_1"),
        settings=lambda: folder,
        rows=lambda count: [list(range(length)) for length in rows],
        say=lines.append,
        lines=lines,
    )


def test_the_folder_stands_alone_and_reads_as_it_was_written(tmp_path):
    tokenizer = tokenizer_for("{#- eos: </s> end: <|im_end|> -#}{{ bos_token }}" + CHATML)
    job = job_for(tmp_path, tokenizer, ("q4_k_m", "q8_0"), adds_bos=True, rows=(700, 4000))
    (written,) = write(job)
    assert (written.kind, written.path, written.open) == ("q4_k_m,q8_0", job.out, None)
    assert "type in its folder: ollama create my-run_1 -f Modelfile-q4_k_m && ollama run my-run_1" in written.note
    names = ["Modelfile-q4_k_m", "Modelfile-q8_0", "README.md", "my.q4_k_m.gguf", "my.q8_0.gguf"]
    assert sorted(file.name for file in job.out.iterdir()) == names
    assert (job.out / "my.q8_0.gguf").samefile(tmp_path / "gguf" / "my.q8_0.gguf")
    commands = read((job.out / "Modelfile-q8_0").read_text(encoding="utf-8"))
    assert commands[0] == ("FROM", "./my.q8_0.gguf")
    assert [value for name, value in commands if name == "PARAMETER stop"] == ["</s>", "<|im_end|>", 'say "x"', "\nUser:"]
    others = {name.removeprefix("PARAMETER "): value for name, value in commands[2:]}
    assert (others["temperature"], others["num_ctx"]) == ("0.2", "5120")  # 4000 and 512 tokens, in steps of 1024
    # llama.cpp puts the beginning-of-text token there by itself.
    prompt = GoTemplate(commands[1][1]).render(values([system("S"), user("Hi")], None))
    assert prompt == "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert str(tmp_path) not in written.note + (job.out / "README.md").read_text(encoding="utf-8")


def test_a_beginning_of_text_token_is_there_once(tmp_path):
    tokenizer = tokenizer_for("{{ bos_token }}" + CHATML)
    write(job_for(tmp_path, tokenizer, adds_bos=False))
    template = dict(read((tmp_path / "ollama" / "Modelfile").read_text(encoding="utf-8")))["TEMPLATE"]
    assert GoTemplate(template).render(values([user("Hi")], None)).startswith("<s><|im_start|>")
    assert added_bos(tokenizer, {"tokenizer.ggml.model": "llama"}) == "<s>"  # the rule of llama.cpp where the file says nothing
    assert added_bos(tokenizer, {"tokenizer.ggml.model": "gpt2"}) == ""
    # A token that training did not have before its prompts, and that can't be taken away.
    lines = find_prompts(tokenizer_for(CHATML), "<s>").failures
    assert lines[0].startswith("a question: '<s><|im_start|>user\\nName a color.<|im_en' in Ollama, '<|im_start|>user")


def test_prompts_that_ollama_cannot_write_are_refused(tmp_path):
    tokenizer = tokenizer_for("{% for m in messages %}[{{ m.role }}]{{ m.content | replace('a', 'b') }}</s>{% endfor %}")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with pytest.raises(ModelError) as caught:
        write(job_for(tmp_path / "one", tokenizer))
    assert str(caught.value) == (
        "ollama: prompts would not be those of training (10 sample chats). a question: '[user]Name a color.</s>' in Ollama, "
        "'[user]Nbme b color.</s>' in training. Nothing is written. To keep it anyway, with this figure in its "
        "name, type --force"
    )
    job = job_for(tmp_path / "two", tokenizer, force=True)
    (written,) = write(job)
    assert "PROMPTS DIFFER from those of training: a question" in written.note
    assert written.failed.startswith("prompts of 10 sample chats are not those of training. a question: ")
    assert export._name(written, None) == "ollama-differs-10-chats"
    kept = Delivered(exporter="ollama", kind="q4_k_m", path=Path("x"), num_bytes=1, seconds=0, failed=written.failed)
    assert not kept.passed
    assert "FAILED" in repr(Exports([kept], tmp_path))
    assert "**not the model that was trained**: prompts of 10 sample chats" in "".join(warning([kept]))
    assert len(job.lines) == 1


def test_texts_that_no_question_tells_apart_are_shown():
    template = CHATML.replace("{{ m.role }}", "{% if loop.index is divisibleby 4 %}+{% endif %}{{ m.role }}")
    (line,) = find_prompts(tokenizer_for(template), "").failures
    assert line.startswith("the chat template writes '<|im_start|>+user\\n' and '<|im_start|>user\\n' at places that")


def test_a_text_that_a_modelfile_would_lose_is_escaped():
    """Three quotes, braces and characters that are not printed."""
    template = '{% for m in messages %}"""{{ "{{" }}{{ m.role }}\u200b{{ "{" }}{{ m.content }}{\u00a0"{% endfor %}'
    tokenizer = tokenizer_for(template)
    prompts = find_prompts(tokenizer, "")
    assert prompts.failures == []
    text = modelfile("x.gguf", prompts.template, parameters(GenerateConfig(), ["</s>"], 4096))
    check_read_again(text, "x.gguf", prompts.template, ["</s>"])
    assert GoTemplate(dict(read(text))["TEMPLATE"]).render(values([user("Hi")], None)).startswith('"""{{user\u200b{Hi{\u00a0"')
    with pytest.raises(ModelError, match=r"a Modelfile can't hold this PARAMETER stop: '\\u200b'"):
        check_read_again(modelfile("x.gguf", "", parameters(GenerateConfig(), ["\u200b"], 4096)), "x.gguf", "", ["\u200b"])


def test_a_model_without_a_chat_template_completes_texts(tmp_path):
    tokenizer = tokenizer_for(CHATML)
    tokenizer.chat_template = None
    prompts = find_prompts(tokenizer, "")
    assert (prompts.template, prompts.failures) == ("{{ .Prompt }}", [])
    assert stop_texts(tokenizer, [], []) == ["<|im_end|>"]
    (tmp_path / "x.gguf").write_bytes(b"GGML")
    with pytest.raises(ModelError, match="can't be read as a GGUF file"):
        header(tmp_path / "x.gguf")


def test_a_system_prompt_that_the_template_refuses_is_not_lost():
    tokenizer = tokenizer_for("{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + CHATML)
    prompts = find_prompts(tokenizer, "")
    assert prompts.failures == []
    assert "takes no system prompt" in prompts.notes[-1]
    assert "<|im_start|>user\nS\n\nHi<|im_end|>" in GoTemplate(prompts.template).render(values([system("S"), user("Hi")], None))


def test_an_answer_at_the_end_goes_on():
    template = find_prompts(tokenizer_for(CHATML), "").template
    begun = values([user("Hi"), {"role": "assistant", "content": "I am"}], None)
    assert GoTemplate(template).render(begun).endswith("<|im_start|>assistant\nI am")
