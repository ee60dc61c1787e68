"""The setup of a run, before a backend builds its model: process group, base weights, tokenizer, encoded data."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.quantization_config import QuantizationConfigMixin

from hub.config.launch import WORK_ON_SHARDS
from hub.config.option import AUTO
from hub.config.schema import ModelConfig, RunConfig
from hub.data.prepare import Prepared, cache_large_sources, prepare
from hub.data.tokens.tokenizer import load_tokenizer
from hub.data.tokens.vocabulary import tokens_beyond_line
from hub.errors import ConfigError, ModelError
from hub.models.fingerprint import changed_base, fingerprint
from hub.models.finished import Finished
from hub.models.four_bit_tensor import FourBitTensor
from hub.models.load import check_weights, load_causal_lm, load_config, num_parameters, renamed_weights
from hub.models.safety import ignored_settings
from hub.models.save import save_whole_model
from hub.models.saved_folder import complete_folder
from hub.models.storage import storage_problems, with_storage
from hub.models.structure import max_positions
from hub.models.tokens import Vocabulary, resize_embeddings, vocabulary_of
from hub.models.weights import local_weights
from hub.parallel.choose import choose_strategy
from hub.parallel.group import barrier
from hub.parallel.session import Session, start_session
from hub.run import ASKED_FOR, Run
from hub.system import timeline
from hub.system.early import read_ahead
from hub.system.memory import Shortage, free_unused, is_out_of_memory, memory_of, shortage_of
from hub.train.attempts import too_little
from hub.train.kernels.float8 import check_gpu
from hub.train.setup.less_memory import instead
from hub.train.setup.samples import SampleSource, make_sample_source

Observe = Callable[..., None]
"""`observe(hook, **values)` calls a hook of each plugin that implements it: `Registry.observe`."""


@dataclass(frozen=True)
class Setup:
    """All of a run but the model: the argument of a backend's `build`."""

    cfg: RunConfig
    run: Run
    session: Session
    base_path: Path
    """Local folder of the base weights."""

    tokenizer: PreTrainedTokenizerBase
    data: Prepared
    source: SampleSource
    """Yields the samples of each step."""

    algorithm: str
    """Name of the algorithm, for messages."""

    observe: Observe
    """Calls a hook of the plugins, as `hub_log`. For rank 0 only."""

    def save_whole_model(self, model: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        """Write a dense model in the compute dtype, with the tokenizer. Serves as `Recipe.save` of whole models."""
        save_whole_model(model, self.tokenizer, folder, self.session.compute_dtype, weights, self.base_path)

    def complete_folder(self, folder: Path) -> None:
        """Add to a saved model or adapter what the base has beside its weights, and name the base as the user did."""
        complete_folder(folder, self.base_path, self.cfg.model, self.tokenizer)

    def load_model(
        self,
        dtype: torch.dtype | None = None,
        quantization: QuantizationConfigMixin | None = None,
        frozen: bool = False,
        whole: str | None = None,
    ) -> PreTrainedModel:
        """Load the base model in training mode, on the device where the strategy needs it before training places it.

        Args:
            dtype: dtype of the weights. None: the compute dtype.
            quantization: a transformers quantization config, or None.
            frozen: whether the weights are frozen and something small trains, such as an adapter.
            whole: an option that needs all weights on each process, for the message.

        Raises:
            ConfigError: the weights would be sharded, and an option does not work with that.
        """
        launch, session = self.cfg.launch, self.session
        dtype = dtype or session.compute_dtype
        if launch.strategy == "split":
            self.run.write_plan(strategy="split", strategy_because=ASKED_FOR)
            return self._load("balanced", dtype, quantization)
        several = session.group.world > 1
        weights_bytes = num_parameters(self.cfg.model, self.base_path) * dtype.itemsize if several else 0
        trained_fraction = 0.0 if frozen else 1.0
        strategy, why = choose_strategy(launch, session.group, weights_bytes, trained_fraction, session.compute_dtype)
        check_strategy(self.cfg, strategy.name, strategy.shards_weights, why, quantization, whole)
        session.strategy = strategy
        self.run.write_plan(strategy=strategy.name, strategy_because=why)
        if session.group.world > 1:
            self.run.say(f"strategy {strategy.name} ({why})")
        model = self._load(torch.device("cpu") if strategy.shards_weights else session.device, dtype, quantization)
        if strategy.shards_weights and has_experts_in_4_bits(model):
            raise ConfigError(EXPERTS_NOT_SHARDED.format(strategy.name, why))
        return model

    def _load(
        self, device: torch.device | str, dtype: torch.dtype, quantization: QuantizationConfigMixin | None
    ) -> PreTrainedModel:
        shortage: Shortage | None = None
        try:
            with timeline.stage("weights"):
                model = load_causal_lm(self.cfg.model, self.base_path, device, dtype, quantization)
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            shortage = shortage_of(error)
        if shortage is not None:  # here what was loaded is free again
            raise self._weights_too_large(dtype, quantization, shortage)
        if (vocabulary := self.vocabulary) is not None:
            resize_embeddings(model, vocabulary, self.cfg.model, self.run.say)
            self.run.write_plan(
                embedding_rows=vocabulary.num_rows,
                embedding_rows_stored=vocabulary.num_stored,
                tokens=vocabulary.num_tokens,
                new_tokens=vocabulary.new,
            )
        return model

    def _weights_too_large(
        self, dtype: torch.dtype, quantization: QuantizationConfigMixin | None, shortage: Shortage
    ) -> ModelError:
        """The error of weights that do not fit: of all of them, if it is known what they take."""
        free_unused()
        number = num_parameters(self.cfg.model, self.base_path)
        memory = memory_of(self.session.device)
        if quantization is None and self.cfg.model.quantization is None and memory is not None:
            found = Shortage(float(number * dtype.itemsize), memory.free())
            shortage = found if found.missing else shortage
        words = "quantized" if quantization or self.cfg.model.quantization else f"in {str(dtype).removeprefix('torch.')}"
        what = f"the weights do not fit: {number:,} numbers, {words}"
        return too_little(what, shortage, instead(self.cfg, activations=False))

    @cached_property
    def vocabulary(self) -> Vocabulary | None:
        """The tokens of the run, if options ask for others than the model is stored with. None: they do not."""
        model = self.cfg.model
        return vocabulary_of(model, self.base_path, self.tokenizer) if model.changes_vocab else None


EXPERTS_NOT_SHARDED = (
    "launch.strategy={} can't shard experts in 4 bits ({}). Type launch.strategy=ddp, which has them whole on each GPU, or "
    "algo.load_in_4bit=false"
)


def has_experts_in_4_bits(model: torch.nn.Module) -> bool:
    """Whether a mixture's experts are in 4 bits."""
    return any(isinstance(parameter, FourBitTensor) for parameter in model.parameters())


def check_strategy(
    cfg: RunConfig, name: str, shards_weights: bool, why: str, quantization: QuantizationConfigMixin | None, whole: str | None
) -> None:
    """Check that a strategy can hold the weights.

    Args:
        cfg: the config of the run.
        name: of the strategy.
        shards_weights: whether it shards the weights.
        why: it was chosen.
        quantization: how the weights are quantized while they are loaded.
        whole: an option that needs all weights on each process.

    Raises:
        ConfigError: it can't.
    """
    is_8bit = getattr(quantization, "load_in_8bit", False) or cfg.model.quantization == "bnb-8bit"
    if is_8bit and name == "fsdp":
        instead = "algo.load_in_4bit=true algo.load_in_8bit=false, or " if quantization is not None else ""
        raise ConfigError(f"launch.strategy=fsdp can't shard 8-bit weights. Type {instead}launch.strategy=ddp")
    if whole and shards_weights:
        raise ConfigError(f"{whole} needs all weights on each process ({why}). Leave it out, or type launch.strategy=ddp")
    if name not in ("ddp", "split") and cfg.algo.optimizer not in WORK_ON_SHARDS:
        raise ConfigError(
            f"algo.optimizer={cfg.algo.optimizer} can't work on sharded weights (launch.strategy={name}). "
            "Type algo.optimizer=adamw"
        )


def set_up(
    cfg: RunConfig,
    run: Run,
    algorithm: str,
    observe: Observe = lambda hook, **values: None,
    reads: Callable[[str], bool] = lambda field: False,
) -> Setup:
    """Join the process group, find the weights, load the tokenizer and tokenize the data. Results go to the log and plan.json.

    Args:
        cfg: the config of the run.
        run: the run folder.
        algorithm: name of the algorithm, for messages.
        observe: calls the hooks of plugins while the task runs. By default none is called.
        reads: whether the task reads a field of the rows that training does not.

    Raises:
        HubError: no such model, no chat template, bad data.
    """
    if getattr(cfg.algo, "precision", AUTO) == "fp8":
        check_gpu()
    timeline.begin("device")
    session = start_session(cfg, run)
    timeline.begin("files")
    path = find_weights(cfg.model, run, session)
    run.write_plan(base_model_path=str(path))  # a run that did not get here leaves no folder
    if session.group.local_rank == 0:
        read_ahead(path)
    cfg = _checked_on_weights(cfg, path, run, session, algorithm)
    timeline.begin("data")
    tokenizer = load_tokenizer(cfg, path)
    positions = max_positions(load_config(cfg.model, path))
    if session.group.world > 1:
        if session.group.local_rank == 0:
            cache_large_sources(cfg, tokenizer, positions, path, run.say)
        barrier()
    data = prepare(cfg, tokenizer, positions, path, run.say, reads)
    if run.is_main:
        _check_same_base(cfg, run, path)
        run.write_plan(base_fingerprint=fingerprint(path), data=data.report)
    if line := tokens_beyond_line(tokenizer):
        run.say(line)
    for line in data.lines:
        run.say(line)
    source = make_sample_source(cfg, data, session.group, path)
    return Setup(cfg, run, session, path, tokenizer, data, source, algorithm, observe)


def _check_same_base(cfg: RunConfig, run: Run, path: Path) -> None:
    """Refuse to resume on other base weights than the run began with.

    Raises:
        ModelError: they have changed.
    """
    begun = Finished(name=f"resume={cfg.resume}", base=cfg.model, run_path=run.path, before=cfg.model)
    if cfg.resume and not cfg.resume_with_changes and (line := changed_base(begun, path)):
        raise ModelError(f"{line}. Put it back, or type resume_with_changes=true")
    if cfg.model.adapter is not None:
        made = Finished(name=f"model.adapter={cfg.model.adapter}", base=cfg.model, run_path=Path(cfg.model.adapter).parent)
        if line := changed_base(made, path):
            raise ModelError(f"{line}. Put it back, or type the base that the adapter was trained on as model.path")


def _checked_on_weights(cfg: RunConfig, path: Path, run: Run, session: Session, algorithm: str) -> RunConfig:
    """Check the options and the model against the folder of the weights, which may have been downloaded just now.

    Returns:
        The config with the quantization that the folder has.

    Raises:
        ConfigError: the options do not fit how the weights are stored.
        ModelError: the weights do not fit the model of config.json.
    """
    before, cfg = cfg.model.quantization, with_storage(cfg, path)
    known_now = [*storage_problems(cfg, algorithm), *cfg.algo.problems(cfg)] if cfg.model.quantization != before else []
    if known_now:
        raise ConfigError(known_now)
    if session.group.local_rank == 0:
        for line in check_weights(cfg.model, path):
            run.say(line)
        if renamed := renamed_weights(cfg.model, path):
            run.write_plan(weights_renamed=renamed)
    barrier()
    return cfg


def find_weights(cfg: ModelConfig, run: Run, session: Session) -> Path:
    """Return the local folder of the base weights. One process per machine downloads or converts them, the others wait."""
    if session.group.local_rank == 0:
        path = local_weights(cfg, run.say)
        for line in ignored_settings(path, cfg.trust_remote_code):
            run.say(line)
        barrier()
    else:
        barrier()
        path = local_weights(cfg, lambda text: None)
    return path
