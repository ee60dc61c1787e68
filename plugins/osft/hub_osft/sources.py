"""Where the samples to protect come from: files, an earlier run, the run itself if it is resumed, or the model."""

from dataclasses import replace
from pathlib import Path
from random import Random

from transformers import PreTrainedModel

from hub.config.data import DataConfig
from hub.data.prepare import prepare
from hub.data.samples.roles import check_single
from hub.models.load import load_config
from hub.parallel.group import broadcast_bytes, broadcast_text
from hub.train.setup.setup import Setup
from hub_osft.config import KEPT, NONE, PROTECTION, WEIGHTS, OsftConfig, protection_file
from hub_osft.embeddings import weight_of
from hub_osft.kept import Groups, pack, read, unpack
from hub_osft.selfmade import self_made


def samples_to_protect(setup: Setup, model: PreTrainedModel, earlier: Path | None, learned: str, widest: int) -> Groups:
    """The samples to protect, the same on all ranks: given ones, those of an earlier run, or else what the model makes.

    Args:
        setup: of the run.
        model: before training.
        earlier: the file that an earlier run left.
        learned: name of what this run learned, if it is resumed after it was stopped.
        widest: the largest number of inputs of a weight to protect.
    """
    algo, is_main, vocabulary = setup.cfg.algo, setup.session.group.is_main, len(weight_of(model.get_input_embeddings()))
    assert isinstance(algo, OsftConfig)
    own = setup.run.path / KEPT
    if content := broadcast_bytes(own.read_bytes() if is_main and setup.cfg.resume and own.is_file() else b""):
        before = unpack(content, str(own), vocabulary)
        before.pop(learned, None)
        return before
    groups: Groups = {}
    has_samples = earlier is not None and earlier.name != PROTECTION
    if earlier is not None and has_samples:
        content = pack(read(earlier, vocabulary), vocabulary) if is_main else b""
        groups = unpack(broadcast_bytes(content), str(earlier), vocabulary)
    groups |= _read(setup, algo)
    if not groups and earlier is None:
        groups = self_made(setup, model, widest)
    return groups


def earlier_file(setup: Setup, algo: OsftConfig) -> Path | None:
    """The file that an earlier run left: the one of `algo.protect_from`, or of the run that the model is from."""
    if algo.protect_from == NONE or algo.subspace == WEIGHTS:
        return None
    found = None
    if setup.session.group.is_main:
        found = protection_file(Path(algo.protect_from) if algo.protect_from else setup.base_path)
    name = broadcast_text("" if found is None else str(found))
    return Path(name) if name else None


def _read(setup: Setup, algo: OsftConfig) -> Groups:
    """Samples of all files that are given, at most `protect_samples` from each."""
    cfg = setup.cfg
    positions = getattr(load_config(cfg.model, setup.base_path).get_text_config(), "max_position_embeddings", None)
    groups: Groups = {}
    for file in algo.protect_files:
        data = DataConfig(path=file, template=cfg.data.template, max_seq_len=cfg.data.max_seq_len)
        samples = check_single(prepare(replace(cfg, data=data), setup.tokenizer, positions).train, setup.algorithm)
        groups[f"samples of {file}"] = Random(algo.seed).sample(samples, min(algo.protect_samples, len(samples)))
    return groups
