"""The model of a run without its weights: a backend builds its own recipe on tensors that have shapes and no data."""

import copy
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from hub.config.option import AUTO
from hub.config.schema import ModelConfig, RunConfig
from hub.data.prepare import Prepared
from hub.errors import ConfigError, HubError, ModelError, PluginError, one_line
from hub.models.four_bit import is_4bit
from hub.models.four_bit_tensor import FourBitTensor, as_parameter
from hub.models.load import load_config
from hub.models.multimodal import auto_class
from hub.models.save import stored_dtypes
from hub.models.structure import outside_text
from hub.parallel.choose import strategy_name
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.parallel.strategy import FullyShard, Replicated
from hub.parallel.zero import Zero
from hub.plugins.registry import ResolvedRun
from hub.run import ASKED_FOR, Run
from hub.system.known_gpus import Gpu
from hub.train.kernels.assumed import as_on_gpu
from hub.train.layout.flops import num_multiplied
from hub.train.recipe import Recipe
from hub.train.setup.setup import EXPERTS_NOT_SHARDED, Setup, check_strategy, has_experts_in_4_bits

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
    from transformers.utils.quantization_config import QuantizationConfigMixin


class QuietRun(Run):
    """A run folder that nothing is written to: what would be logged is kept."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, is_main=False)
        self.said: list[str] = []
        self.planned: dict[str, object] = {}

    def say(self, text: str) -> None:
        self.said.append(text)

    def write_plan(self, **values: object) -> None:
        self.planned |= values


@dataclass(frozen=True)
class Load:
    """What a backend asked `load_model` for: the strategy depends on it."""

    weights_bytes: int
    quantization: "QuantizationConfigMixin | None"
    frozen: bool
    whole: str | None
    num_parameters: int
    num_multiplied: float | None
    """Weights that a token is multiplied with. None: not known."""

    experts_in_4_bits: bool = False

    def strategy(self, cfg: RunConfig, room: float, world: int) -> tuple[Replicated, str]:
        """The strategy of a run with so many processes, each with a GPU of so many bytes, and the reason. It can't be used.

        Raises:
            ConfigError: the options do not work with it.
        """
        if cfg.launch.strategy == "split":
            return Replicated(), ASKED_FOR
        fraction = 0.0 if self.frozen else 1.0
        name, why = strategy_name(cfg.launch, world, room, self.weights_bytes, fraction)
        strategy = Replicated()
        if name != "ddp":
            kind = FullyShard if name == "fsdp" else Zero
            strategy = kind.__new__(kind)  # without joining a process group
            strategy.name, strategy.shards_weights = name, name in ("fsdp", "zero3")
        check_strategy(cfg, name, strategy.shards_weights, why, self.quantization, self.whole)
        if strategy.shards_weights and self.experts_in_4_bits:
            raise ConfigError(EXPERTS_NOT_SHARDED.format(name, why))
        return strategy, why


@dataclass(frozen=True)
class PlanSetup(Setup):
    """A setup whose models have no data. A backend's `build` takes it for any other one."""

    model_config: "PretrainedConfig | None" = None
    """The model's config, from config.json."""

    loads: "list[Load]" = field(default_factory=list)
    """What the backend asked `load_model` for."""

    def load_model(
        self,
        dtype: torch.dtype | None = None,
        quantization: "QuantizationConfigMixin | None" = None,
        frozen: bool = False,
        whole: str | None = None,
    ) -> "PreTrainedModel":
        assert self.model_config is not None
        dtype = dtype or self.session.compute_dtype
        model = model_without_data(self.cfg.model, self.model_config, dtype, quantization)
        num = sum(parameter.numel() for parameter in model.parameters())
        packed = has_experts_in_4_bits(model)
        self.loads.append(Load(num * dtype.itemsize, quantization, frozen, whole, num, num_multiplied(model), packed))
        if (vocabulary := self.vocabulary) is not None:
            model.resize_token_embeddings(vocabulary.num_rows, mean_resizing=False)
        return model


