"""How the passes of an evaluation run: each way is tried on the model itself, as in training, before it is used.

1. Rows that share beginnings, packed, each shared token once (shared_prefixes.py).
2. Packed rows, if packed samples do not see each other: with variable-length attention or FlexAttention on a GPU, or the
   model's own.
3. Padded rows.

The output layer makes logits of a few positions at a time (scoring_head.py), if nothing follows it.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, nullcontext

import numpy as np
import torch

from hub.config.option import AUTO
from hub.data.samples.sample import Sample, random_samples
from hub.models.patches import Patch, patches_of
from hub.models.structure import base_of, text_config, waits_for_others
from hub.parallel.group import max_over_ranks
from hub.system.memory import is_out_of_memory
from hub.tasks.evaluate.passes import Floats, Row, Scorer, collate, plain_inputs
from hub.tasks.evaluate.scoring_head import ScoringHead
from hub.tasks.evaluate.shared_prefixes import Ids, SharedPrefixes, order_of, share
from hub.tasks.loading import Loaded
from hub.train.kernels.attention import PackedAttention, VarlenAttention
from hub.train.kernels.compiled import CompiledLayers
from hub.train.kernels.rope import rope_by_length, use_own_rope
from hub.train.layout.choose import use_flex
from hub.train.layout.isolation import Trial
from hub.train.layout.leaks import LEAST_LIMIT, LEAST_SPREAD, MOST_LIMIT, NOISE_FACTOR
from hub.train.layout.leaks import log_probabilities as of_plain_logits
from hub.train.layout.memory_budget import MAX_MASK_TOKENS
from hub.train.losses.causal_lm import model_inputs, takes_positions

SMALL_EFFECT = 1e-4
"""Largest effect of sharing that passes as rounding in float32, as a fraction of the spread of log-probabilities."""


@contextmanager
def open_scorer(loaded: Loaded, longest: int, batch_size: int | str = AUTO) -> Iterator[Scorer]:
    """Prepare a model for passes over rows. Afterwards it is as it was before, in training mode if it was.

    All processes of a group must call it.

    Args:
        loaded: the model.
        longest: tokens of the longest row.
        batch_size: most rows of a micro-batch. auto: as many as fit.

    Raises:
        ModelError: its rope depends on the length of a text, and can't be computed for each row.
    """
    model, patches = loaded.model, patches_of(loaded.model)
    was_training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, was_training)
        before = set(map(id, patches.applied))

        def undo() -> None:
            patches = patches_of(model)  # a model without patches has no owner yet
            for patch in reversed([one for one in patches.applied if id(one) not in before]):
                patches.undo(patch)

        stack.callback(undo)
        with torch.no_grad():
            use_own_rope(patches, model, longest)
            shared = _try_shared(loaded)
            packed = shared is not None or _can_pack(loaded, longest)
            head = _try_head(loaded, shared) if packed else None
            scorer = Scorer(loaded, packed, shared, head, None if batch_size == AUTO else int(batch_size))
            scorer.choose_budget()
        yield scorer


@contextmanager
def own_attention(loaded: Loaded) -> Iterator[None]:
    """Within it the model has its own attention, also while it is trained: attention over packed rows can't generate."""
    patches = patches_of(loaded.model)
    patch = patches.find(PackedAttention)
    if patch is None:
        yield
        return
    # Later patches may build on it, so they are taken back first.
    later = patches.applied[patches.applied.index(patch) :]
    for one in reversed(later):
        patches.undo(one)
    try:
        yield
    finally:
        for one in later:
            patches_of(loaded.model).apply(one)


