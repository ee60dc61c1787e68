"""What is done to each stored tensor, in the order in which they are written."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch

from hub.errors import ModelError
from hub.models.merging.changes import Added, Change, Replaced
from hub.models.merging.loaded import too_large
from hub.models.merging.names import Group, StoredNames, UnknownNamesError, added
from hub.models.merging.quantized import Kind, as_trained
from hub.models.merging.shards import Planned
from hub.models.merging.stored import StoredWeights
from hub.models.rounding import rounded
from hub.models.save import plain_model, stored_dtypes
from hub.models.tokens import Vocabulary, begin_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Dtypes = Callable[[str], torch.dtype]
"""Name of a stored tensor -> the dtype in which it is written."""

Rows = tuple[Vocabulary, str]
"""The tokens, and how rows of new ones begin."""

Seen = tuple[Kind, frozenset[str], torch.dtype]
"""How training quantized weights, the parameters of which it did, and the compute dtype."""

_COMPARED_AT_ONCE = 2**24


@dataclass
class Work:
    """The tensors of a merged model: what they will be, and how they are made."""

    plan: dict[str, Planned] = field(default_factory=dict)
    steps: list[Callable[[], Iterator[tuple[str, torch.Tensor]]]] = field(default_factory=list)
    is_untied: bool = False
    num_changed: int = 0
    num_rounded_away: int = 0

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield each tensor with its name, in the order of `plan`."""
        for step in self.steps:
            yield from step()


def dtypes_of(
    model: "PreTrainedModel | None", stored: StoredWeights, dtype: torch.dtype | None, names: StoredNames | None = None
) -> Dtypes:
    """In which dtype each tensor is written: as asked, but those that transformers keeps in float32 when it loads the model so.

    Args:
        model: without data. None: it can't be built.
        stored: the tensors of the base.
        dtype: as asked. None: as in the base.
        names: of the model.
    """
    if dtype is None:
        return lambda name: stored.tensors[name].dtype
    kept: dict[str, torch.dtype] = {}
    if model is not None and names is not None:
        for parameter, own in stored_dtypes(plain_model(model, dtype), dtype).items():
            if own != dtype and own.is_floating_point and names.knows(parameter):
                kept |= dict.fromkeys(names.of(parameter), own)

    def choose(name: str) -> torch.dtype:
        own = stored.tensors[name].dtype
        if not own.is_floating_point:
            return own
        if name in kept:
            return kept[name]
        # What no parameter is stored in, such as layers for later tokens, may have a dtype of its own for a reason.
        return dtype if own == stored.dtype or names is None or names.has(name) else own

    return choose


def plan_work(
    stored: StoredWeights,
    names: StoredNames | None,
    changes: Mapping[str, Change],
    rows: Rows | None,
    dtypes: Dtypes,
    seen: Seen | None,
) -> Work:
    """Plan what is done to each tensor. None is read.

    Args:
        stored: the tensors of the base.
        names: how parameters are stored. None: nothing changes but dtypes.
        changes: what happens to parameters.
        rows: the tokens, if the vocabulary grows.
        dtypes: of the tensors that are written.
        seen: how training saw weights, if it quantized them and this is to be kept.

    Raises:
        UnknownNamesError: where a change goes can't be said.
    """
    return _Planner(stored, names, dict(changes), rows, dtypes, seen).work()


