"""Data to protect that the model makes itself, where none is given: what it says shows what it can do.

Half of the tokens are conversations, of which the model writes both sides (the question behind the opening of a user's turn
in its chat template, as in Magpie, arXiv 2406.08464), half are texts from their first token on. Both are drawn from its own
distribution (temperature 1), as in self-distilled rehearsal (arXiv 2403.01244). Some public text is added. All is drawn by seed
and kept in the user's cache.
"""

import hashlib
import json
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from pathlib import Path
from random import Random
from typing import cast

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hub.config.generate import GenerateConfig
from hub.data.json_values import JsonObject
from hub.data.samples.sample import Sample
from hub.data.tokens.chat_template import chat_template
from hub.data.tokens.special_tokens import special_tokens
from hub.data.tokens.template_limits import limits
from hub.errors import DataError
from hub.models.digest import weights_digest
from hub.models.load import load_config
from hub.models.structure import max_positions, waits_for_others
from hub.parallel.group import broadcast_bytes
from hub.protection.passes import on_device
from hub.protection.samples import Groups, pack, unpack
from hub.system.cache import cache_dir, make_once
from hub.system.memory import is_out_of_memory
from hub.tasks.evaluate.sets import SHIPPED
from hub.tasks.generate.decode import Made
from hub.tasks.generate.ends import Ends
from hub.tasks.generate.engine import made, shape_of
from hub.tasks.generate.prompts import Prompter
from hub.tasks.loading import Loaded
from hub.train.attempts import twice
from hub.train.setup.setup import Setup

RECIPE = 1
"""Version of the samples in the cache. Increase it when the same model would make other ones."""

SECONDS = 60.0
"""Time after which no more samples are generated. A batch that has begun is finished first."""

TOKENS_PER_DIRECTION = 16
LEAST_TOKENS, MOST_TOKENS = 512, 65536
"""Tokens that are generated: a covariance of p directions needs several times p, so it is a multiple of the widest input."""

LONGEST = 256
"""Most tokens of a sample."""

CHATS, TEXTS, PUBLIC = "conversations that the model made", "texts that the model made", "public text"

_Batches = Generator[dict[int, Made], None, None]
_PROBE = "zq7"
_WHERE = "the chat template"
_ERRORS = (RuntimeError, ValueError, IndexError, TypeError, AttributeError, KeyError, NotImplementedError)
"""What a model raises that can't generate."""