def model_without_data(
    cfg: ModelConfig, config: "PretrainedConfig", dtype: torch.dtype, quantization: "QuantizationConfigMixin | None" = None
) -> "PreTrainedModel":
    """A model as `load_causal_lm` loads it, on torch's meta device: with its shapes, types, and layers in 4 or 8 bits.

    Args:
        cfg: for messages and `trust_remote_code`.
        config: of the model.
        dtype: of the weights.
        quantization: how the weights are quantized while they are loaded. None: as the config says.

    Raises:
        ModelError: transformers can't build it.
    """
    config = copy.deepcopy(config)
    stored, method = getattr(config, "quantization_config", None), ""
    if stored is not None:
        del config.quantization_config
        found = stored.get("quant_method") if isinstance(stored, dict) else getattr(stored, "quant_method", None)
        method = str(getattr(found, "value", found))
        if quantization is None and method == "bitsandbytes":
            quantization = _bitsandbytes_config(stored)
    options: dict[str, Any] = {}
    if getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None:
        options["attn_implementation"] = "eager"
    try:
        with torch.random.fork_rng(devices=[]), torch.device("meta"):
            model: PreTrainedModel = auto_class(config).from_config(
                config, dtype=dtype, trust_remote_code=cfg.trust_remote_code, **options
            )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"model.path={cfg.path}: {one_line(error)}") from None
    dtypes = stored_dtypes(model, dtype)
    for name, parameter in model.named_parameters():
        if (own := dtypes.get(name)) is not None and own != parameter.dtype:
            parameter.data = parameter.data.to(own)
    if quantization is not None:
        from transformers.quantizers.auto import AutoHfQuantizer

        from hub.models.four_bit_loading import WithExperts, with_experts

        quantizer = AutoHfQuantizer.from_config(with_experts(quantization, from_mxfp4=method == "mxfp4"))
        quantizer._process_model_before_weight_loading(model, device_map={"": "cpu"})
        if isinstance(quantizer, WithExperts) and method != "bitsandbytes":
            quantizer.without_data(model)
        for name, value in (("is_quantized", True), ("hf_quantizer", quantizer)):
            setattr(model, name, value)
        setattr(model, f"is_loaded_in_{'8' if getattr(quantization, 'load_in_8bit', False) else '4'}bit", True)
        for parameter in model.parameters():
            parameter.requires_grad_(False)
    for parameter in outside_text(model):
        parameter.requires_grad_(False)
    model.config.use_cache = False
    model.train()
    return model


def _bitsandbytes_config(stored: Any) -> Any:
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig.from_dict(dict(stored)) if isinstance(stored, dict) else stored


@dataclass
class Planned:
    """A recipe whose model has no data, and what its setup decided."""

    recipe: Recipe
    setup: PlanSetup
    said: list[str]
    load: Load
    mode: FakeTensorMode
    """The mode under which the model's tensors may be used."""


def build_without_data(
    resolved: ResolvedRun,
    folder: Path,
    dtype: torch.dtype,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    data: Prepared | None = None,
) -> Planned:
    """Let the backend of a run build its recipe without weights.

    Args:
        resolved: the run.
        folder: with config.json.
        dtype: of the arithmetic.
        tokenizer: of the model. None: it has none, and nothing asks for it.
        data: of the run. None: it is not known.

    Raises:
        HubError: the options do not fit the model.
        PluginError: the backend needs data to build its recipe.
    """
    cfg = resolved.config
    config = load_config(cfg.model, folder)
    session = Session(Group(0, 1, 0, torch.device("cpu")), None, dtype)  # type: ignore[arg-type]  # nothing is tracked
    run = QuietRun(Path(tempfile.gettempdir()))
    setup = PlanSetup(
        cfg,
        run,
        session,
        folder,
        tokenizer,  # type: ignore[arg-type]  # without one nothing asks for it
        data,  # type: ignore[arg-type]  # a backend that needs it can't be planned without
        None,  # type: ignore[arg-type]  # nothing is drawn
        resolved.algorithm.name,
        lambda hook, **values: None,
        config,
    )
    backend = resolved.backend
    build = backend.plan or backend.build
    if isinstance(build, str):
        module, _, name = build.partition(":")
        build = getattr(import_module(module), name)
    try:
        with as_on_gpu():
            recipe = build(setup)
    except HubError:
        raise
    except Exception as error:
        raise PluginError(
            f"algo={resolved.algorithm.name}: its backend {backend.name} can't build its model without data, so its memory "
            f"can't be predicted ({type(error).__name__}: {one_line(error)})"
        ) from error
    if not isinstance(recipe, Recipe):
        raise PluginError(
            f"algo={resolved.algorithm.name}: its backend {backend.name} has a trainer of its own, which can't be planned"
        )
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    with mode:
        without_data(recipe.model)
    if not setup.loads:
        raise PluginError(
            f"algo={resolved.algorithm.name}: its backend {backend.name} loads its model by itself, so it can't be planned"
        )
    return Planned(recipe, setup, run.said, setup.loads[-1], mode)


