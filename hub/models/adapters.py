"""LoRA adapters in folders of peft: read, scaled, averaged, written. Nothing is loaded as a model.

An adapter adds s B A to a weight W, with s = alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv 2312.03732). What adapters have
learnt is in these products: the average of several is sum_i w_i s_i B_i A_i. Averaging A and B apart would give something else,
since (B_1 + B_2)(A_1 + A_2) has the mixed terms too. Laid side by side, A = [A_1; A_2; ...] and B = [w_1 s_1 B_1, w_2 s_2 B_2,
...], they are one adapter with exactly the averaged product.
"""

import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from hub.errors import ConfigError, ModelError
from hub.models.averaging import appears_whole
from hub.models.finished import ADAPTER_CONFIG
from hub.models.finished import ADAPTER_WEIGHTS as WEIGHTS

PREFIX = "base_model.model."
_MERGE = "Merge it with its base, and average the whole models: hub average runs=MERGED,BASE weights=0.5,0.5"
_FACTOR = re.compile(r"(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")


class Product(NamedTuple):
    """What an adapter adds to one weight, or to each matrix of a tensor of experts: scaling * B A."""

    a: torch.Tensor
    """(r, in), or (experts, r, in)."""

    b: torch.Tensor
    """(out, r), or (experts, out, r)."""

    scaling: float

    @property
    def num_experts(self) -> int:
        """Matrices of a tensor of experts. 1: it is a single weight."""
        return len(self.a) if self.a.ndim == 3 else 1

    def dense(self) -> torch.Tensor:
        """Scaling * B A, (out, in) or (experts, out, in), float64."""
        return self.scaling * (self.b.double() @ self.a.double())


