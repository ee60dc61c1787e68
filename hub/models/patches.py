"""The one owner of everything that the hub changes in a model: which patches are on, in which order, and how to undo each.

A module of this folder offers what it does as a `Patch`. The patch changes the model through the `Edits` that it is given,
which remember how it was. `patches_of(model)` is the owner of a model's patches; whoever needs to know whether one is on
asks it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch

from hub.models.structure import base_of

OWNER = "_hub_patches"
"""Attribute of the transformers model that holds the owner while a patch is on. Only this file reads or writes it."""

P = TypeVar("P", bound="Patch")

_MISSING = object()


class PatchOrderError(Exception):
    """A patch can't be undone: a later patch, or code outside the hub, builds on what it changed."""


@dataclass(frozen=True)
class _Edit:
    """One change, and how to take it back."""

    place: tuple[int, str]
    """Identity of an object, and the name of what was changed there."""

    undo: Callable[[], None]

    is_current: Callable[[], bool] = lambda: True
    """False if something else has changed the place since."""

    held: object = None
    """The object of the place: as long as it lives its identity is not used again."""


class Edits:
    """Records each change of one patch."""

    def __init__(self) -> None:
        self._edits: list[_Edit] = []
        self._relied_on: set[tuple[int, str]] = set()

    def assign(self, holder: object, name: str, value: object) -> None:
        """Set an attribute of an object itself, which has a `__dict__`. Undone, the old value is back, or no attribute."""
        before = vars(holder).get(name, _MISSING)
        vars(holder)[name] = value

        def undo() -> None:
            if before is _MISSING:
                del vars(holder)[name]
            else:
                vars(holder)[name] = before

        self._edits.append(_Edit((id(holder), name), undo, lambda: vars(holder).get(name, _MISSING) is value, holder))

    def record(self, holder: object, name: str, undo: Callable[[], None]) -> None:
        """Record a change of another kind that was just made.

        Args:
            holder: the object that was changed.
            name: what was changed there.
            undo: takes the change back.
        """
        self._edits.append(_Edit((id(holder), name), undo, held=holder))

    def rely_on(self, holder: object, name: str) -> None:
        """Record that this patch needs what an earlier one has changed here, though it changes nothing here itself."""
        self._relied_on.add((id(holder), name))

    @property
    def places(self) -> set[tuple[int, str]]:
        """What the patch changes or needs. A patch that was applied earlier at one of them can't be undone before it."""
        return self._relied_on | {edit.place for edit in self._edits}

    @property
    def are_current(self) -> bool:
        """Whether nothing outside the hub has changed the same attributes since."""
        latest = {edit.place: edit for edit in self._edits}
        return all(edit.is_current() for edit in latest.values())

    def undo(self) -> None:
        """Take all changes back, the last one first."""
        while self._edits:
            self._edits.pop().undo()


class Patch(ABC):
    """One optimization of a model. It can be applied again after it was undone."""

    @abstractmethod
    def apply(self, edits: Edits) -> None:
        """Change the model, by `edits` alone."""

    def report(self, plan: dict[str, object]) -> None:  # noqa: B027 - not every patch stands in plan.json
        """Write into plan.json's decisions what being on means. The values so far are those without this patch."""


class ModelPatches:
    """Everything that the hub changed in one model in this process, and the decisions behind it.

    Args:
        model: a transformers model, an engine or PEFT model around it, or (in tests) a module of any kind.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = base_of(model)
        self._applied: list[tuple[Patch, Edits]] = []
        self._decisions: dict[str, tuple[object, str | None]] = {}

    @property
    def applied(self) -> list[Patch]:
        """The patches that are on, in the order in which they were applied."""
        return [patch for patch, _ in self._applied]

    def all(self, kind: type[P]) -> list[P]:
        """The patches of a kind that are on."""
        return [patch for patch in self.applied if isinstance(patch, kind)]

    def find(self, kind: type[P]) -> P | None:
        """The latest patch of a kind that is on; None if there is none."""
        applied = self.all(kind)
        return applied[-1] if applied else None

    def apply(self, patch: P) -> P:
        """Change the model. A patch that fails leaves the model as it was.

        Raises:
            ValueError: the patch is on already, or another object owns the model's patches.
        """
        if any(one is patch for one in self.applied):
            raise ValueError(f"{type(patch).__name__} is on already")
        if vars(self._model).setdefault(OWNER, self) is not self:
            raise ValueError("another ModelPatches owns this model. Call patches_of(model)")
        edits = Edits()
        try:
            patch.apply(edits)
        except BaseException:
            edits.undo()
            self._release()
            raise
        self._applied.append((patch, edits))
        return patch

    def undo(self, patch: Patch) -> None:
        """Take one patch back. Patches that were applied later stay on.

        Raises:
            ValueError: the patch is not on.
            PatchOrderError: something else builds on it. The model is unchanged.
        """
        number = next((number for number, one in enumerate(self.applied) if one is patch), None)
        if number is None:
            raise ValueError(f"{type(patch).__name__} is not on")
        edits = self._applied[number][1]
        for later, others in self._applied[number + 1 :]:
            if edits.places & others.places:
                raise PatchOrderError(f"{type(later).__name__} builds on {type(patch).__name__}: undo it first")
        if not edits.are_current:
            raise PatchOrderError(f"code outside the hub has changed what {type(patch).__name__} changed: undo that first")
        edits.undo()
        del self._applied[number]
        self._release()

    @contextmanager
    def temporarily(self, patch: P) -> Iterator[P]:
        """Apply a patch for a trial: it is undone afterwards, also after an exception."""
        self.apply(patch)
        try:
            yield patch
        finally:
            self.undo(patch)

    def decide(self, key: str, without: object, because: str | None = None) -> None:
        """Record a decision for plan.json.

        Args:
            key: of plan.json.
            without: the value if no patch reports another one.
            because: the reason, which goes to `KEY_because`. None: no such key.
        """
        self._decisions[key] = (without, because)

    def plan(self) -> dict[str, object]:
        """What was decided, and why, for plan.json."""
        values = {key: without for key, (without, _) in self._decisions.items()}
        for patch in self.applied:
            patch.report(values)
        plan: dict[str, object] = {}
        for key, (_, because) in self._decisions.items():
            plan[key] = values[key]
            if because is not None:
                plan[f"{key}_because"] = because
        return plan

    def _release(self) -> None:
        if not self._applied:
            vars(self._model).pop(OWNER, None)


def patches_of(model: torch.nn.Module) -> ModelPatches:
    """Return the owner of a model's patches. A model without any gets a new one."""
    owner: ModelPatches | None = vars(base_of(model)).get(OWNER)
    return ModelPatches(model) if owner is None else owner