def compute_dtype(cfg: RunConfig, gpu: Gpu) -> torch.dtype:
    """The dtype of the arithmetic, as `choose_dtype` chooses it on such a GPU."""
    if cfg.model.dtype != AUTO:
        dtype = getattr(torch, cfg.model.dtype)
        assert isinstance(dtype, torch.dtype)
        return dtype
    return torch.bfloat16 if gpu.has_bfloat16 else torch.float32


def without_data(model: torch.nn.Module) -> None:
    """Put tensors of a FakeTensorMode in place of all tensors of a model, on the CPU. Tied weights stay tied.

    Fake tensors tell autocast and kernels a device, which meta tensors do not. Layers in 4 bits get their packed weight.
    """
    known: dict[int, torch.Tensor] = {}

    def fake(tensor: torch.Tensor) -> torch.Tensor:
        if id(tensor) not in known and isinstance(tensor, FourBitTensor):
            known[id(tensor)] = as_parameter(tensor.mapped(fake))
        elif id(tensor) not in known:
            new = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="cpu")
            if isinstance(tensor, torch.nn.Parameter):
                new = torch.nn.Parameter(new, requires_grad=tensor.requires_grad)
            known[id(tensor)] = new
        return known[id(tensor)]

    for module in list(model.modules()):
        if is_4bit(module) and module.weight.device.type == "meta":
            module._parameters["weight"] = packed_weight(module)
            known[id(module.weight)] = module.weight
        held: Any
        for held in (module._parameters, module._buffers):
            for name, tensor in held.items():
                if tensor is not None:
                    held[name] = fake(tensor)
        for name, value in list(vars(module).items()):
            if isinstance(value, torch.Tensor):
                vars(module)[name] = fake(value)


def packed_weight(layer: Any) -> torch.nn.Parameter:
    """The weight of bitsandbytes' 4-bit layer as it is stored: two values a byte, and their scales (`QuantState`)."""
    from bitsandbytes.functional import QuantState

    weight = layer.weight
    numel, block, nested_block = weight.numel(), weight.blocksize, 256
    num_blocks = -(-numel // block)
    packed: Any = torch.nn.Parameter(torch.empty(((numel + 1) // 2, 1), dtype=torch.uint8), requires_grad=False)
    new_state: Any = QuantState
    state = {"shape": weight.shape, "code": torch.empty(16), "blocksize": block, "quant_type": weight.quant_type}
    dtype = layer.compute_dtype or torch.bfloat16
    if weight.compress_statistics:
        nested = new_state(absmax=torch.empty(-(-num_blocks // nested_block)), code=torch.empty(256), blocksize=nested_block)
        absmax = torch.empty(num_blocks, dtype=torch.uint8)
        packed.quant_state = new_state(absmax=absmax, dtype=dtype, offset=torch.empty(()), state2=nested, **state)
    else:
        packed.quant_state = new_state(absmax=torch.empty(num_blocks), dtype=dtype, **state)
    weights: torch.nn.Parameter = packed
    return weights


@contextmanager
def autocast_as_on_gpu(dtype: torch.dtype) -> Iterator[None]:
    """Autocast for tensors of the CPU, within which code that asks finds that of a GPU on as well (PEFT does)."""
    before, before_dtype = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    enabled = dtype != torch.float32
    torch.set_autocast_enabled("cuda", enabled)
    if enabled:
        torch.set_autocast_dtype("cuda", dtype)
    try:
        with torch.autocast("cpu", dtype, enabled=enabled):
            yield
    finally:
        torch.set_autocast_enabled("cuda", before)
        torch.set_autocast_dtype("cuda", before_dtype)


@contextmanager
def tensors_without_data(mode: FakeTensorMode) -> Iterator[None]:
    """Within it new tensors have no data, and kernels behave as on a GPU."""
    with mode, as_on_gpu():
        yield
