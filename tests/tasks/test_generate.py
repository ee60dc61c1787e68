"""Answers of finished models: prompts as in training, batches that change nothing, files that are continued."""

import io
import itertools
import json
import shutil
from pathlib import Path

import pytest
import torch
from data.fuzz import Talk, conversation_of, tokenizer_for
from data.test_loss_fuzz import FILES
from zoo.zoo import zoo_model

import hub as hub_package
from hub.config.data import DataConfig
from hub.config.generate import GenerateConfig
from hub.config.schema import ModelConfig
from hub.data.tokens.template import encode
from hub.errors import ConfigError, DataError, HubError, ModelError
from hub.launch.finished import asked_for
from hub.launch.launcher import launch
from hub.models import load
from hub.models.structure import max_positions
from hub.tasks.chat.conversation import Conversation
from hub.tasks.chat.screen import Screen
from hub.tasks.chat.stream import TextStream
from hub.tasks.generate import engine, generate
from hub.tasks.generate.answer_shape import answer_shape, split_thoughts
from hub.tasks.generate.answers_file import AnswersFile
from hub.tasks.generate.batching import EQUAL, PADDED, SINGLE, batching_of, can_move, has_cache
from hub.tasks.generate.ends import Ends
from hub.tasks.generate.prompts import Prompter
from hub.tasks.generate.rows import questions
from hub.tasks.generate.sampling import RepetitionPenalty, Sampler
from hub.tasks.loading import Loaded
from hub.tasks.serve.folder import make_folder
from hub.tasks.serve.verb import VERB as SERVE
from hub.testing import tokenizer as tiny_tokenizer

GREEDY = GenerateConfig(temperature=0, repetition_penalty=1.0, max_new_tokens=6)


def loaded_zoo(name: str) -> Loaded:
    """A tiny model in float32."""
    path = zoo_model(name)
    model = load.load_causal_lm(ModelConfig(path=str(path)), path, "cpu", torch.float32).eval()
    positions = max_positions(model.config)
    return Loaded(name, model, tiny_tokenizer(), torch.device("cpu"), torch.float32, positions, path)


@pytest.fixture(scope="module")
def llama() -> Loaded:
    return loaded_zoo("llama")


# Where the template renders a conversation without its last answer in another way than with it.
def differs(name: str, conversation) -> bool:
    *before, last = conversation.messages
    merged = before[-1]["role"] == "assistant"  # two turns in a row: some templates make one of them
    moved = name == "mistral_v3" and before[0]["role"] == "system"  # it shows the system message in a last question only
    thoughts = name == "gpt_oss" and any("reasoning_content" in message for message in before)  # dropped behind an answer
    return last["role"] != "assistant" or merged or moved or thoughts


@pytest.mark.parametrize("name", FILES)
def test_a_prompt_has_the_tokens_of_training_before_the_answer(name):
    tokenizer = tokenizer_for(FILES[name].read_text(encoding="utf-8"))
    prompter, compared = Prompter(tokenizer, trained=True), 0
    for number in range(6):
        conversation = conversation_of(Talk(f"{name}/{number}"))
        try:
            encoded = encode(tokenizer, conversation, "last")
        except DataError:
            continue
        if differs(name, conversation):
            continue
        prompt = prompter.of_messages(conversation.messages[:-1], conversation.tools, conversation.where)
        assert prompt.ids == encoded.input_ids[: encoded.loss_mask.index(True)], conversation.where
        compared += 1
    assert compared >= 2


def test_thoughts_are_switched_and_a_block_that_training_lacks_is_left_out():
    qwen = tokenizer_for(FILES["qwen3"].read_text(encoding="utf-8").replace("add_generation_prompt %}", "X %}", 0))
    question = [{"role": "user", "content": "Hi"}]
    r1 = tokenizer_for(FILES["deepseek_r1"].read_text(encoding="utf-8"))
    own, tuned = Prompter(r1), Prompter(r1, trained=True)
    assert own.of_messages(question, None, "").text.endswith("<think>\n")
    assert tuned.of_messages(question, None, "").text.endswith("<｜Assistant｜>")
    assert "generate.thinking=on keeps it" in tuned.lines[0]
    assert Prompter(r1, "on", trained=True).of_messages(question, None, "").text.endswith("<think>\n")
    with pytest.raises(ConfigError, match="no switch for thoughts"):
        Prompter(tiny_tokenizer(), "off")
    switch = "{% if add_generation_prompt and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    qwen.chat_template += switch
    assert Prompter(qwen, "off").of_messages(question, None, "").text.endswith("assistant\n<think>\n\n</think>\n\n")
    assert Prompter(qwen, "on").of_messages(question, None, "").text.endswith("assistant\n")


