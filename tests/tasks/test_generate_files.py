"""`hub generate` on files of rows, in a stream and in a terminal."""

import io
import json
import shutil
from pathlib import Path

import pytest
from data.fuzz import tokenizer_for
from data.test_loss_fuzz import FILES

import hub as hub_package
from hub.config.data import DataConfig
from hub.errors import ConfigError, HubError
from hub.launch.finished import asked_for
from hub.launch.launcher import launch
from hub.tasks.chat.conversation import Conversation
from hub.tasks.chat.screen import Screen
from hub.tasks.chat.stream import TextStream
from hub.tasks.generate import generate
from hub.tasks.generate.answer_shape import answer_shape
from hub.tasks.generate.answers_file import AnswersFile
from hub.tasks.generate.prompts import Prompter
from hub.tasks.generate.rows import questions
from hub.tasks.serve.folder import make_folder
from hub.tasks.serve.verb import VERB as SERVE
from hub.testing import tokenizer as tiny_tokenizer

ROWS = [
    {"prompt": "What?", "id": "a", "completion": ""},
    {"prompt": "What?", "completion": "That."},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]},
    {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]},
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"instruction": "Add."},
    {"instruction": "Add.", "output": ""},
    {"conversations": [{"from": "human", "value": "Who?"}]},
    {"prompt": "Which?", "chosen": "This.", "rejected": "That."},
    {"text": "Once upon"},
    {"input_ids": [5, 6, 7, 8], "labels": [-100, -100, 7, 8]},
]


def write(file: Path, rows) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(file)


def test_rows_of_every_format_are_asked_without_their_answer(tmp_path):
    user = {"role": "user"}
    found = [next(questions(DataConfig(path=write(tmp_path / "row.jsonl", [row])), None, [])) for row in ROWS]
    assert [question.shown() for question in found] == [
        {"prompt": "What?"},
        {"prompt": "What?"},
        {"messages": [{"role": "system", "content": "Be kind."}, user | {"content": "Hi"}]},
        {"prompt": "Hi"},
        {"prompt": "Add.\n\n1 2"},
        {"prompt": "Add."},
        {"prompt": "Add."},
        {"prompt": "Who?"},
        {"prompt": "Which?"},
        {"prompt": "Once upon"},
        {"input_ids": [5, 6]},
    ]
    assert [question.reference for question in found] == [None, "That.", None, "Ho", "3", None, None, None, "This.", None, None]
    of_run = DataConfig(columns={"prompt": "question", "completion": "reply"})
    data = DataConfig(path=write(tmp_path / "row.jsonl", [{"question": "Q", "reply": "A"}, {"prompt": "P"}]))
    assert [question.shown() for question in questions(data, of_run, [])] == [{"prompt": "Q"}, {"prompt": "P"}]


def test_a_stopped_file_is_continued_to_the_same_answers(hub, tmp_path, monkeypatch):
    write(tmp_path / "p.jsonl", [{"prompt": f"Say {'so ' * number}"} for number in range(1, 6)])
    words = ["model=tiny", "data.path=p.jsonl", "generate.max_new_tokens=4", "generate.temperature=1.5"]
    assert hub("generate", *words, "out=whole.jsonl", "generate.batch_size=5").code == 0
    whole = (tmp_path / "whole.jsonl").read_text()
    assert [json.loads(line)["row"] for line in whole.splitlines()] == [1, 2, 3, 4, 5]
    add = AnswersFile.add

    def stopping(self, records):
        if len(self.records) == 3:
            raise KeyboardInterrupt
        add(self, records)

    words += ["out=part.jsonl", "generate.batch_size=1"]
    with monkeypatch.context() as patch:
        patch.setattr(AnswersFile, "add", stopping)
        said = hub("generate", *words)
    assert said.code == 130
    assert f"stopped: 3 of 5 answers are in {tmp_path}/part.jsonl. To continue, type the same command again" in said.err
    assert [json.loads(line)["row"] for line in (tmp_path / "part.jsonl").read_text().splitlines()] == [3, 4, 5]
    with (tmp_path / "part.jsonl").open("a") as stream:
        stream.write('{"row": 2, "ans')  # killed while it wrote
    said = hub("generate", *words)
    assert (said.code, "5 answers in" in said.out, "New: 2 with" in said.out) == (0, True, True)
    assert (tmp_path / "part.jsonl").read_text() == whole
    with monkeypatch.context() as patch:
        patch.setattr(generate, "_fill", None)
        assert "has all answers already" in hub("generate", *words).err


