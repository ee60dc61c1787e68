"""Where the samples to protect come from: files, an earlier run, the run itself if it is resumed, or the model.

And what a run leaves to the next one: its samples, and some of those that it learned.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import torch
from transformers import PreTrainedModel

from hub.config.data import DataConfig
from hub.data.prepare import prepare
from hub.data.samples.roles import check_single
from hub.data.samples.sample import Sample, samples_of
from hub.models.load import load_config
from hub.parallel.group import broadcast_bytes, broadcast_text
from hub.protection.files import NONE, PROTECTION, SAMPLES, protection_file
from hub.protection.samples import Groups, pack, read, unpack, write
from hub.protection.selfmade import self_made
from hub.train.setup.setup import Setup


@dataclass(frozen=True)
class Wanted:
    """What a run is asked to protect."""

    files: Sequence[str]
    """Data files. Without any, and without an earlier run, the model makes samples itself."""

    num_samples: int
    """Most rows of each file, and of what this run learns."""

    earlier: Path | None
    """The file that an earlier run left. One with statistics has no samples."""

    instead: str
    """What to type if the file of the earlier run can't be used."""


def earlier_file(setup: Setup, named: str | None) -> Path | None:
    """Find the file that an earlier run left. The answer is the same on all ranks.

    Args:
        setup: of the run.
        named: folder of that run, or of its model. None: the run that the model is from, if it left any. `NONE`: no run.
    """
    if named == NONE:
        return None
    file = None
    if setup.session.group.is_main:
        file = protection_file(Path(named) if named else setup.base_path)
    name = broadcast_text("" if file is None else str(file))
    return Path(name) if name else None


def samples_to_protect(setup: Setup, model: PreTrainedModel, wanted: Wanted, widest: int) -> Groups:
    """Collect the samples to protect: those of files and of an earlier run, or else what the model makes. Equal on all ranks.

    Args:
        setup: of the run.
        model: before training.
        wanted: what is asked for.
        widest: the largest number of inputs of a weight to protect.

    Raises:
        DataError: a row can't be used.
        ModelError: what an earlier run left is damaged, or of another vocabulary.
    """
    is_main, vocabulary, earlier = setup.session.group.is_main, embedding_rows(model), wanted.earlier
    own = setup.run.path / SAMPLES
    if content := broadcast_bytes(own.read_bytes() if is_main and setup.cfg.resume and own.is_file() else b""):
        before = unpack(content, str(own), wanted.instead, vocabulary)
        before.pop(learned_name(setup), None)
        return before
    groups: Groups = {}
    if earlier is not None and earlier.name != PROTECTION:
        content = pack(read(earlier, wanted.instead, vocabulary), vocabulary) if is_main else b""
        groups = unpack(broadcast_bytes(content), str(earlier), wanted.instead, vocabulary)
    groups |= _read(setup, wanted)
    if not groups and earlier is None:
        groups = self_made(setup, model, widest)
    return groups


def embedding_rows(model: PreTrainedModel) -> int:
    """Rows of a model's embeddings."""
    weight = model.get_input_embeddings().weight
    assert isinstance(weight, torch.Tensor)
    return len(weight)


def learned_name(setup: Setup) -> str:
    """Name of the group of samples that this run learns."""
    return f"learned in {setup.run.path.name}"


def learned(setup: Setup, num_samples: int) -> list[Sample]:
    """Choose samples of the training data at random, of preference pairs the chosen answers.

    Args:
        setup: of the run.
        num_samples: at most.
    """
    samples = samples_of(setup.data.train)
    samples = [sample for sample in samples if sample.role in ("", "chosen")] or samples
    return Random(setup.cfg.algo.seed).sample(samples, min(num_samples, len(samples)))


def leave(setup: Setup, groups: Groups, num_samples: int, vocabulary: int) -> None:
    """Write the samples that this run protected, and some that it learned, into its folder for the next run. On rank 0 alone.

    Args:
        setup: of the run.
        groups: what it protected.
        num_samples: most samples of what it learned.
        vocabulary: rows of the model's embeddings.
    """
    chosen, file = learned(setup, num_samples), setup.run.path / SAMPLES
    write(file, {**groups, learned_name(setup): chosen}, vocabulary)
    setup.run.say(f"a run on this model will protect {len(chosen)} samples of what was learned, too: {file}")


def report(setup: Setup, groups: Groups, vocabulary: int, earlier: Path | None, besides: Sequence[str] = ()) -> None:
    """Log what is protected, write it to plan.json, and store the samples in the run folder.

    When the run is resumed it protects the same, even if the cache or the earlier run is gone.

    Args:
        setup: of the run.
        groups: the samples.
        vocabulary: rows of the model's embeddings.
        earlier: the file that an earlier run left.
        besides: what is protected without samples, in words.
    """
    sources = [f"{len(group)} {name} ({sum(map(len, group)):,} tokens)" for name, group in groups.items()]
    setup.run.say(f"protecting {', '.join([*sources, *besides])}")
    setup.run.write_plan(
        num_protected_samples=sum(map(len, groups.values())),
        num_protected_tokens=sum(len(sample) for group in groups.values() for sample in group),
        protected={name: len(group) for name, group in groups.items()},
        protected_from=None if earlier is None else str(earlier),
    )
    if setup.session.group.is_main:
        write(setup.run.path / SAMPLES, groups, vocabulary)


def _read(setup: Setup, wanted: Wanted) -> Groups:
    """Samples of all files that are given, at most `num_samples` from each."""
    cfg = setup.cfg
    groups: Groups = {}
    for file in wanted.files:
        positions = getattr(load_config(cfg.model, setup.base_path).get_text_config(), "max_position_embeddings", None)
        data = DataConfig(path=file, template=cfg.data.template, max_seq_len=cfg.data.max_seq_len)
        samples = check_single(prepare(replace(cfg, data=data), setup.tokenizer, positions).train, setup.algorithm)
        chosen = Random(cfg.algo.seed).sample(samples, min(wanted.num_samples, len(samples)))
        groups[f"samples of {file}"] = chosen
    return groups
