"""Answers for tasks of lm-eval, as its own hf model generates them: ended by the config's tokens and stop texts."""

from collections.abc import Callable, Sequence
from typing import Any

from hub.config.generate import GenerateConfig
from hub.tasks.generate.ends import Ends
from hub.tasks.generate.engine import made
from hub.tasks.loading import Loaded


def answers(
    loaded: Loaded, prompts: Sequence[list[int]], generate: GenerateConfig, progress: Callable[[int], None]
) -> list[str]:
    """Generate an answer to each prompt.

    Args:
        loaded: the model.
        prompts: token ids of each.
        generate: how.
        progress: called with the number of new answers, as they end.

    Returns:
        The texts of the answers, in order.

    Raises:
        ModelError: memory runs out with a single prompt.
    """
    found = [""] * len(prompts)
    ends = Ends(loaded.tokenizer, _stop_ids(loaded), generate.stop)
    for done in made(loaded, prompts, generate, ends, option="evaluate.max_new_tokens"):
        for number, one in done.items():
            text = str(loaded.tokenizer.decode(one.token_ids, skip_special_tokens=True))
            found[number] = _until(text, generate.stop)
        progress(len(done))
    return found


def _stop_ids(loaded: Loaded) -> set[int]:
    """The tokens that end an answer: those of the generation config and the tokenizer's."""
    model: Any = loaded.model
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    ends = {*(named if isinstance(named, list) else [named]), loaded.tokenizer.eos_token_id} - {None}
    return {int(number) for number in ends}


def _until(text: str, stop: Sequence[str]) -> str:
    places = [text.find(word) for word in stop if word and word in text]
    return text[: min(places)] if places else text
