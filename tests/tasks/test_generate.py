"""Answers of finished models: prompts as in training, batches that change nothing, files that are continued."""

import itertools

import pytest
import torch
from data.fuzz import Talk, conversation_of, tokenizer_for
from data.test_loss_fuzz import FILES
from zoo.zoo import zoo_model

from hub.config.generate import GenerateConfig
from hub.config.schema import ModelConfig
from hub.data.tokens.template import encode
from hub.errors import ConfigError, DataError, ModelError
from hub.models import load
from hub.models.structure import max_positions
from hub.tasks.generate import engine
from hub.tasks.generate.answer_shape import answer_shape, split_thoughts
from hub.tasks.generate.batching import EQUAL, PADDED, SINGLE, batching_of, can_move, has_cache
from hub.tasks.generate.ends import Ends
from hub.tasks.generate.prompts import Prompter
from hub.tasks.generate.sampling import RepetitionPenalty, Sampler
from hub.tasks.loading import Loaded
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