def test_an_answer_may_have_what_python_takes_for_an_end_of_a_line(tmp_path):
    path, text = str(tmp_path / "a.jsonl"), "a\u2028b\x85c\x1cd\re"
    with AnswersFile(path, "x", overwrite=False) as file:
        file.add([{"row": 1, "prompt": text, "answer": text}])
        with pytest.raises(ConfigError, match="another process is writing"), AnswersFile(path, "x", overwrite=True):
            pass
    assert AnswersFile(path, "x", overwrite=False).records[1]["answer"] == text


def test_mistakes_of_generate_are_one_line_each(hub, tmp_path):
    def line(*words):
        said = hub("generate", "model=tiny", "generate.max_new_tokens=2", *words)
        assert said.code == 2
        return next(text for text in said.err.splitlines() if text.startswith("hub: ")).removeprefix("hub: ")

    write(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "a" * 4000}, {"wrong": 1}])
    (tmp_path / "empty.jsonl").touch()
    assert "there is nothing to answer. Type prompt=" in line()
    assert "two sources of prompts" in line("prompt=a", "data.path=p.jsonl")
    assert "prompt= is empty" in line("prompt= ")
    assert "Did you mean p.jsonl" in line("data.path=q.jsonl")
    assert "the file holds no rows" in line("data.path=empty.jsonl")
    assert "p.jsonl:3: these fields are of no known format" in line("data.path=p.jsonl")
    write(tmp_path / "p.jsonl", [{"prompt": "Hi"}, {"prompt": "a" * 4000}])
    assert "p.jsonl:2: the prompt has" in line("data.path=p.jsonl")
    assert "Type out=NAME.jsonl" in line("data.path=p.jsonl", "out=a.csv")
    assert "is the file of the prompts" in line("data.path=p.jsonl", "out=./p.jsonl")
    assert line("prompt=a", "data.loss_on=last") == "data.loss_on is about training and changes no answer. Leave it out"
    write(tmp_path / "odd.jsonl", [{"prompt": "Hi"}, {"input_ids": [5, 99999]}])
    assert "odd.jsonl:2: input_ids has 99999, but the model's tokenizer has" in line("data.path=odd.jsonl")
    (tmp_path / "odd.jsonl").write_text('{"prompt": "a \\ud83d"}\n{"prompt": null}\n')
    assert "odd.jsonl:2: prompt is null. Give a text or messages" in line("data.path=odd.jsonl")
    skipped = line("data.path=odd.jsonl", "data.on_bad_row=skip")
    assert "odd.jsonl:1: the text holds half a character" in skipped
    assert "out=./a.jsonl is in the folder of the prompts" in line("data.path=.", "out=./a.jsonl")
    assert "out=a.jsonl is one of the files that data.path=" in line("data.path=*.jsonl", "out=a.jsonl")
    assert "generate.stop has an empty text" in line("prompt=a", 'generate.stop=[""]')
    assert "overwrite=true is for out=" in line("prompt=a", "overwrite=true")
    assert "it is not known what tiny:llama was before training" in line("prompt=a", "compare=true")
    said = hub(
        "generate", "model=tiny", "data.path=p.jsonl", "data.on_bad_row=skip", "out=a.jsonl", "generate.max_new_tokens=2"
    )
    assert (said.code, "1 row without an answer. The first: p.jsonl:2: the prompt has" in said.out) == (0, True)
    assert "answers of another model or other settings" in line(
        "data.path=p.jsonl", "data.on_bad_row=skip", "out=a.jsonl", "generate.top_k=3"
    )
    write(tmp_path / "a.jsonl", [{"question": 1}])
    assert "is not a file of answers (line 1)" in line(
        "data.path=p.jsonl", "data.on_bad_row=skip", "out=a.jsonl", "overwrite=true"
    )