@dataclass(frozen=True)
class StoredAdapter:
    """A LoRA adapter as peft stores it."""

    folder: Path
    config: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @classmethod
    def read(cls, folder: Path) -> "StoredAdapter":
        """Read an adapter folder.

        Raises:
            ModelError: it can't be read, or holds no LoRA.
        """
        try:
            config = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))
            tensors = load_file(folder / WEIGHTS)
        except (OSError, ValueError, SafetensorError) as error:
            raise ModelError(f"{folder}: this adapter can't be read ({error}). Copy or download it again") from None
        if config.get("peft_type") != "LORA":
            raise ModelError(f"{folder}: its adapter is {config.get('peft_type')}, and only LoRA can be scaled and averaged")
        return cls(folder, config, tensors)

    @property
    def products(self) -> dict[str, Product]:
        """What it adds to each weight, by the module's name in peft."""
        sides: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in self.tensors.items():
            if found := _FACTOR.fullmatch(name):
                sides.setdefault(found["module"], {})[found["side"]] = tensor
        rows: Counter[str] = Counter()
        for module, side in sides.items():
            rows[_stem(module)] += len(side["A"])
        return {module: self._product(module, side["A"], side["B"], rows[_stem(module)]) for module, side in sides.items()}

    def parameters_of(self, module: str) -> list[str]:
        """The names of the tensors that the adapters of a module of peft may belong to. Empty: to the module's weight."""
        found = [f"{_stem(module)}.{name.rpartition('.')[2]}" for name in self.config.get("target_parameters") or ()]
        targets = set(self.config.get("target_parameters") or ())
        return sorted({name for name in found if any(f".{name}".endswith(f".{target}") for target in targets)})

    def _product(self, module: str, a: torch.Tensor, b: torch.Tensor, rows: int) -> Product:
        """The product of a module.

        Args:
            module: its name in peft.
            a: as stored.
            b: as stored.
            rows: of A, of all adapters on tensors of the same module.
        """
        ranks = {name: self._rank(name) for name in self.parameters_of(module)}
        number = rows // sum(ranks.values()) if ranks else 1
        if number <= 1:
            return Product(a, b, self._scaling(module.removeprefix(PREFIX), len(a)))
        rank = len(a) // number
        scalings = {self._scaling(name, rank) for name, own in ranks.items() if own == rank}
        if len(scalings) != 1 or rank * number != len(a):
            raise ModelError(f"{self.folder}: whose adapter {module} is can't be told from its config")
        # peft (ParamWrapper): the experts are outside in A, and inside in B
        stacked = b.reshape(len(b), rank, number).permute(2, 0, 1)
        return Product(a.reshape(number, rank, -1), stacked, scalings.pop())

    @property
    def others(self) -> dict[str, torch.Tensor]:
        """What it holds besides: whole modules, biases, rows of embeddings."""
        return {name: tensor for name, tensor in self.tensors.items() if not _FACTOR.fullmatch(name)}

    @property
    def replacing(self) -> dict[str, torch.Tensor]:
        """Of `others`: what stands in place of a weight of the base, whole modules and rows of embeddings. No biases."""
        whole = tuple(self.config.get("modules_to_save") or ())  # ends of the names of modules, as peft takes them
        return {
            name: tensor
            for name, tensor in self.others.items()
            if name.endswith(".trainable_tokens_delta")
            or any(name[: dot.start()].endswith(whole) for dot in re.finditer(r"\.", name))
        }

    def _rank(self, name: str) -> int:
        return int(_of_pattern(self.config.get("rank_pattern") or {}, name, self.config["r"]))

    def _scaling(self, name: str, rank: int) -> float:
        alpha = _of_pattern(self.config.get("alpha_pattern") or {}, name, self.config["lora_alpha"])
        return float(alpha / (rank**0.5 if self.config.get("use_rslora") else rank))

    def write(self, folder: Path) -> None:
        """Write the adapter to a folder, with the files that lie beside it: tokenizer, template, card.

        Raises:
            ConfigError: it can't be written, and nothing of it stays.
        """
        with appears_whole(folder) as aside:
            shutil.copytree(self.folder, aside, ignore=shutil.ignore_patterns(WEIGHTS, ADAPTER_CONFIG))
            save_file({name: tensor.contiguous() for name, tensor in self.tensors.items()}, aside / WEIGHTS, {"format": "pt"})
            (aside / ADAPTER_CONFIG).write_text(json.dumps(self.config, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _stem(module: str) -> str:
    """The module of the plain model that adapters belong to: those of several tensors wrap each other."""
    return module.removeprefix(PREFIX).replace(".base_layer", "")


def _of_pattern(patterns: dict[str, Any], name: str, default: Any) -> Any:
    """The value for a module, as peft finds it: the first pattern that the end of its name matches."""
    return next((value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name)), default)


def scaled(adapter: StoredAdapter, factor: float, others: Mapping[str, torch.Tensor] = MappingProxyType({})) -> StoredAdapter:
    """An adapter that adds `factor` times as much: the weights are on the line from the base (0) over the trained ones (1).

    Of the products only alpha changes. For weights W + f s B A it is the interpolation of arXiv 2109.01903 (WiSE-FT).

    Args:
        adapter: as it was trained.
        factor: the strength.
        others: what it holds besides the products, with this strength.

    Raises:
        ConfigError: it holds more, which alpha does not scale.
    """
    check_scalable(adapter)
    if missing := sorted(adapter.others.keys() - others.keys()):
        raise ConfigError(f"{adapter.folder}: {missing[0]} is not in the base, so it can't be scaled")
    tensors = adapter.tensors | {name: value.to(adapter.tensors[name].dtype) for name, value in others.items()}
    config = dict(adapter.config)
    config["lora_alpha"] = config["lora_alpha"] * factor
    config["alpha_pattern"] = {name: alpha * factor for name, alpha in (config.get("alpha_pattern") or {}).items()}
    return replace(adapter, config=config, tensors=tensors)


def average(adapters: Sequence[StoredAdapter], weights: Sequence[float], rank: int | None = None) -> StoredAdapter:
    """The weighted average of adapters, as one adapter.

    Args:
        adapters: on the same base. Where one has no adapter for a weight, it adds nothing there.
        weights: of each. If they sum to less than 1, the rest is the base's.
        rank: rank of the result: the best approximation of the average by a singular value decomposition. None: exactly the
            average, whose rank is the sum of all ranks.

    Raises:
        ConfigError: they are of different bases, or hold what can't be averaged.
    """
    check_alike(adapters, weights)
    first = adapters[0]
    tensors: dict[str, torch.Tensor] = {}
    ranks: dict[str, int] = {}
    every = [adapter.products for adapter in adapters]
    for module in sorted({module for products in every for module in products}):
        parts = [(w, products[module]) for w, products in zip(weights, every, strict=True) if module in products and w != 0]
        if not parts:
            continue
        a = torch.cat([part.a.double() for _, part in parts], dim=-2)
        b = torch.cat([w * part.scaling * part.b.double() for w, part in parts], dim=-1)
        if rank is not None and a.shape[-2] > rank:
            a, b = _of_rank(a, b, rank)
        stored, one = parts[0][1].a.dtype, first if module in every[0] else _having(adapters, every, module)
        _note_rank(ranks, one, module, a)
        kinds = _names(one, module)
        if a.ndim == 3:
            a, b = a.flatten(0, 1), b.permute(1, 2, 0).flatten(1)
        tensors[kinds["A"]], tensors[kinds["B"]] = a.to(stored), b.to(stored)
    tensors |= _averaged_others(adapters, weights)
    return StoredAdapter(first.folder, _config(adapters, ranks), tensors)


def _note_rank(ranks: dict[str, int], adapter: StoredAdapter, module: str, a: torch.Tensor) -> None:
    """Note the rank of an averaged module under the pattern by which peft finds it.

    Raises:
        ConfigError: tensors of the same module have different ranks, and peft would need their names.
    """
    name = re.escape(module.removeprefix(PREFIX))
    if a.ndim == 3:
        leaves = "|".join(re.escape(one.rpartition(".")[2]) for one in adapter.parameters_of(module))
        name = rf"{re.escape(_stem(module))}\.({leaves})"
    if ranks.setdefault(name, a.shape[-2]) != a.shape[-2]:
        raise ConfigError(f"{adapter.folder}: the average has different ranks for the tensors of {_stem(module)}. Type rank=N")


def _having(adapters: Sequence[StoredAdapter], every: Sequence[dict[str, Product]], module: str) -> StoredAdapter:
    return next(adapter for adapter, products in zip(adapters, every, strict=True) if module in products)


def _names(adapter: StoredAdapter, module: str) -> dict[str, str]:
    """The names of the two factors of a module: side -> name."""
    found = {name: match for name in adapter.tensors if (match := _FACTOR.fullmatch(name)) and match["module"] == module}
    return {match["side"]: name for name, match in found.items()}


def _of_rank(a: torch.Tensor, b: torch.Tensor, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The factors of the best approximation of B A of a rank (Eckart and Young), without forming the product."""
    left, left_small = torch.linalg.qr(b)
    right, right_small = torch.linalg.qr(a.mT)
    u, values, v = torch.linalg.svd(left_small @ right_small.mT)
    roots = values[..., :rank].sqrt()
    return roots[..., :, None] * (v[..., :rank, :] @ right.mT), (left @ u[..., :rank]) * roots[..., None, :]


def _config(adapters: Sequence[StoredAdapter], ranks: dict[str, int]) -> dict[str, Any]:
    """The config of an average whose products have the scaling 1."""
    config = dict(adapters[0].config)
    common = Counter(ranks.values()).most_common(1)[0][0]
    pattern = {name: rank for name, rank in ranks.items() if rank != common}
    named = [adapter.config.get("target_modules") or () for adapter in adapters]
    targets = named[0] if any(isinstance(one, str) for one in named) else sorted({name for one in named for name in one})
    if parameters := {name for adapter in adapters for name in adapter.config.get("target_parameters") or ()}:
        config["target_parameters"] = sorted(parameters)
    config |= {"r": common, "lora_alpha": common, "rank_pattern": pattern, "alpha_pattern": pattern, "use_rslora": False}
    return config | {"target_modules": targets, "init_lora_weights": True, "lora_dropout": 0.0}


def check_alike(adapters: Sequence[StoredAdapter], weights: Sequence[float]) -> None:
    """Refuse adapters that can't be averaged. Takes the arguments of `average` and raises its errors."""
    bases = {(adapter.config.get("base_model_name_or_path"), adapter.config.get("revision")) for adapter in adapters}
    if len(bases) > 1:
        named = " and ".join(sorted({str(base) for base, _ in bases}))
        raise ConfigError(f"these adapters are on different bases ({named}), so they can't be averaged. Name runs on one base")
    _refuse_dora(adapters)
    if abs(sum(weights) - 1) > 1e-6:
        _refuse_others(adapters, sum(weights))
    names = {name for adapter in adapters for name in adapter.others}
    for adapter in adapters:
        for name in sorted(names):
            if name not in adapter.tensors or adapter.tensors[name].shape != adapters[0].tensors[name].shape:
                raise ConfigError(f"{adapter.folder} has no {name} as the others have, so they can't be averaged")


def _averaged_others(adapters: Sequence[StoredAdapter], weights: Sequence[float]) -> dict[str, torch.Tensor]:
    """The average of what is no product. All adapters have it."""
    names = {name for adapter in adapters for name in adapter.others}
    averaged = {}
    for name in sorted(names):
        total = sum(w * adapter.tensors[name].double() for w, adapter in zip(weights, adapters, strict=True))
        assert isinstance(total, torch.Tensor)
        averaged[name] = total.to(adapters[0].tensors[name].dtype)
    return averaged


def check_scalable(adapter: StoredAdapter) -> None:
    """Refuse an adapter whose weights can't be put on the line from the base.

    Raises:
        ConfigError: it is one of DoRA, or holds trained biases.
    """
    _refuse_dora([adapter])
    if biases := sorted(adapter.others.keys() - adapter.replacing.keys()):
        raise ConfigError(
            f"{adapter.folder} trained biases ({biases[0].removeprefix(PREFIX)}, ...), and a model that has them no longer has "
            f"those of the base, so it can't be scaled. {_MERGE}"
        )


def _refuse_others(adapters: Sequence[StoredAdapter], share: float) -> None:
    """Refuse adapters that hold more than products. `share` is that of the adapters, not of the base."""
    for adapter in adapters:
        if others := sorted(adapter.others):
            first = "" if len(adapters) == 1 else "Average them without base=, and then "
            folder = adapter.folder if len(adapters) == 1 else "AVERAGE"
            raise ConfigError(
                f"{adapter.folder} trained more than its products ({others[0].removeprefix(PREFIX)}, ...), and what the base "
                f"has there is not in the adapter. {first or 'To do the same '}type hub scale model.path={folder} "
                f"alpha={share:g}"
            )


def _refuse_dora(adapters: Sequence[StoredAdapter]) -> None:
    for adapter in adapters:
        if adapter.config.get("use_dora"):
            raise ConfigError(
                f"{adapter.folder} was trained with algo.use_dora=true: weights are a magnitude times a direction, and what "
                f"lies between two of them is no such adapter. {_MERGE}"
            )