def self_made(setup: Setup, model: PreTrainedModel, widest: int) -> Groups:
    """Let a model make samples of what it can do, or take them from the user's cache. They are the same on all ranks.

    Args:
        setup: of the run. With `evaluate.retention=auto` the public text is left out, since it is measured on.
        model: before training. If its weights are sharded it makes none, and there is more public text.
        widest: the largest number of inputs of a weight to protect.
    """
    wanted = min(MOST_TOKENS, max(LEAST_TOKENS, TOKENS_PER_DIRECTION * widest))
    groups: Groups = {}
    if not waits_for_others(model):
        content = b""
        if setup.session.group.is_main:
            content = _cached(setup, model, wanted, lambda: pack(twice(model, lambda: _generated(setup, model, wanted)), 0))
        groups = unpack(broadcast_bytes(content), "the cache", "Remove it (HUB_CACHE)")
    have = sum(len(sample) for group in groups.values() for sample in group)
    if setup.cfg.evaluate.retention != "auto" or not have:
        groups[PUBLIC] = _public(setup, wanted // 2 if have else wanted)
    return {name: group for name, group in groups.items() if group}


def _cached(setup: Setup, model: PreTrainedModel, wanted: int, make: Callable[[], bytes]) -> bytes:
    algo, tokenizer = setup.cfg.algo, setup.tokenizer
    if not getattr(algo, "cache", True):
        return make()
    vocabulary = sorted(setup.vocabulary.new.values()) if setup.vocabulary is not None else []
    parts = [RECIPE, wanted, algo.seed, str(setup.session.compute_dtype), str(tokenizer.chat_template), vocabulary]
    parts += ["quantized"] * (getattr(model.config, "quantization_config", None) is not None)
    key = hashlib.sha256(json.dumps(parts).encode() + weights_digest(setup.base_path).encode()).hexdigest()[:32]
    name = "samples.safetensors"
    folder = make_once(
        cache_dir() / "protected_samples" / key,
        lambda aside: (aside / name).write_bytes(make()),
        lambda path: (path / name).is_file(),
    )
    return (folder / name).read_bytes()


def _generated(setup: Setup, model: PreTrainedModel, wanted: int) -> Groups:
    begun = time.monotonic()
    positions = max_positions(load_config(setup.cfg.model, setup.base_path))
    length = max(16, min(LONGEST, wanted // 128, (positions or LONGEST) // 2))
    try:
        with on_device(setup, model):
            device = next(model.parameters()).device
            loaded = Loaded(
                f"algo={setup.algorithm}",
                model,
                setup.tokenizer,
                device,
                setup.session.compute_dtype,
                positions,
                setup.base_path,
            )
            writer = _Writer(loaded, setup.cfg.algo.seed, begun, _new_tokens(setup))
            number = max(1, wanted // (2 * length))
            groups = {CHATS: writer.chats(number, length), TEXTS: writer.texts(number, length)}
    except _ERRORS as error:
        if is_out_of_memory(error):
            raise
        line = str(error).strip().partition("\n")[0]
        setup.run.say(f"the model can't generate what to protect ({type(error).__name__}: {line[:200]}): public text is taken")
        return {}
    tokens = sum(len(sample) for group in groups.values() for sample in group)
    seconds = time.monotonic() - begun
    shown = " and ".join(f"{len(group)} {name}" for name, group in groups.items())
    setup.run.say(f"to protect what the model can do: {shown} ({tokens:,} tokens, {seconds:.1f} s)")
    return groups


def _new_tokens(setup: Setup) -> frozenset[int]:
    """Tokens that the model has not been trained with: it can't show anything with them."""
    return frozenset() if setup.vocabulary is None else frozenset(setup.vocabulary.new_rows)


class _Writer:
    """Draws conversations and texts from a model."""

    def __init__(self, loaded: Loaded, seed: int, begun: float, unknown: frozenset[int]) -> None:
        """Args:
        loaded: the model.
        seed: of the sampling.
        begun: when the time began, by `time.monotonic`.
        unknown: tokens at which a sample is cut.
        """
        self.loaded, self.seed, self.begun, self.unknown = loaded, seed, begun, unknown
        self.shape = shape_of(loaded)

    def chats(self, number: int, length: int) -> list[Sample]:
        """Conversations of one question and one answer. None without a chat template.

        Args:
            number: at most.
            length: most tokens of what is written in one.
        """
        opening = user_opening(self.loaded.tokenizer)
        if opening is None:
            return []
        ids, ends = opening
        asked = self._made([ids] * number, length // 4, ends | self.shape.stop_ids, "question", 0.3)
        prompter = Prompter(self.loaded.tokenizer)
        prompts = []
        for one in asked.values():
            kept = one.token_ids[:-1] if one.reason == "stop" else one.token_ids
            text = str(self.loaded.tokenizer.decode(kept, skip_special_tokens=True)).strip()
            if text and "\N{REPLACEMENT CHARACTER}" not in text:
                with suppress(DataError):
                    prompts.append(prompter.of_messages([{"role": "user", "content": text}], None, _WHERE).ids)
        prompts = [prompt for prompt in prompts if len(prompt) + length < (self.loaded.max_positions or 1 << 62)]
        answers = self._made(prompts, length - length // 4, self.shape.stop_ids, "answer", 0.7)
        return self._samples({number: prompts[number] for number in answers}, answers)

    def texts(self, number: int, length: int) -> list[Sample]:
        """Texts from the token that begins one.

        Args:
            number: at most.
            length: most tokens of one.
        """
        start = text_start(self.loaded.tokenizer)
        if start is None:
            return []
        written = self._made([[start]] * number, length, self.shape.stop_ids | {start}, "text", 1.0)
        return self._samples({number: [start] for number in written}, written)

    def _made(self, prompts: Sequence[list[int]], bound: int, ends: frozenset[int], kind: str, share: float) -> dict[int, Made]:
        """What the model writes behind prompts, by their numbers. No batch begins after `share * SECONDS`."""
        if not prompts:
            return {}
        settings = GenerateConfig(
            max_new_tokens=max(4, bound), temperature=1.0, top_p=1.0, repetition_penalty=1.0, seed=self.seed
        )
        keys = [f"{kind} {number}" for number in range(len(prompts))]
        written: dict[int, Made] = {}
        stop = Ends(self.loaded.tokenizer, ends, ())
        with closing(cast(_Batches, made(self.loaded, prompts, settings, stop, keys))) as batches:
            for batch in batches:
                written |= batch
                if time.monotonic() - self.begun > share * SECONDS:
                    break
        return {number: written[number] for number in sorted(written)}

    def _samples(self, prompts: Mapping[int, list[int]], written: Mapping[int, Made]) -> list[Sample]:
        """Samples whose loss tokens are those that were written."""
        samples = []
        for number, prompt in prompts.items():
            ids = written[number].token_ids
            ids = ids[: next((place for place, token in enumerate(ids) if token in self.unknown), len(ids))]
            if ids:
                whole = np.array([*prompt, *ids], dtype=np.int32)
                samples.append(Sample(whole, np.arange(len(whole)) >= len(prompt), "made by the model"))
        return samples


def user_opening(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], frozenset[int]] | None:
    """What stands before a user's first message in a chat template, and the tokens that end it.

    Args:
        tokenizer: with or without a template.

    Returns:
        Token ids of the opening, and special tokens behind the message. None without a template that has both.
    """
    before, found, behind = _rendered(tokenizer, ["user"]).partition(_PROBE)
    special = special_tokens(tokenizer)
    ends = frozenset(number for word, number in special.items() if behind.lstrip().startswith(word))
    ids = list(tokenizer(before, add_special_tokens=False)["input_ids"]) if before else []
    return (ids, ends) if found and ids and ends else None


def text_start(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands before a plain text: the one that begins texts, unless the chat template marks each turn with it.

    Then it is the next one of those that end a text or stand for no text, since some models have been pretrained with these.

    Args:
        tokenizer: with or without a chat template.
    """
    text = _rendered(tokenizer, ["user", "assistant"])
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text else []
    names = ("bos_token_id", "eos_token_id", "unk_token_id", "pad_token_id")
    candidates = [int(number) for name in names if (number := getattr(tokenizer, name, None)) is not None]
    return next((number for number in candidates if ids.count(number) < 2), next(iter(candidates), None))


def _rendered(tokenizer: PreTrainedTokenizerBase, roles: Sequence[str]) -> str:
    """A short conversation in the chat template. Empty without a template, or if it refuses this."""
    if not tokenizer.chat_template:
        return ""
    messages: list[JsonObject] = [{"role": role, "content": _PROBE} for role in roles]
    try:
        with limits(_WHERE):
            return chat_template(tokenizer, None).render(tokenizer, messages, None, _WHERE)
    except DataError:
        return ""


def _public(setup: Setup, wanted: int) -> list[Sample]:
    """Pieces of the public text that ships, in random order."""
    texts = [json.loads(line)["text"] for line in Path(SHIPPED).read_text(encoding="utf-8").splitlines()]
    positions = max_positions(load_config(setup.cfg.model, setup.base_path))
    longest = min(1024, positions or 1024)
    samples: list[Sample] = []
    left = wanted
    for text in Random(setup.cfg.algo.seed).sample(texts, len(texts)):
        if left <= 0:
            break
        ids = np.array(setup.tokenizer(text)["input_ids"][: min(longest, max(left, 16))], dtype=np.int32)
        if len(ids) > 1:
            samples.append(Sample(ids, np.arange(len(ids)) > 0, PUBLIC))
            left -= len(ids)
    return samples