def test_an_answer_ends_where_training_taught_it_and_has_no_header():
    shapes = {}
    for name in ("gpt_oss", "qwen3", "glm4", "hub_gemma", "hub_plain"):
        tokenizer = tokenizer_for(FILES[name].read_text(encoding="utf-8"))
        shape = answer_shape(tokenizer)
        shapes[name] = shape.header, {str(tokenizer.convert_ids_to_tokens(number)) for number in shape.stop_ids}
    assert shapes == {
        "gpt_oss": ("<|channel|>final<|message|>", {"<|return|>", "<|call|>"}),
        "qwen3": ("<think>\n\n</think>\n\n", {"<|im_end|>"}),
        "glm4": ("\n<think></think>\n", {"<|endoftext|>"}),
        "hub_gemma": ("", {"</s>", "<end_of_turn>"}),
        "hub_plain": (" ", {"</s>"}),
    }
    without_token = tiny_tokenizer()
    without_token.chat_template = "{% for m in messages %}### {{ m.role }}\n{{ m.content }}\n### End\n{% endfor %}"
    assert answer_shape(without_token).stop_texts == ("### End",)
    header = "<think>\n\n</think>\n\n"
    assert split_thoughts(header + "4", header, opened=False) == ("", "4")
    assert split_thoughts("<think>\nIs it?\n</think>\n\n4", header, opened=False) == ("Is it?", "4")
    assert split_thoughts("Is it?\n</think>\n4", "", opened=True) == ("Is it?", "4")
    assert split_thoughts("Is it", "", opened=True) == ("Is it", "")
    assert split_thoughts("a </think> b", "", opened=False) == ("", "a </think> b")


def test_a_text_has_one_beginning_and_no_end(llama):
    tokenizer = tokenizer_for(FILES["hub_llama3"].read_text(encoding="utf-8"))
    text = Prompter(tokenizer).of_messages([{"role": "user", "content": "Hi"}], None, "")
    assert text.ids.count(tokenizer.bos_token_id) == text.text.count("<s>") <= 1
    base = tiny_tokenizer()
    base.chat_template = None
    base.backend_tokenizer.post_processor = __import__("tokenizers").processors.TemplateProcessing(
        single="<|im_start|> $A <|im_end|>", special_tokens=[("<|im_start|>", 1), ("<|im_end|>", 2)]
    )
    plain = Prompter(base).of_messages([{"role": "user", "content": "Hi"}], None, "")
    assert plain.ids[0] == 1
    assert plain.ids[1:] == base("Hi", add_special_tokens=False)["input_ids"]
    with pytest.raises(DataError, match=r"no chat template \(a base model\?\).*data\.template=plain"):
        Prompter(base).of_messages([{"role": "system", "content": "x"}, {"role": "user", "content": "Hi"}], None, "a:1")