@pytest.mark.slow
def test_a_run_is_asked_from_python_and_compared_with_its_base(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["algo=lora_sft", "model=tiny", "data=tiny", "algo.max_steps=2", "algo.learning_rate=0.01", "algo.warmup_ratio=0"]
    launch(hub_package.compose(*words, "launch=inline", "run_name=adapter", "model.dtype=float32"))
    few = {"max_new_tokens": 4, "temperature": 0}
    rows = [{"prompt": "Hi"}, {"prompt": "Ho ho"}]
    both = hub_package.generate(run="runs/adapter", data=rows, compare=True, **few)
    base = hub_package.generate(model="tiny", data=rows, generate="factual", dtype="float32", **few)
    assert [row["base_answer"] for row in both] == [row["answer"] for row in base]
    assert [row["answer"] for row in both] != [row["base_answer"] for row in both]
    alone = hub_package.generate(run="latest", prompt="Hi", generate={"max_new_tokens": 4}, temperature=0)
    assert repr(alone) == both[0]["answer"]
    assert "<td" in both._repr_html_()
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'promt'\. Did you mean prompt"):
        hub_package.generate(run="latest", promt="Hi")
    # A run whose model is whole: here the adapter, merged as for a server.
    shutil.copytree("runs/adapter", "runs/whole", ignore=shutil.ignore_patterns("model", "checkpoints"))
    folder = tmp_path / "runs" / "whole" / "model"
    folder.mkdir()
    make_folder(asked_for(SERVE, ["run=runs/adapter"]), "transformers", folder, print)
    whole = hub_package.generate(run="runs/whole", data=rows, compare=True, **few)
    assert [(row["answer"], row["base_answer"]) for row in whole] == [(row["answer"], row["base_answer"]) for row in both]
    monkeypatch.setattr(
        "sys.stdin", io.StringIO("Hi\n/compare\nHi\n/nope\n/undo\n/save c.jsonl\n/system x\n/help\n/reset\n/quit\nNo\n")
    )
    capsys.readouterr()
    assert hub_package.chat(run="runs/adapter", generate={"max_new_tokens": 4}, temperature=0) is None
    said = capsys.readouterr()
    assert [said.out.partition("before:")[0].strip()] == [
        hub_package.generate(run="runs/adapter", prompt="Hi", **few)[0]["answer"].strip()
    ]
    assert "before:\n" in said.out
    assert "/nope: there is no such command. /help lists them" in said.err
    (row,) = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert [message["role"] for message in row["messages"]] == ["user", "assistant"]


def test_a_stream_shows_whole_characters_and_no_part_of_an_end():
    tokenizer = tokenizer_for(FILES["qwen3"].read_text(encoding="utf-8"))
    shape = answer_shape(tokenizer)
    for text, thoughts, answer in [
        ("<think>\n\n</think>\n\nGrüße, 世界 🙂!", "", "Grüße, 世界 🙂!"),
        ("<think>\nIs it 🙂?\n</think>\n\n4 </b> STOP", "Is it 🙂?", "4 </b> "),
        ("<thin ST STO", "", "<thin ST STO"),
        ("a \ufffd", "", "a \ufffd"),
    ]:
        shown: list[tuple[str, bool]] = []
        stream = TextStream(
            tokenizer, shape, ["STOP"], False, lambda piece, thought, shown=shown: shown.append((piece, thought))
        )
        for number in [*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]:
            stream.feed([number])
            assert not any("\ufffd" in piece for piece, _ in shown) or "\ufffd" in text
        stream.finish()
        assert "".join(piece for piece, thought in shown if thought) == thoughts
        assert "".join(piece for piece, thought in shown if not thought) == answer
        assert len(shown) > 1


def test_an_answer_can_not_change_the_terminal(capsys):
    screen = Screen()
    for screen.is_terminal in (True, False):
        screen.piece("a\x1b]0;title\x07\tb\n", thought=False)
    assert capsys.readouterr().out == "a\N{REPLACEMENT CHARACTER}]0;title\N{REPLACEMENT CHARACTER}\tb\na\x1b]0;title\x07\tb\n"


def test_the_oldest_turns_make_room_in_a_conversation():
    prompter, said = Prompter(tiny_tokenizer()), Conversation("Be kind.")
    for number in range(6):
        said.ask(f"Question {number}")
        whole = said.prompt(prompter, None, 8)
        ids = said.prompt(prompter, 100, 20)
        assert len(ids) <= 80
        said.answer(f"Answer {number}")
    assert said.left_out
    assert len(said.messages) == 13
    text = prompter.tokenizer.decode(ids)
    assert text.startswith(prompter.tokenizer.decode(whole)[:20])
    assert "Question 0" not in text
    said.ask("long " * 200)
    with pytest.raises(HubError, match="the model can hold 100 with the answer"):
        said.prompt(prompter, 100, 20)