class _Planner:
    """Plans the work of one merge."""

    def __init__(
        self,
        stored: StoredWeights,
        names: StoredNames | None,
        changes: dict[str, Change],
        rows: Rows | None,
        dtypes: Dtypes,
        seen: Seen | None,
    ) -> None:
        self._stored, self._names, self._rows, self._dtypes, self._seen = stored, names, rows, dtypes, seen
        self._changes, self._made = changes, Work()
        self._new: dict[str, tuple[str, str]] = {}
        """Tensor that the base does not have -> the parameter, and the tensor that has its numbers there."""

        self._of: dict[str, str] = {}
        """Stored tensor -> its parameter, where it is stored plainly."""

    def work(self) -> Work:
        made, stored, names = self._made, self._stored, self._names
        if names is not None:
            self._tie(names)
        groups = self._groups(names) if names is not None else {}
        done: set[str] = set()
        for name, like in stored.tensors.items():
            if name in done:
                continue
            if (group := groups.get(name)) is not None:
                order = _order(group)
                done |= set(order)
                for part in order:
                    made.plan[part] = Planned(self._dtypes(part), tuple(stored.tensors[part].shape))
                made.steps.append(lambda group=group: self._grouped(group))  # type: ignore[misc]
                continue
            made.plan[name] = Planned(self._dtypes(name), self._shape(name, like))
            made.steps.append(lambda name=name: self._one(name, name, self._of.get(name)))  # type: ignore[misc]
        for name, (parameter, source) in self._new.items():
            made.plan[name] = Planned(self._dtypes(source), self._shape(source, stored.tensors[source]))
            made.steps.append(lambda n=name, s=source, p=parameter: self._one(n, s, p))  # type: ignore[misc]
        return made

    def _shape(self, name: str, like: torch.Tensor) -> tuple[int, ...]:
        parameter = self._of.get(name)
        if self._rows is None or parameter is None or self._names is None:
            return tuple(like.shape)
        return self._names.shape(parameter)

    def _tie(self, names: StoredNames) -> None:
        """Let tied weights change alike, or tell them apart where only one of them changes."""
        for aliases in names.aliases():
            changed = {name: self._changes[name] for name in aliases if name in self._changes}
            if not changed:
                continue
            kinds = list(changed.values())
            if len(changed) == len(aliases) and all(_alike(kinds[0], other) for other in kinds[1:]):
                self._changes |= dict.fromkeys(aliases, kinds[0])
                continue
            if not names.can_untie(aliases):
                raise UnknownNamesError(f"{' and '.join(aliases)} are one weight, and the adapter changes them apart")
            self._made.is_untied = True
            have = [name for alias in aliases for name in names.of(alias) if name in self._stored.tensors]
            for alias in aliases:
                (own,) = names.of(alias)
                if own not in self._stored.tensors:
                    self._new[own] = (alias, have[0])

    def _groups(self, names: StoredNames) -> dict[str, Group]:
        """Stored tensor -> its group, of those that are converted. Notes the parameters of all others."""
        groups: dict[str, Group] = {}
        for parameter in names.parameters():
            quantized = self._seen is not None and parameter in self._seen[1]
            is_plain = names.knows(parameter) and names.plain(parameter)
            if is_plain:
                (name,) = names.of(parameter)
                self._of[name] = parameter
            if parameter not in self._changes and not quantized:
                continue
            if is_plain:
                if name not in self._stored.tensors and name not in self._new and not names.is_alias_of_stored(parameter):
                    raise UnknownNamesError(f"{parameter} is stored as {name}, which its files do not have")
                continue
            group = names.group(parameter)
            groups |= dict.fromkeys(group.stored, group)
        return groups

    def _one(self, name: str, source: str, parameter: str | None) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield one tensor that is stored as its parameter is, or that no parameter has."""
        target = self._dtypes(source)
        change = self._changes.get(parameter) if parameter is not None else None
        if isinstance(change, Replaced):
            self._made.num_changed += 1
            yield name, self._cast(name, change.tensor, target)
            return
        before = self._stored.read(source)
        if parameter is not None:
            before = self._as_trained(before, parameter)
        if change is None:
            yield name, self._cast(name, before, target)
            return
        weight = before.float()
        after = change.apply(weight.clone() if weight is before else weight)
        yield name, self._checked(name, before, after, target, change.is_zero)

    def _as_trained(self, weight: torch.Tensor, parameter: str) -> torch.Tensor:
        """A weight as training had it: quantized, or with rows for new tokens."""
        names = self._names
        assert names is not None
        if self._seen is not None and parameter in self._seen[1]:
            weight = as_trained(weight, self._seen[0], self._seen[2], names.is_conv1d(parameter))
        if self._rows is not None and names.has_tokens(parameter):
            more = weight.new_zeros(names.shape(parameter))
            more[: len(weight)] = weight
            begin_rows(more, *self._rows)  # also where new tokens take rows that the base has to spare
            weight = more
        return weight

    def _grouped(self, group: Group) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that several parameters, or parts of one, are stored in."""
        names = self._names
        assert names is not None
        changes = {name: self._changes[name] for name in group.parameters if name in self._changes}
        if all(isinstance(change, Replaced) for change in changes.values()):
            whole = {name: change.tensor for name, change in changes.items() if isinstance(change, Replaced)}
            made = names.converted(group, whole)
            for name in _order(group):
                self._made.num_changed += 1
                yield name, self._cast(name, made[name], self._dtypes(name))
            return
        if self._seen is not None and self._seen[1] & set(group.parameters):
            yield from self._grouped_as_trained(group, changes)
            return
        deltas = {name: change.delta for name, change in changes.items() if isinstance(change, Added)}
        for name, delta in added(group, names, deltas):
            before = self._stored.read(name)
            after = before.float() + delta
            yield name, self._checked(name, before, after, self._dtypes(name), not delta.any())

    def _grouped_as_trained(self, group: Group, changes: Mapping[str, Change]) -> Iterator[tuple[str, torch.Tensor]]:
        """Yield the tensors that quantized parameters are stored in. Each of these was quantized as a whole."""
        names = self._names
        assert names is not None
        whole = names.gathered(group, self._stored.read)
        for name in group.parameters:
            seen = self._as_trained(whole[name], name).float()
            whole[name] = changes[name].apply(seen) if name in changes else seen
        made = names.converted(group, whole)
        is_zero = all(change.is_zero for change in changes.values())
        for name in _order(group):
            yield name, self._checked(name, self._stored.read(name), made[name], self._dtypes(name), is_zero)

    def _checked(
        self, name: str, before: torch.Tensor, after: torch.Tensor, target: torch.dtype, is_zero: bool
    ) -> torch.Tensor:
        """The new numbers in their dtype, if they are new.

        Raises:
            ModelError: they are not, or are no numbers.
        """
        result = self._cast(name, after, target, by_chance=True)
        if _differs(result, before):
            self._made.num_changed += 1
        elif _differs(after, before):
            self._made.num_rounded_away += 1
        elif not is_zero:
            raise ModelError(f"{name} is as in the base, though the adapter adds to it. Nothing was written")
        return result

    def _cast(self, name: str, tensor: torch.Tensor, target: torch.dtype, by_chance: bool = False) -> torch.Tensor:
        if tensor.is_floating_point() and tensor.dtype != target and torch.finfo(target).max < torch.finfo(tensor.dtype).max:
            largest = _largest(tensor)
            if largest > torch.finfo(target).max:
                raise too_large(name, largest, target)
        return (rounded(tensor, target, name) if by_chance else tensor.to(target)).contiguous()


