"""Random conversations in which each text has words of its own, and checks of which of these have loss under a template.

python -m tests.data.fuzz FOLDER [ROWS]   runs over all templates of a folder, and prints a line for each
"""

import copy
import json
import random
import re
import sys
from collections import Counter
from itertools import count, product
from pathlib import Path

from jinja2 import TemplateError
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from transformers.utils.chat_template_utils import render_jinja_template

from hub.data.formats.detect import convert
from hub.data.sources.read import Row
from hub.data.tokens.template import encode, require_template
from hub.errors import DataError

TOOL_NAMES = ("find_harbour", "tide_table")
ABOUT = re.compile(
    r"\{#-? eos: (?P<eos>\S+) end: (?P<end>\S+?)(?: earlier: (?P<earlier>\S+))?(?: calls: (?P<calls>\S+))? -?#\}"
)
SPECIAL = re.compile(
    r"<SPECIAL_\d+>|\[e~\[|<seed:eos>|<[|｜][^<>\s]{1,40}[|｜]?>|<[a-z_]+\|>|\[[|][a-z]+[|]\]|</?[a-z_]{1,20}>|\[/?[A-Z_]{2,20}\]"
)
NOT_SPECIAL = re.compile(r"</?(think|tool|arg|function|param|tools|seed:(?!eos)|answer|invoke|s\b).*")


