"""A finished model for lm-eval (EleutherAI's evaluation harness): its requests run in the hub's passes.

Texts become tokens as lm-eval's own `hf` model makes them (lm_eval/models/huggingface.py of 0.4.13: `tok_encode`,
`_encode_pair`, `_loglikelihood_tokens`, `loglikelihood_rolling`, `generate_until`), so that scores are the same. Imported only
when a task is asked for.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs, postprocess_generated_text, resolve_max_length
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from hub.config.generate import GenerateConfig
from hub.config.option import AUTO
from hub.errors import ConfigError
from hub.models.structure import base_of
from hub.tasks.evaluate.harness_answers import answers
from hub.tasks.evaluate.passes import Report, Row, Scores, adding
from hub.tasks.evaluate.ways import open_scorer, own_attention
from hub.tasks.loading import Loaded

MAX_GEN_TOKS = 256
"""Tokens of an answer, if the task does not say: as lm-eval's hf model has it."""

Pair = tuple[list[int], list[int]]
"""Tokens of a context and of what follows it."""


class HubLM(TemplateLM):
    """The model as lm-eval sees it."""

    tokenizer: Any

    def __init__(self, loaded: Loaded, batch_size: int | str = AUTO, report: Report = lambda what, done, total: None) -> None:
        """Args:
        loaded: the model.
        batch_size: most requests of a micro-batch. auto: as many as fit.
        report: called now and then.
        """
        super().__init__()
        self.loaded, self.tokenizer, self._batch_size, self._report = loaded, loaded.tokenizer, batch_size, report
        self._max_length = int(resolve_max_length(base_of(loaded.model).config, loaded.tokenizer))
        self._prefix_text = str(loaded.tokenizer.decode([self.prefix_token_id]))
        self.layout = ""
        """How the passes ran, in words."""

    @property
    def device(self) -> Any:
        return self.loaded.device

    @property
    def max_length(self) -> int:
        return self._max_length

    @property
    def eot_token_id(self) -> int:
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        return str(
            self.tokenizer.apply_chat_template(
                chat_history,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )
        )

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self._encode([string], add_special_tokens)[0]

    def _encode(self, texts: Sequence[str], add_special_tokens: bool | None = None) -> list[list[int]]:
        """Tokenize many texts at once. None: special tokens as the tokenizer has them, but none before a text with its own."""
        if not texts:
            return []
        if add_special_tokens is not None:
            found: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=add_special_tokens)["input_ids"]
            return found
        encoded: list[list[int]] = [[] for _ in texts]
        has_prefix = [text.startswith(self._prefix_text) for text in texts]
        for wanted, options in ((True, {"add_special_tokens": False}), (False, {})):
            numbers = [i for i, has in enumerate(has_prefix) if has == wanted]
            if numbers:
                for i, ids in zip(numbers, self.tokenizer([texts[i] for i in numbers], **options)["input_ids"], strict=True):
                    encoded[i] = ids
        return encoded

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        pairs = self._pairs([request.args for request in requests])
        return self._score(pairs)

    def _pairs(self, texts: Sequence[tuple[str, str]]) -> list[Pair]:
        """The tokens of contexts and continuations. Both are tokenized together, and cut where the context's own tokens end."""
        moved = []
        for context, continuation in texts:
            num_spaces = len(context) - len(context.rstrip())
            cut = len(context) - num_spaces
            moved.append((context[:cut], context[cut:] + continuation) if num_spaces and cut else (context, continuation))
        contexts = list(dict.fromkeys(context for context, _ in moved if context))
        wholes = list(dict.fromkeys(context + continuation for context, continuation in moved if context))
        alone = list(dict.fromkeys(continuation for context, continuation in moved if not context))
        of_context = dict(zip(contexts, self._encode(contexts), strict=True))
        of_whole = dict(zip(wholes, self._encode(wholes), strict=True))
        of_alone = dict(zip(alone, self._encode(alone, add_special_tokens=False), strict=True))
        pairs: list[Pair] = []
        for context, continuation in moved:
            if context:
                begin = of_context[context]
                pairs.append((begin, of_whole[context + continuation][len(begin) :]))
            elif (end := of_alone[continuation])[:1] == [self.prefix_token_id]:
                pairs.append((end[:1], end[1:]))
            else:
                pairs.append(([self.prefix_token_id], end))
        return pairs

    def _loglikelihood_tokens(
        self, requests: list[tuple[tuple[str, str], list[int], list[int]]], **kwargs: Any
    ) -> list[tuple[float, bool]]:
        return self._score([(context, end) for _, context, end in requests])

    def _score(self, pairs: Sequence[Pair]) -> list[tuple[float, bool]]:
        rows = [self._row(*pair) for pair in pairs]
        if not rows:
            return []
        with open_scorer(self.loaded, max(len(row.input_ids) for row in rows), self._batch_size) as scorer:
            self.layout = scorer.layout
            found = scorer.scores(rows, lambda done: self._report("requests", done, len(rows)))
        return [_total(scores) for scores in found]

    def _row(self, context: list[int], end: list[int]) -> Row:
        """The last tokens that the model can hold.

        Raises:
            ConfigError: it can't hold what is asked for.
        """
        if len(end) > self.max_length:
            raise ConfigError(
                f"evaluate.tasks: a choice has {len(end):,} tokens, more than the {self.max_length:,} that the model can hold. "
                "Leave the task out"
            )
        begin = context[max(0, len(context) + len(end) - self.max_length - 1) :]
        return Row.of_end(begin, end)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        pairs, owners = [], []
        for number, ids in enumerate(self._encode([str(request.args[0]) for request in requests])):
            windows: Iterable[Pair] = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=ids, prefix_token=self.prefix_token_id, max_seq_len=self.max_length, context_len=1
                ),
            )
            for window in windows:
                pairs.append(window)
                owners.append(number)
        totals = [0.0] * len(requests)
        for number, (value, _) in zip(owners, self._score(pairs), strict=True):
            totals[number] += value
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        found: list[str] = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for number, request in enumerate(requests):
            groups.setdefault(repr(request.args[1]), []).append(number)
        num_done = 0
        for numbers in groups.values():
            texts = [str(requests[number].args[0]) for number in numbers]
            for number, text in zip(numbers, self._generate(texts, dict(requests[numbers[0]].args[1]), num_done), strict=True):
                found[number] = text
            num_done += len(numbers)
        return found

    def _generate(self, contexts: Sequence[str], options: dict[str, Any], num_before: int) -> list[str]:
        kwargs: dict[str, Any] = dict(normalize_gen_kwargs(options, MAX_GEN_TOKS))
        eos = str(self.tokenizer.decode([self.eot_token_id], skip_special_tokens=False))
        until = handle_stop_sequences(kwargs.get("until"), eos=eos)
        most = int(kwargs["max_gen_toks"])
        room = max(1, self.max_length - most)
        prompts = [(ids or [self.prefix_token_id])[-room:] for ids in self._encode(contexts)]
        sampled = bool(kwargs.get("do_sample"))
        generate = GenerateConfig(
            max_new_tokens=most,
            temperature=float(kwargs.get("temperature", 1.0)) if sampled else 0.0,
            top_p=float(kwargs.get("top_p", 1.0)),
            top_k=int(kwargs.get("top_k", 0)),
            repetition_penalty=float(kwargs.get("repetition_penalty", 1.0)),
            stop=[text for text in until if text],
            batch_size=self._batch_size,
        )
        with own_attention(self.loaded):
            count = adding(self._report, "answers", num_before + len(prompts), num_before)
            made = answers(self.loaded, prompts, generate, count)
        return [str(postprocess_generated_text(text, stop=until, think_end_token=None)) for text in made]


def _total(scores: Scores) -> tuple[float, bool]:
    return float(scores.log_probabilities.sum()), bool(scores.greedy.all())