def _order(group: Group) -> list[str]:
    """The stored tensors of a group as they are made: expert by expert."""
    number = group.num_experts
    return [name for expert in range(number) for name in group.stored[expert::number]] if number else list(group.stored)


def _alike(one: Change, other: Change) -> bool:
    """Whether two changes are the same numbers."""
    pairs = [(value, vars(other).get(key)) for key, value in vars(one).items()]
    return type(one) is type(other) and all(
        torch.equal(first, second) if isinstance(first, torch.Tensor) and isinstance(second, torch.Tensor) else first == second
        for first, second in pairs
    )


def _largest(tensor: torch.Tensor) -> float:
    """The largest magnitude of the finite values."""
    largest = 0.0
    for part in tensor.reshape(-1).split(_COMPARED_AT_ONCE):
        size = part.float().abs()
        if not torch.isfinite(found := size.max()):
            size = size[torch.isfinite(size)]
            found = size.max() if len(size) else torch.zeros(())
        largest = max(largest, float(found))
    return largest


def _differs(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors have other numbers, whatever their dtypes."""
    if one.shape != other.shape:
        return True
    parts = zip(one.reshape(-1).split(_COMPARED_AT_ONCE), other.reshape(-1).split(_COMPARED_AT_ONCE), strict=True)
    return any(not torch.equal(first.float(), second.float()) for first, second in parts)