def tokenizer_for(text):
    """A byte-level tokenizer with the special tokens of a template, a token for each byte of any other text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={letter: number for number, letter in enumerate(alphabet)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.ByteLevel(trim_offsets=False)
    about = ABOUT.search(text)
    special = {token for token in SPECIAL.findall(ABOUT.sub("", text)) if not NOT_SPECIAL.fullmatch(token)}
    guess = ("<|im_end|>", "<|eot_id|>", "<|END_OF_TURN_TOKEN|>", "<｜end▁of▁sentence｜>", "<|return|>")
    eos = about["eos"] if about else next((token for token in guess if token in special), "</s>")
    special |= {"<s>", eos} | ({about["end"]} & special if about else set())
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token=eos)
    tokenizer.add_special_tokens({"additional_special_tokens": sorted(special - {"<s>", eos})})
    tokenizer.chat_template = text
    return tokenizer


class Talk:
    """One random conversation."""

    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.numbers = count()
        self.own = {}
        """Word -> the message whose word it is: its number, or tools."""

        self.kinds = {}
        """Word -> what it is: system, user, thoughts, text, call, results, tools."""

        self.messages = []
        self.tools = self._tools() if self.dice.random() < 0.4 else None
        self._fill()

    def words(self, kind, owner=None):
        number = self.dice.randint(1, 3)
        found = ["".join(self.dice.choices("bcdfghklmnprstvwxz", k=2)) + f"{next(self.numbers):03d}q" for _ in range(number)]
        self.own |= {word: len(self.messages) if owner is None else owner for word in found}
        self.kinds |= dict.fromkeys(found, kind)
        return " ".join(found)

    def text(self, kind):
        return (
            self.dice.choice(["", "", " ", "\n"]) + self.words(kind) + self.dice.choice([".", "?", "!\n", " ", ' "x"', " 世界"])
        )

    def _tools(self):
        fields = {"place": {"type": "string"}, "day": {"type": "integer"}}
        schema = {"type": "object", "properties": fields, "required": ["place"]}
        functions = [{"name": name, "description": self.words("tools", "tools"), "parameters": schema} for name in TOOL_NAMES]
        return [{"type": "function", "function": function} for function in functions]

    def _fill(self):
        if self.dice.random() < 0.4:
            self.messages.append({"role": "system", "content": self.text("system")})
        for _ in range(self.dice.randint(1, 4)):
            asked = [message["content"] for message in self.messages if message["role"] == "user"]
            again = self.dice.choice(asked) if asked and self.dice.random() < 0.1 else None
            self.messages.append({"role": "user", "content": again or self.text("user")})
            if self.dice.random() < 0.06:
                self.messages.append({"role": "user", "content": self.text("user")})
            for _ in range(self.dice.choice([0, 0, 1, 2]) if self.tools else 0):
                self._call()
            self._answer()
            if self.dice.random() < 0.06:
                self._answer()

    def _thoughts(self, message):
        draw = self.dice.random()
        if draw < 0.15:
            message["content"] = f"<think>\n{self.words('thoughts')}\n</think>\n\n{message['content']}"
        elif draw < 0.3:
            message["reasoning_content"] = self.text("thoughts")
        return message

    def _answer(self):
        self.messages.append(self._thoughts({"role": "assistant", "content": self.text("text")}))

    def _call(self):
        calls = []
        for number in range(self.dice.choice([1, 1, 2])):
            arguments = {"place": self.words("call"), "day": self.dice.randint(1, 9)}
            arguments = self.dice.choice([arguments, arguments, {"day": 3}, {}])
            calls.append({"id": f"call{len(self.messages):04d}{number}", "type": "function",
                          "function": {"name": self.dice.choice(TOOL_NAMES), "arguments": arguments}})  # fmt: skip
            written = json.dumps([self.messages, calls, self.tools])
            for word in [word for word in self.own if word not in written]:
                del self.own[word], self.kinds[word]
        text = self.text("text") if self.dice.random() < 0.4 else ""
        self.messages.append(self._thoughts({"role": "assistant", "content": text, "tool_calls": calls}))
        for call in calls:
            result = json.dumps({"at": self.words("results")}) if self.dice.random() < 0.5 else self.text("results")
            self.messages.append(
                {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": result}
            )


def conversation_of(talk):
    """The conversation as the hub reads it."""
    return convert(Row({"messages": talk.messages, "tools": talk.tools}, "talk.jsonl", 1), "messages")


def check(tokenizer, talk):
    """What is wrong with the loss of a conversation: a list of words, empty if nothing is. And the rendered text."""
    conversation = conversation_of(talk)
    encoded = encode(tokenizer, conversation)
    text = tokenizer.decode(encoded.input_ids)
    assert text in _renderings(tokenizer, conversation.messages, conversation.tools)
    again = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert again["input_ids"] == encoded.input_ids
    has_loss = [False] * len(text)
    for (start, end), flag in zip(again["offset_mapping"], encoded.loss_mask, strict=True):
        has_loss[start:end] = [flag] * (end - start)
    wrong, missing = [], set()
    for word, owner in talk.own.items():
        places = [match.start() for match in re.finditer(word, text)]
        flags = [any(has_loss[at : at + len(word)]) for at in places]
        if owner != "tools" and talk.messages[owner]["role"] == "assistant":
            wrong += [f"{word} of the assistant ({talk.kinds[word]}) has no loss" for flag in flags if not flag]
        else:
            wrong += [f"{word} ({talk.kinds[word]}) has loss" for flag in flags if flag]
        if not places:
            missing.add(talk.kinds[word])
    wrong += [f"{kind} is lost without a word" for kind in missing - _reported(encoded.omitted)]
    return wrong + _ends(tokenizer, talk, text, has_loss), text


def _renderings(tokenizer, messages, tools):
    """What transformers renders of the forms that a template may take, but for those that it refuses."""
    for null, texts, parts in product(
        (False, True), (False, True), ("", "user", "user assistant tool", "user assistant tool system")
    ):
        try:
            given = [_in_form(message, null, texts, parts.split()) for message in messages]
            names = tokenizer.special_tokens_map
            (rendered,), _ = render_jinja_template([given], tools, None, tokenizer.chat_template, **names)
        except (TemplateError, TypeError, LookupError):
            continue
        yield rendered


def _in_form(message, null, texts, parts):
    """A message without a content beside its calls, with arguments of calls as texts, or with parts in some roles."""
    message = copy.deepcopy(message)
    if null and not message["content"].strip() and "tool_calls" in message:
        message["content"] = None
    elif message["role"] in parts:
        message["content"] = [{"type": "text", "text": message["content"]}]
    for call in message.get("tool_calls", []) if texts else []:
        call["function"]["arguments"] = json.dumps(call["function"]["arguments"], ensure_ascii=False)
    return message


def _reported(kinds):
    names = {"earlier_thoughts": "thoughts", "reasoning": "thoughts", "texts": "text"}
    return {names.get(kind, kind) for kind in kinds}


def _ends(tokenizer, talk, text, has_loss):
    """What is wrong at the ends of turns: each must have loss up to its last token, and nothing behind it."""
    wrong = []
    about = ABOUT.search(tokenizer.chat_template)
    for index, message in enumerate(talk.messages):
        calls = message.get("tool_calls", [])
        kind = "call" if calls else "text"
        words = [word for word, owner in talk.own.items() if owner == index and talk.kinds[word] == kind and word in text]
        if message["role"] != "assistant" or not words or (calls and (not about or "place" not in str(calls[-1]))):
            continue
        at = max(text.index(word) + len(word) for word in words)
        others = [text.find(word, at) for word, owner in talk.own.items() if owner != index and word in text[at:]]
        behind = text[at : min(others, default=len(text))]
        trained = "".join(letter for letter, flag in zip(behind, has_loss[at:], strict=False) if flag)
        followed = index + 1 < len(talk.messages)
        if followed and talk.messages[index + 1]["role"] == "assistant":
            continue
        if about:
            end = about["earlier"] if followed and about["earlier"] else about["end"]
            end = about["calls"] or end if calls else end
            end = "" if end == "none" else end
            stops = trained.endswith(end) and trained.count(end) == 1 if end else not SPECIAL.search(trained)
        else:
            stops = followed or any(token in trained for token in tokenizer.all_special_tokens)
        if not stops:
            wrong.append(f"message {index + 1} of {len(talk.messages)} is trained to end with {trained!r} of {behind!r}")
    return wrong


def run(text, rows, seed=0):
    """Check a template on some conversations: how many are trained, why others are refused, what is wrong."""
    tokenizer = tokenizer_for(text)
    require_template(tokenizer)
    refused, wrong, num_trained = Counter(), [], 0
    for number in range(rows):
        try:
            found, _ = check(tokenizer, Talk(f"{seed}/{number}"))
            num_trained += 1
            wrong += [f"row {number}: {each}" for each in found]
        except DataError as error:
            refused[re.sub(r"message \d+", "message N", str(error).removeprefix("talk.jsonl:1: "))[:300]] += 1
    return num_trained, refused, wrong


if __name__ == "__main__":
    for file in sorted(Path(sys.argv[1]).glob("*.jinja")):
        num_trained, refused, wrong = run(file.read_text(encoding="utf-8"), int(sys.argv[2]) if len(sys.argv) > 2 else 40)
        lost = sum(count for reason, count in refused.items() if "can't be found" in reason or "mixes" in reason)
        print(
            f"{file.stem}: {num_trained} trained, {sum(refused.values())} refused, {lost} of them not found, {len(wrong)} wrong"
        )
        for line in [*wrong[:4], *(reason for reason, _ in refused.most_common(3))]:
            print("   ", line[:260])