def _try_shared(loaded: Loaded) -> SharedPrefixes | None:
    """Turn on attention over shared beginnings, if each row then has what it has alone."""
    model, patches = loaded.model, patches_of(loaded.model)
    if rope_by_length(model) or patches.find(CompiledLayers) is not None:
        return None
    first, second, third, *others = random_samples(text_config(model).vocab_size, (23, 9, 17, 31, 5), 0)
    ids = [first.input_ids, *(np.concatenate([first.input_ids, more.input_ids]) for more in (second, third))]
    ids += [sample.input_ids for sample in others]
    samples = [Sample(row, np.ones(len(row), bool), "") for row in ids]
    patch: Patch | None = None
    worst = float("inf")
    try:
        alone = [_alone(loaded, sample) for sample in samples]
        patch = patches.apply(SharedPrefixes(model))
        scorer = Scorer(loaded, True, patch, None, None)
        together = scorer.scores([Row.of_sample(sample) for sample in samples])
        worst = _worst(alone, [scores.log_probabilities for scores in together], ids, loaded.dtype)
    except Exception as error:  # whatever a model raises, it is not for this way
        if is_out_of_memory(error) and waits_for_others(model):
            raise
        worst = float("inf")
    # On every rank the same decision.
    if max_over_ranks(worst) <= 1 and isinstance(patch, SharedPrefixes):
        return patch
    if patch is not None:
        patches.undo(patch)
    return None


def _worst(alone: list[Floats], together: list[Floats], ids: list[Ids], dtype: torch.dtype) -> float:
    """The largest effect of sharing over what passes as rounding."""
    spread = max(float(np.concatenate(alone).std()), LEAST_SPREAD)
    effects = [float(np.sqrt(np.square(a - b).mean())) / spread for a, b in zip(alone, together, strict=True)]
    if dtype not in LEAST_LIMIT:
        return max(effects) / SMALL_EFFECT
    # What a row has that stands first, and shares nothing, differs by rounding only.
    rounding = effects[order_of(ids)[0]]
    return max(effects) / min(MOST_LIMIT, max(LEAST_LIMIT[dtype], NOISE_FACTOR * rounding))


def _alone(loaded: Loaded, sample: Sample) -> Floats:
    ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(loaded.device)
    with loaded.autocast():
        logits = loaded.model(input_ids=ids, use_cache=False).logits[0]
    values: Floats = of_plain_logits(logits, sample).cpu().numpy()
    return values


def _can_pack(loaded: Loaded, longest: int) -> bool:
    """Whether packed samples do not see each other, with the kernel of training where one works.

    On a GPU in half precision that is variable-length attention, or FlexAttention where a model needs more, such as soft caps
    and sinks. A mask of tokens x tokens is then not made.
    """
    model, patches, device, dtype = loaded.model, patches_of(loaded.model), loaded.device, loaded.dtype
    trial = Trial(model, text_config(model).vocab_size, device, dtype, most_tokens=max(longest, MAX_MASK_TOKENS))
    own = str(getattr(base_of(model).config, "_attn_implementation", None))
    if not _has_kernels(device, dtype) or patches.find(PackedAttention) is not None:
        return trial.can_pack()[0]
    if own != "eager":
        patch = VarlenAttention(model)
        with patches.temporarily(patch):
            packed, _ = trial.can_pack()
        if packed:
            patches.apply(patch)
            return True
    problem, _ = use_flex(patches, model, trial, device, dtype)
    return not problem or trial.can_pack()[0]


def _has_kernels(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels for packed rows run there."""
    return device.type == "cuda" and dtype in LEAST_LIMIT


def _try_head(loaded: Loaded, shared: SharedPrefixes | None) -> ScoringHead | None:
    model, patches = loaded.model, patches_of(loaded.model)
    vocab_size = text_config(model).vocab_size
    if not takes_positions(model) or base_of(model).get_output_embeddings() is None:
        return None
    (sample,) = random_samples(vocab_size, (8,), 0)
    row = Row(sample.input_ids, np.array([2, 4, 6]), sample.input_ids[[3, 5, 7]])
    patch = patches.apply(ScoringHead(model, vocab_size))

    def logits() -> torch.Tensor:
        # Without a head of its own the scorer asks for logits, which are those of the patch.
        batch = collate([row], True, torch.zeros(3, dtype=torch.int64)).to(loaded.device)
        inputs = model_inputs(model, batch) if shared is None else plain_inputs(batch)
        inputs["logits_to_keep"] = batch.loss_positions
        context = shared.reading(share([row.input_ids]), loaded.device) if shared else nullcontext()
        with context, loaded.autocast():
            found: torch.Tensor = model(**inputs).logits
        return found

    if patch.is_last(logits):
        return patch
    patches.undo(patch)
    return None
