"""Passes give each row what it has alone, whatever shares a micro-batch with it, in every way and family."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from zoo.zoo import TEXT, zoo_model

from hub.models.patches import patches_of
from hub.tasks.evaluate import ways
from hub.tasks.evaluate.passes import Row
from hub.tasks.evaluate.shared_prefixes import order_of, share
from hub.tasks.evaluate.ways import open_scorer
from hub.tasks.loading import Loaded
from hub.train.kernels import flex
from hub.train.kernels.seen_blocks import SeenBlocks

SHARED, PACKED, PADDED = "packed, shared beginnings once", "packed", "padded"


def _loaded(name: str, **options: object) -> Loaded:
    folder = zoo_model(name)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **options)
    return Loaded(name, model, AutoTokenizer.from_pretrained(folder), torch.device("cpu"), torch.float32, None, folder)


def _rows(vocab_size: int) -> list[Row]:
    draw = np.random.default_rng(1)
    rows = []
    for length in (20, 33, 7):
        context = draw.integers(0, vocab_size, length).tolist()
        rows += [Row.of_end(context, draw.integers(0, vocab_size, size).tolist()) for size in (1, 1, 5, 9)]
    return rows


# gemma2 has a bound on its logits, mistral a window of 16 tokens, falcon_alibi's attention is none of transformers' interface.
@pytest.mark.parametrize(
    ("name", "layout", "has_head"),
    [("llama", SHARED, True), ("mistral", SHARED, True), ("granite", SHARED, False), ("gemma2", PACKED, False),
     ("mamba", PADDED, False), ("jamba", PADDED, False), ("falcon_alibi", PADDED, False)],
)  # fmt: skip
def test_each_row_has_what_it_has_alone(name, layout, has_head):
    loaded = _loaded(name)
    rows = _rows(loaded.model.config.vocab_size)
    loaded.model.train()
    with open_scorer(loaded, 45, batch_size=7) as scorer:
        found = scorer.scores(rows)
        scorer.max_tokens = 40
        smaller = scorer.scores(rows)
    assert (scorer.layout, scorer.head is not None) == (layout, has_head)
    assert loaded.model.training
    assert not patches_of(loaded.model).applied
    loaded.model.eval()
    for row, scores, other in zip(rows, found, smaller, strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.from_numpy(row.input_ids.astype(np.int64))[None], use_cache=False).logits[0].float()
        wanted = torch.log_softmax(logits, -1)[row.places, row.targets]
        np.testing.assert_allclose(scores.log_probabilities, wanted, atol=2e-5)
        np.testing.assert_allclose(other.log_probabilities, wanted, atol=2e-5)
        np.testing.assert_array_equal(scores.greedy, logits.argmax(-1)[row.places].numpy() == row.targets)


@pytest.mark.parametrize("name", ["gemma2", "gpt_oss"])
def test_soft_caps_and_sinks_are_packed_by_the_attention_of_training_without_a_mask(name, monkeypatch):
    monkeypatch.setattr(ways, "_has_kernels", lambda *given: True)  # on a CPU FlexAttention runs as plain operations
    loaded, unmasked = _loaded(name, attn_implementation="eager"), []
    rows, attend = _rows(loaded.model.config.vocab_size), flex.attend

    def watched(query, key, value, seen, *given):
        unmasked.append(type(seen))
        return attend(query, key, value, seen, *given)

    with open_scorer(loaded, 45) as scorer:
        assert (scorer.layout, scorer.shared) == ("packed", None)
        monkeypatch.setattr(flex, "attend", watched)
        found = scorer.scores(rows)
        assert set(unmasked) == {SeenBlocks}
    assert patches_of(loaded.model).applied == []
    for row, scores in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.from_numpy(row.input_ids.astype(np.int64))[None], use_cache=False).logits[0].float()
        wanted = torch.log_softmax(logits, -1)[row.places, row.targets]
        np.testing.assert_allclose(scores.log_probabilities, wanted, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", TEXT)
def test_each_row_of_every_architecture_has_what_it_has_alone(name):
    loaded = _loaded(name)
    rows = _rows(loaded.model.config.get_text_config().vocab_size)
    with open_scorer(loaded, 45) as scorer:
        found = scorer.scores(rows)
    loaded.model.eval()
    for row, scores in zip(rows, found, strict=True):
        with torch.no_grad():
            logits = loaded.model(torch.from_numpy(row.input_ids.astype(np.int64))[None], use_cache=False).logits[0].float()
        wanted = torch.log_softmax(logits, -1)[row.places, row.targets]
        np.testing.assert_allclose(scores.log_probabilities, wanted, atol=1e-5)


def test_a_shared_beginning_is_read_once():
    rows = [np.array(ids, np.int32) for ids in ([5, 6, 7, 8], [5, 6, 7, 9, 1], [5, 6, 7, 8], [2, 6])]
    order = order_of(rows)
    assert order == [3, 0, 2, 1]
    shared = share([rows[i] for i in order])
    assert shared.input_ids.tolist() == [2, 6, 5, 6, 7, 8, 9, 1]
    assert shared.positions.tolist() == [0, 1, 0, 1, 2, 3, 3, 4]
    assert shared.num_new == (2, 4, 0, 2)
    assert [places.tolist() for places in shared.places] == [[0, 1], [2, 3, 4, 5], [2, 3, 4, 5], [2, 3, 4, 6, 7]]


def test_after_running_out_of_memory_half_of_the_tokens_are_tried(monkeypatch):
    loaded = _loaded("llama")
    rows = _rows(loaded.model.config.vocab_size)
    with open_scorer(loaded, 45) as scorer:
        wanted = scorer.scores(rows)
        run, sizes = scorer._run, []

        def fails_on_many(some):
            sizes.append(len(some))
            if len(some) > 3:
                raise torch.OutOfMemoryError
            return run(some)

        monkeypatch.setattr(scorer, "_run", fails_on_many)
        scorer.max_tokens = 2048
        found = scorer.scores(rows)
    assert max(sizes) > 3 >= sizes[-1]
    for one, other in zip(wanted, found, strict=True):
        np.testing.assert_allclose(one.log_probabilities, other.log_probabilities, atol=1e-5)
