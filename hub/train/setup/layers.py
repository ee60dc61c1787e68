"""Which weights of a model can train through the module that holds them, found by a pass over a few tokens.

An adapter beside a linear layer, or another layer in its place, has an effect only if the model calls the layer and never reads
its weight. Fused kernels read weights without calling their layers, some routers are linear layers that return several tensors,
and some blocks share their weights. Which do depends on the family, the machine and the versions of the libraries, so it is
tried on the model itself.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hub.data.prepare import Sample
from hub.errors import ModelError, first_line
from hub.models.structure import input_embeddings
from hub.system.memory import is_out_of_memory
from hub.train.attempts import twice
from hub.train.batch.collate import pad
from hub.train.losses.causal_lm import model_inputs

NUM_TOKENS = 8
"""Length of the text that is tried. Short, since weights that will be sharded are still on the CPU."""

READ = "the model reads the weight without calling the layer"
SHARED = "several layers share the weight"
NOT_A_PRODUCT = "the layer returns more than its product"
UNREACHED = "a pass over text does not call it"

MAX_KINDS = 4
"""How many kinds of layers a line names for each reason."""

Weight = tuple[str, str]
"""Full name of a module, and the name of a parameter that it holds."""


def unsuited(
    model: PreTrainedModel, weights: Sequence[Weight], device: torch.device, say: Callable[[str], object]
) -> dict[Weight, str]:
    """Return the weights that can't train through their module, each with the reason.

    A module that the pass does not call, such as an expert that gets no token, is judged by those whose names differ from its
    name in numbers only. Weights that are quantized to integers are taken to be read by their layer alone.

    Args:
        model: as loaded. It is in the same state afterwards, and so are the random generators.
        weights: to be tried, of linear layers and of experts.
        device: where the model will train.
        say: logs a line.

    Returns:
        Reasons by weight, in the order of `weights`.

    Raises:
        ModelError: the model can't compute anything, on the device where it will train.
    """
    reasons = dict.fromkeys(_shared(model, weights), SHARED)
    if next(model.parameters()).is_meta:  # a plan has no weights that could compute anything
        return reasons
    trial = _Trial(model, weights)
    try:
        twice(model, lambda: trial.run(_text(model)))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, NotImplementedError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        if next(model.parameters()).device.type == device.type:
            quantized = "It is quantized: try it without that. " if getattr(model, "is_quantized", False) else ""
            raise ModelError(
                f"model.path: {model.name_or_path} can't be trained: it fails in a pass over {NUM_TOKENS} tokens. {quantized}"
                f"({type(error).__name__}: {first_line(error)})"
            ) from error
        # Kernels for a GPU do not run here, where the weights wait to be sharded.
        say(f"which layers can train is not tried: a pass over {NUM_TOKENS} tokens on the CPU fails ({first_line(error)})")
        return reasons
    found = trial.reasons() | reasons
    return {weight: found[weight] for weight in weights if weight in found}


def in_words(left_out: Iterable[tuple[str, str]]) -> str:
    """Return what is left out by kind and reason, as `3 x mixer.dt_proj, 3 x mixer.x_proj (reason)`.

    Args:
        left_out: names with their reasons.
    """
    kinds: dict[str, dict[str, int]] = {}
    for name, reason in left_out:
        words = [part for part in name.split(".") if not part.isdigit()]
        of_reason = kinds.setdefault(reason, {})
        kind = ".".join(words[:2] if reason == UNREACHED else words[-2:])  # a vision tower as a whole
        of_reason[kind] = of_reason.get(kind, 0) + 1
    shown = []
    for reason, counts in kinds.items():
        few = [f"{number} x {kind}" for kind, number in list(counts.items())[:MAX_KINDS]]
        if len(counts) > MAX_KINDS:
            few.append(f"{sum(list(counts.values())[MAX_KINDS:])} others")
        shown.append(f"{', '.join(few)} ({reason})")
    return "; ".join(shown)


class _Trial:
    """One pass of a model in which each weight requires a gradient, but never while the module that holds it runs.

    So the logits depend on such a weight, as autograd records it, exactly if the model reads it elsewhere.
    """

    def __init__(self, model: PreTrainedModel, weights: Sequence[Weight]) -> None:
        self.model, self.weights = model, weights
        self.modules = {weight: model.get_submodule(weight[0]) for weight in weights}
        self.calls: set[int] = set()
        self.odd: set[int] = set()
        self.read: set[int] = set()

    def run(self, inputs: dict[str, object]) -> None:
        """Run the pass."""
        with _frozen(self.model), self._watched(), _same_random_numbers(self.model), torch.enable_grad():
            for weight in self.weights:
                self._require(self.modules[weight], True)
            device, dtype = next(self.model.parameters()).device.type, self.model.dtype
            # Tensors without data, of a plan, have a device that autocast does not know.
            enabled = dtype in (torch.bfloat16, torch.float16) and device != "meta"
            with torch.autocast("cpu" if device == "meta" else device, dtype, enabled=enabled):
                self.read = _leaves_of(self.model(**inputs).logits)

    def reasons(self) -> dict[Weight, str]:
        """Return what the pass has shown, by weight."""
        own = {weight: self._reason(weight) for weight in self.weights}
        kinds: dict[str, str | None] = {}
        for weight, reason in own.items():
            if reason != UNREACHED:
                kinds.setdefault(_kind(weight), reason)
        judged = {w: kinds.get(_kind(w), UNREACHED) if reason == UNREACHED else reason for w, reason in own.items()}
        return {weight: reason for weight, reason in judged.items() if reason is not None}

    def _reason(self, weight: Weight) -> str | None:
        module = self.modules[weight]
        if id(getattr(module, weight[1])) in self.read:
            return READ
        if id(module) in self.odd:
            return NOT_A_PRODUCT
        return None if id(module) in self.calls else UNREACHED

    @contextmanager
    def _watched(self) -> Iterator[None]:
        def before(module: torch.nn.Module, inputs: tuple[object, ...]) -> None:
            self._require(module, False)

        def after(module: torch.nn.Module, inputs: tuple[object, ...], output: object) -> None:
            self.calls.add(id(module))
            if isinstance(module, torch.nn.Linear | Conv1D) and not _is_product(module, inputs, output):
                self.odd.add(id(module))
            self._require(module, True)

        hooks = []
        for module in {id(module): module for module in self.modules.values()}.values():
            hooks.append(module.register_forward_pre_hook(before))
            hooks.append(module.register_forward_hook(after))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @staticmethod
    def _require(module: torch.nn.Module, gradient: bool) -> None:
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                parameter.requires_grad_(gradient)


def _is_product(layer: torch.nn.Linear | Conv1D, inputs: tuple[object, ...], output: object) -> bool:
    """Whether a layer has returned x W^T + b and nothing else. A quantized layer is trusted if the shape is right."""
    if not isinstance(output, torch.Tensor):
        return False
    if not inputs or not isinstance(inputs[0], torch.Tensor):
        return True
    x, weight = inputs[0], layer.weight
    if output.shape[:-1] != x.shape[:-1]:
        return False
    if type(layer) in (torch.nn.Linear, Conv1D) or weight.dtype != x.dtype or weight.shape != (output.shape[-1], x.shape[-1]):
        return True
    with torch.no_grad():
        expected = F.linear(x, weight, layer.bias)
        return bool((output - expected).abs().max() <= 0.05 * expected.abs().max())


def _leaves_of(output: torch.Tensor) -> set[int]:
    """The ids of the tensors that an output's gradient reaches."""
    leaves: set[int] = set()
    seen, waiting = set(), [output.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(leaf := getattr(node, "variable", None), torch.Tensor):
            leaves.add(id(leaf))
        waiting += [following for following, _ in node.next_functions]
    return leaves


def _shared(model: PreTrainedModel, weights: Sequence[Weight]) -> list[Weight]:
    """The weights that several modules hold, or one module that stands in several others.

    A module within a shared block is not meant: it stands in the one block, however many layers use that.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    places: dict[int, set[tuple[int, int]]] = {}
    for name, module in modules.items():
        for parameter in module.parameters(recurse=False):
            places.setdefault(id(parameter), set()).add((id(modules[name.rpartition(".")[0]]), id(module)))
    return [weight for weight in weights if len(places[id(getattr(modules[weight[0]], weight[1]))]) > 1]


def _kind(weight: Weight) -> str:
    """A weight's name without the numbers of layers and experts."""
    return ".".join(part for part in (*weight[0].split("."), weight[1]) if not part.isdigit())


def _text(model: PreTrainedModel) -> dict[str, object]:
    embeddings = input_embeddings(model).weight
    if embeddings.device.type == "meta":  # a mask, or positions, would be looked into
        return {"input_ids": torch.zeros((1, NUM_TOKENS), dtype=torch.int64, device="meta"), "use_cache": False}
    ids = np.random.default_rng(0).integers(0, len(embeddings), NUM_TOKENS).astype(np.int32)
    return model_inputs(model, pad([Sample(ids, np.ones(NUM_TOKENS, dtype=bool), "")], 0).to(embeddings.device))


@contextmanager
def _frozen(model: PreTrainedModel) -> Iterator[None]:
    """Let no parameter require a gradient, and set them back."""
    required = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    for parameter, _ in required:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter, before in required:
            parameter.requires_grad_(before)


@contextmanager
def _same_random_numbers(model: PreTrainedModel) -> Iterator[None]:
    """Set the random generators back afterwards: dropout draws from them."""
    gpus = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})
    with torch.random.fork_rng(devices=gpus):
        yield