@pytest.mark.parametrize(
    ("name", "kind", "moves"),
    [
        ("llama", PADDED, True),
        ("gpt2", PADDED, True),
        ("falcon_alibi", PADDED, True),
        ("gemma3_text", PADDED, True),  # sliding windows
        ("deepseek_v3", PADDED, True),  # keys and values of different sizes
        ("mamba", PADDED, True),
        ("falcon_h1", PADDED, True),  # attention beside recurrences
        ("openai-gpt", PADDED, False),
        ("minimax", EQUAL, False),
        ("rwkv", SINGLE, False),
        ("xlstm", None, False),
    ],
)
def test_an_answer_in_a_batch_is_the_one_alone(name, kind, moves):
    loaded = loaded_zoo(name)
    prompts = [list(range(10, 10 + length)) for length in (3, 9, 5, 9, 1, 30)] + [list(range(40, 45))]
    answers = []
    for prompt in prompts:  # the reference: the most likely token again and again, without cache and without padding
        ids = list(prompt)
        with torch.no_grad():
            for _ in range(6):
                ids.append(int(loaded.model(torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        answers.append(ids[len(prompt) :])
    # Answers of different lengths: rows leave, and others take their place.
    loaded.model.generation_config.eos_token_id = [answers[1][1], answers[5][3]]
    ends = engine.shape_of(loaded).stop_ids
    expected = [ids[: min([*(ids.index(end) + 1 for end in ends if end in ids), 6])] for ids in answers]
    several = GenerateConfig(**vars(GREEDY) | {"batch_size": 3})
    together = engine.answers(loaded, prompts, several)
    assert [answer.token_ids for answer in together] == expected
    assert [engine.answers(loaded, [prompt], GREEDY)[0] for prompt in prompts] == together
    assert has_cache(loaded.model, torch.float32) == (kind is not None)
    assert kind is None or batching_of(loaded.model, torch.float32) == kind
    assert kind in (None, SINGLE) or can_move(loaded.model, torch.float32) == moves
    assert not loaded.model.training


def test_an_answer_that_has_ended_costs_no_more_steps(llama, monkeypatch):
    prompts = [[10 + number, 11, *range(number)] for number in range(12)]
    free = engine.answers(llama, prompts, GREEDY)
    forward, sizes = llama.model.forward, []

    def counting(**inputs):
        sizes.append(inputs["input_ids"].shape)
        return forward(**inputs)

    monkeypatch.setattr(llama.model, "forward", counting)
    monkeypatch.setattr(llama.model.generation_config, "eos_token_id", [free[3].token_ids[1], free[8].token_ids[2]])
    made = engine.answers(llama, prompts, GenerateConfig(**vars(GREEDY) | {"batch_size": 4}))
    lengths = [len(answer.token_ids) for answer in made]
    assert len(set(lengths)) > 2
    assert sum(rows for rows, columns in sizes if columns == 1) == sum(lengths) - len(prompts)
    assert max(rows for rows, _ in sizes) == 4
    # Prompts joined a batch: a step has more rows than the prompts before it.
    assert any(then > rows for (rows, columns), (then, step) in itertools.pairwise(sizes) if columns > step)


def test_stop_texts_are_found_wherever_tokens_are_cut():
    for name in ("qwen3", "hub_gemma"):
        tokenizer = tokenizer_for(FILES[name].read_text(encoding="utf-8"))
        for stop in ("\n\n", "STOP", "é 🙂", ". ", "it"):
            text = f"Is 🙂 it\n so? Élan, S TOP é{stop} and on"
            ids = tokenizer(text, add_special_tokens=False)["input_ids"]
            ends, made = Ends(tokenizer, [tokenizer.eos_token_id], [stop]), []
            for number in ids:
                made.append(number)
                found = ends.reached(made)
                assert found == (stop in tokenizer.decode(made))
                if found:
                    break
            assert found
            assert ends.reached([tokenizer.eos_token_id])


def test_answers_stop_at_tokens_at_texts_and_at_the_context(llama):
    prompt = list(range(10, 20))
    free = engine.answers(llama, [prompt], GREEDY)[0]
    assert (free.finish_reason, len(free.token_ids)) == ("length", 6)
    text = llama.tokenizer.decode(free.token_ids)
    word = text[len(text) // 2 :][:2]
    stopped = engine.answers(llama, [prompt], GenerateConfig(**vars(GREEDY) | {"stop": [word]}))[0]
    assert (stopped.finish_reason, stopped.text) == ("stop", text.partition(word)[0])
    third = free.token_ids[2]
    llama.model.generation_config.eos_token_id = [third]
    try:
        ended = engine.answers(llama, [prompt], GREEDY)[0]
    finally:
        llama.model.generation_config.eos_token_id = llama.tokenizer.eos_token_id
    assert ended.finish_reason == "stop"
    assert ended.token_ids == free.token_ids[: free.token_ids.index(third) + 1]
    assert ended.text == llama.tokenizer.decode(ended.token_ids[:-1])
    narrow = Loaded(**vars(llama) | {"max_positions": 12})
    mixed = engine.answers(narrow, [prompt, prompt[:8]], GREEDY)
    assert [len(answer.token_ids) for answer in mixed] == [2, 4]
    with pytest.raises(ModelError, match="prompt 1 has 12 tokens"):
        engine.answers(narrow, [prompt, [*prompt, 1, 2]], GREEDY)


def test_draws_follow_the_distribution_and_depend_on_seed_and_row_alone(llama):
    logits = torch.tensor([[2.0, 1.0, 0.0, -1.0, -9.0]])
    settings = GenerateConfig(temperature=2.0, top_p=1.0, top_k=3, repetition_penalty=1.0)
    counts = torch.zeros(5)
    for draw in range(200):
        keys = [f"{draw}/{row}" for row in range(20)]
        sampler = Sampler(settings, [], [[0]] * 20, keys, logits.device)
        counts += torch.bincount(sampler.scores(logits.repeat(20, 1), None).argmax(1), minlength=5)
    expected = torch.softmax(torch.tensor([1.0, 0.5, 0.0]), 0)
    assert torch.allclose(counts[:3] / 4000, expected, atol=0.03)
    assert not counts[3:].any()
    prompts = [[10, 11, 12], [10, 11, 12], [20, 21]]
    hot = GenerateConfig(temperature=1.5, top_p=1.0, max_new_tokens=8)
    drawn = engine.answers(llama, prompts, hot)
    assert drawn[0] != drawn[1]
    assert engine.answers(llama, prompts[2:], hot, keys=["2"]) == drawn[2:]
    assert engine.answers(llama, prompts, GenerateConfig(**vars(hot) | {"seed": 1})) != drawn
    assert engine.answers(llama, prompts, GenerateConfig(**vars(hot) | {"batch_size": 1})) == drawn


def test_the_repetition_penalty_is_that_of_transformers_but_for_ends():
    from transformers import RepetitionPenaltyLogitsProcessor

    device, others = torch.device("cpu"), [number for number in range(8) if number != 4]
    ours = RepetitionPenalty(1.3, [4], [[3], [1, 2, 3], [6]], device)
    seen: list[list[int]] = [[3], [1, 2, 3], [6]]
    last = None
    for order in (None, [0, 2], [0]):  # rows leave, and one joins
        scores = torch.randn(len(seen), 8)
        found = ours(scores, last)
        assert torch.equal(found[:, 4], scores[:, 4])
        for row, ids in enumerate(seen):
            theirs = RepetitionPenaltyLogitsProcessor(1.3)(torch.tensor([ids]), scores[row : row + 1].clone())[0]
            assert torch.equal(found[row, others], theirs[others])
        ours.keep(order or range(len(seen)))
        seen = [seen[row] for row in order or range(len(seen))]
        if order == [0, 2]:
            joining = RepetitionPenalty(1.3, [4], [[7, 0]], device)
            joining(torch.randn(1, 8), None)
            ours.join(joining)
            seen.append([7, 0])
        last = torch.tensor([5, 4, 2][: len(seen)])
        seen = [[*ids, int(token)] for ids, token in zip(seen, last, strict=True)]


def test_a_batch_that_does_not_fit_is_halved(llama, monkeypatch):
    prompts = [[10 + number, 11, 12] for number in range(9)]
    expected = engine.answers(llama, prompts, GREEDY)
    forward, sizes = llama.model.forward, []

    def narrow(**inputs):
        rows, columns = inputs["input_ids"].shape
        if columns > 1:
            sizes.append(rows)
        if rows > most or (columns == 1 and rows > most_in_steps):
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(**inputs)

    monkeypatch.setattr(llama.model, "forward", narrow)
    most = most_in_steps = 2
    assert engine.answers(llama, prompts, GREEDY) == expected
    assert sizes == [9, 4, 2, 2, 2, 2, 1]
    most, most_in_steps = 9, 3
    assert engine.answers(llama, prompts, GREEDY) == expected
    most = 0
    with pytest.raises(ModelError, match=r"does not fit into memory\. Type a smaller generate\.max_new_tokens"):
        engine.answers(llama, prompts, GREEDY)


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
