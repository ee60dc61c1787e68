"""Which stored tensors the parameters of a model come from, and how a change of a parameter becomes one of stored tensors.

transformers stores some models otherwise than they run: experts one by one and not as one tensor, other names, one matrix for
three.
Its own rules (`WeightConverter`) are asked, forward for the names of a folder, and in reverse for what is written: nothing here
knows a family.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_TOLERANCE = 1e-5
"""Relative difference of the sums of a tensor before and after its elements were rearranged, in float64."""


class UnknownNamesError(Exception):
    """How these parameters are stored can't be said without loading the model."""


@dataclass(frozen=True)
class Group:
    """Parameters that are stored together."""

    parameters: tuple[str, ...]
    stored: tuple[str, ...]
    """Names of the tensors, in the order in which the conversion yields them."""

    is_plain: bool
    """One parameter is one tensor of the same numbers in the same places."""

    num_experts: int = 0
    """Larger than 0: index i of the parameters' first dimension is in every `num_experts`-th stored tensor from i on."""


class StoredNames:
    """How the parameters of one model are stored in one folder."""

    def __init__(self, model: "PreTrainedModel", stored: Mapping[str, torch.Tensor]) -> None:
        """Remember both.

        Args:
            model: without data, as transformers loaded it from the headers of the folder (`loading_report.without_data`).
            stored: the tensors of the folder, without data.
        """
        self._model, self._stored = model, stored
        self._shapes = dict(model.state_dict(keep_vars=True))
        self._conv1d = {f"{name}.weight" for name, module in model.named_modules() if type(module).__name__ == "Conv1D"}
        owners: dict[int, list[str]] = {}
        for name, tensor in self._shapes.items():
            owners.setdefault(id(tensor), []).append(name)
        self._aliases = [tuple(names) for names in owners.values() if len(names) > 1]
        layers = (model.get_input_embeddings(), model.get_output_embeddings())
        self._tables = [
            {name for name, tensor in self._shapes.items() if tensor is getattr(layer, "weight", None)} for layer in layers
        ]
        bias = getattr(layers[1], "bias", None)
        self._of_tokens = set().union(*self._tables) | {n for n, t in self._shapes.items() if bias is not None and t is bias}
        self._alone: dict[str, tuple[tuple[str, ...], bool]] = {}
        self._known: set[str] = set()

    def parameters(self) -> Iterator[str]:
        """Yield the names of all parameters and buffers."""
        yield from self._shapes

    def shape(self, parameter: str) -> tuple[int, ...]:
        """The shape of a parameter, with the rows of new tokens."""
        return tuple(self._shapes[parameter].shape)

    def is_conv1d(self, parameter: str) -> bool:
        """Whether it is a matrix of (in, out)."""
        return parameter in self._conv1d

    def aliases(self) -> list[tuple[str, ...]]:
        """The names of each parameter that has several."""
        return self._aliases

    def can_untie(self, aliases: Sequence[str]) -> bool:
        """Whether these are the embeddings and the output layer, which config.json ties or does not tie."""
        return len(aliases) == 2 and all(not table.isdisjoint(aliases) for table in self._tables)

    def has_tokens(self, parameter: str) -> bool:
        """Whether it has a row for each token: the embeddings, the output layer's weight and its bias."""
        return parameter in self._of_tokens

    def is_alias_of_stored(self, parameter: str) -> bool:
        """Whether a parameter is stored by another one of its names."""
        return any(
            parameter in aliases and any(name in self._stored for alias in aliases for name in self.of(alias))
            for aliases in self._aliases
        )

    def knows(self, parameter: str) -> bool:
        """Whether it can be said how a parameter is stored, by itself."""
        try:
            self._single(parameter)
        except UnknownNamesError:
            return False
        return True

    def has(self, stored: str) -> bool:
        """Whether a parameter is stored in a tensor."""
        if not self._known:
            self._known |= {name for parameter in self._shapes if self.knows(parameter) for name in self.of(parameter)}
        return stored in self._known

    def of(self, parameter: str) -> tuple[str, ...]:
        """The names of the tensors that a parameter is stored in, whether the folder has them or not."""
        return self._single(parameter)[0]

    def plain(self, parameter: str) -> bool:
        """Whether it is stored as one tensor with the same numbers in the same places."""
        return self._single(parameter)[1]

    def group(self, parameter: str) -> Group:
        """The parameters that are stored together with one.

        Raises:
            UnknownNamesError: the folder does not have what the conversion yields.
        """
        names, is_plain = self._single(parameter)
        if is_plain:
            return Group((parameter,), names, True)
        # Of those that share tensors, all have to be converted at once.
        parent = parameter.rpartition(".")[0].rpartition(".")[0]
        near = [other for other in self._shapes if other.startswith(parent)]
        members = [other for other in near if other == parameter or set(self._single(other)[0]) & set(names)]
        made = self._reverse({name: self._like(name) for name in members})
        for name, tensor in made.items():
            if name not in self._stored or self._stored[name].shape != tensor.shape:
                raise UnknownNamesError(f"{name} is not in its files as {list(tensor.shape)}")
        return Group(tuple(members), tuple(made), False, self._experts(members, made))

    def changed(self, group: Group, changes: Mapping[str, torch.Tensor], expert: int | None = None) -> dict[str, torch.Tensor]:
        """What is added to the stored tensors of a group, in float32.

        Args:
            group: not a plain one.
            changes: parameter -> what is added to it. Nothing is added to the others.
            expert: the index that `changes` are of, with a first dimension of 1. None: all.

        Raises:
            UnknownNamesError: the conversion does more than to rearrange.
        """
        parts = {}
        for name in group.parameters:
            shape = self._shapes[name].shape if expert is None else (1, *self._shapes[name].shape[1:])
            parts[name] = changes.get(name, torch.zeros(()).expand(shape))
        made = self._reverse(parts)
        before = sum(float(tensor.square().sum(dtype=torch.float64)) for tensor in changes.values())
        after = sum(float(tensor.square().sum(dtype=torch.float64)) for tensor in made.values())
        if not math.isclose(before, after, rel_tol=_TOLERANCE, abs_tol=1e-30):
            raise UnknownNamesError(f"{group.stored[0]} is computed from {group.parameters[0]}")
        if expert is None:
            return made
        return dict(zip(group.stored[expert :: group.num_experts], made.values(), strict=True))

    def converted(self, group: Group, whole: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The stored tensors of a group, from all of its parameters.

        Raises:
            UnknownNamesError: one of them is not there.
        """
        if missing := [name for name in group.parameters if name not in whole]:
            raise UnknownNamesError(f"{missing[0]} is stored with others that train as a whole")
        return self._reverse(dict(whole))

    def gathered(self, group: Group, read: Callable[[str], torch.Tensor]) -> dict[str, torch.Tensor]:
        """The parameters of a group, from its stored tensors: the conversion, followed element by element.

        Args:
            group: not a plain one.
            read: returns a stored tensor.

        Raises:
            UnknownNamesError: the conversion does more than to rearrange.
        """
        shapes = {name: self._shapes[name].shape for name in group.parameters}
        each = {name: (1, *shape[1:]) if group.num_experts else tuple(shape) for name, shape in shapes.items()}
        sizes = [math.prod(shape) for shape in each.values()]
        numbers = torch.arange(sum(sizes)).split(sizes)
        places = self._reverse({name: part.view(shape) for (name, shape), part in zip(each.items(), numbers, strict=True)})
        total = sum(sizes)
        if sum(int(place.sum()) for place in places.values()) != total * (total - 1) // 2:
            raise UnknownNamesError(f"{group.stored[0]} is computed from {group.parameters[0]}")
        made: dict[str, list[torch.Tensor]] = {name: [] for name in group.parameters}
        for expert in range(max(1, group.num_experts)):
            stored = [read(name) for name in group.stored[expert :: max(1, group.num_experts)]]
            flat = stored[0].new_empty(total)
            for place, tensor in zip(places.values(), stored, strict=True):
                flat[place.reshape(-1)] = tensor.reshape(-1)
            for (name, shape), part in zip(each.items(), flat.split(sizes), strict=True):
                made[name].append(part.view(shape))
        return {name: torch.cat(parts) if group.num_experts else parts[0] for name, parts in made.items()}

    def _experts(self, members: Sequence[str], made: Mapping[str, torch.Tensor]) -> int:
        """The number of experts, if the stored tensors are those of single ones."""
        sizes = {len(self._shapes[name]) for name in members if self._shapes[name].ndim == 3}
        if len(sizes) != 1 or any(self._shapes[name].ndim != 3 for name in members):
            return 0
        (number,) = sizes
        first = self._reverse({name: self._like(name)[:1] for name in members})
        found, names = list(first), list(made)
        if number < 2 or names[::number] != found or len(names) != number * len(found):
            return 0
        return number

    def _single(self, parameter: str) -> tuple[tuple[str, ...], bool]:
        if parameter not in self._alone:
            like = self._like(parameter)
            made = self._reverse({parameter: like})
            self._alone[parameter] = (tuple(made), len(made) == 1 and next(iter(made.values())) is like)
        return self._alone[parameter]

    def _like(self, parameter: str) -> torch.Tensor:
        return torch.empty(self._shapes[parameter].shape, dtype=torch.float32, device="meta")

    def _reverse(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        from transformers.core_model_loading import revert_weight_conversion

        try:
            made: dict[str, torch.Tensor] = revert_weight_conversion(self._model, tensors)
        except Exception as error:  # whatever a conversion needs that is not there
            raise UnknownNamesError(f"{next(iter(tensors))} can't be converted ({error})") from None
        return made


def added(
    group: Group, names: StoredNames, deltas: Mapping[str, Callable[[int | None], torch.Tensor]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what is added to each stored tensor of a group, of one expert after the other if it can be told apart.

    Args:
        group: not a plain one.
        names: of the model.
        deltas: parameter -> a function of an expert's index, or None for all, that returns what is added.
    """
    for expert in range(group.num_experts) if group.num_experts else [None]:
        made = names.changed(group, {name: delta(expert) for name, delta in deltas.items()}, expert)
        yield from made.items()
