"""Compute each target's directions once: divided over the processes by cost, cached for the user and in the run folder.

A resumed run reads the copy in the run folder: coordinates are meaningless without the exact Q that they were trained with.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from hub import ConfigError, ModelError
from hub.models.digest import NUM_THREADS, weights_digest
from hub.parallel.group import barrier, broadcast_text
from hub.parallel.session import Session
from hub.system.cache import cache_dir, make_once
from hub.train.attempts import twice
from hub.train.setup.setup import Setup
from hub_osft import wide
from hub_osft.config import FACTORED, OsftConfig
from hub_osft.subspace import decompose, oriented, split
from hub_osft.targets import Target

RECIPE = 2
"""Version of the stored directions. Increase it when their meaning changes."""

INDEX = "directions.json"
SECONDS_BETWEEN_LINES = 5.0

Directions = dict[str, torch.Tensor]
"""Directions of one target by their names on disk: `free` (Q); with `subspace=weights` also `kept` (the protected U_h) and
`scale` (S_l), in the factored form also `left` (U_l); with a strength also `pull` (f,), how much a change along each matters.
Of wide inputs with a strength instead `top`, `energy`, `rest`: the covariance as in `hub.protection.pull`; and `factor` (1,),
the pull per energy. Empty: the full matrix is free."""

SHARED = ("free", "top", "energy", "rest")
"""Those that depend on the input alone."""

Find = Callable[[Target, torch.Tensor], Directions]
"""Computes the directions of a target from its weight, on the weight's device."""


Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]
"""Name of a tensor of `Directions` -> its shape and dtype."""


def find_directions(
    setup: Setup,
    model: PreTrainedModel,
    targets: Sequence[Target],
    find: Find,
    cached: bool,
    shared: Mapping[str, str] | None = None,
) -> dict[str, Directions]:
    """The directions of all targets, equal on all processes, on each one's device.

    Args:
        setup: config, run folder, processes, folder of the weights.
        model: the unchanged model.
        targets: with `num_free` set.
        find: computes the directions of one target.
        cached: whether they depend on the weights alone, so that the user's cache may store them.
        shared: targets whose `free` is that of an earlier target, by names. It is stored and held once.

    Raises:
        ConfigError: the disk has no room for them.
        ModelError: a weight is not finite.
    """
    session, run, algo = setup.session, setup.run, setup.cfg.algo
    assert isinstance(algo, OsftConfig)
    store = run.path / "directions"
    shapes = {target.name: shapes_of(target, algo, session) for target in targets}
    for name in shared or {}:
        shapes[name] = {part: form for part, form in shapes[name].items() if part not in SHARED}
    started = time.monotonic()
    source = ""
    if session.group.is_main:
        if setup.cfg.resume and _is_whole(store):
            source = str(store)
        elif cached and algo.cache:
            folder = cache_dir() / "osft" / _key(setup.base_path, shapes, algo, session)
            source = f"{'' if _is_whole(folder) else 'new '}{folder}"
        else:
            source = f"new {store}"
    source = broadcast_text(source)
    folder = Path(source.removeprefix("new "))
    if source.startswith("new "):
        problem = _disk_problem(folder, shapes) if session.group.is_main else ""
        if problem := broadcast_text(problem):
            raise ConfigError(problem)
        directions = _find_all(setup, model, targets, shapes, find, folder, shared or {})
        how = "found"
    else:
        directions = _load_all(session, targets, folder)
        how = "read from the run folder" if folder == store else "read from the cache"
    if session.group.is_main and folder != store:
        _link(folder, store)
    share(directions, shared or {})
    seconds = time.monotonic() - started
    run.say(f"directions of {len(targets)} weights {how} in {seconds:.1f} s ({folder})")
    run.write_plan(directions_seconds=round(seconds, 2), directions_from=how, num_targets=len(targets))
    barrier()
    return directions


def share(directions: dict[str, Directions], shared: Mapping[str, str]) -> None:
    """Give targets the directions of those that read the same input.

    Args:
        directions: of all targets.
        shared: target -> the earlier target whose directions it has.
    """
    for name, owner in shared.items():
        directions[name] |= {part: tensor for part, tensor in directions[owner].items() if part in SHARED}


def by_spectrum(algo: OsftConfig, dtype: torch.dtype) -> Find:
    """Directions by singular values, for `subspace=weights`."""

    def find(target: Target, weight: torch.Tensor) -> Directions:
        matrices = oriented(weight, target.left)
        if target.num_free == target.size:
            return {}
        if not target.experts:
            return _of_matrix(matrices, target.num_free, algo, dtype)
        experts = [_of_matrix(matrix, target.num_free, algo, dtype) for matrix in matrices]
        stacked: Directions = {}
        for name in experts[0]:
            stacked[name] = torch.stack([directions[name] for directions in experts])
        return stacked

    return find


def _of_matrix(matrix: torch.Tensor, num_free: int, algo: OsftConfig, dtype: torch.dtype) -> Directions:
    if algo.parametrization == FACTORED:
        left, scale, right = decompose(matrix)
        k = matrix.shape[-1] - num_free
        factors = {"left": left[:, k:], "scale": scale[k:], "free": right[:, k:], "kept": left[:, :k]}
        return {name: factor.float().contiguous() for name, factor in factors.items()}
    space = split(matrix, num_free)
    assert space.free is not None
    assert space.protected is not None
    assert space.scale is not None
    return {"free": space.free.float(), "kept": space.protected.to(dtype), "scale": space.scale.float()}


def shapes_of(target: Target, algo: OsftConfig, session: Session) -> Shapes:
    """Shapes and dtypes of a target's directions, before they are computed."""
    if target.num_free == target.size and not algo.strength:
        return {}
    if is_wide(target, algo):
        rank, size = min(wide.RANK, target.size), target.size
        sizes = {"top": (size, rank), "energy": (rank,), "rest": (size,), "factor": (1,)}
        return {name: (shape, torch.float32) for name, shape in sizes.items()}
    batch, num_protected = target.shape[:-2], target.size - target.num_free
    shapes: Shapes = {"free": ((*batch, target.size, target.num_free), torch.float32)}
    if algo.subspace == "weights":
        dtype = torch.float32 if algo.parametrization == FACTORED else session.compute_dtype
        shapes["kept"] = ((*batch, target.rows, num_protected), dtype)
        shapes["scale"] = ((*batch, target.num_free), torch.float32)
    elif algo.strength:
        shapes["pull"] = ((target.num_free,), torch.float32)
    if algo.parametrization == FACTORED:
        shapes["left"] = ((target.rows, target.num_free), torch.float32)
    return shapes


def is_wide(target: Target, algo: OsftConfig) -> bool:
    """Whether a target is trained without directions, and its pull is approximate: see `hub_osft.wide`."""
    return bool(algo.strength) and target.num_free == target.size > wide.WIDE and not target.in_full


def check_finite(setup: Setup, model: PreTrainedModel, targets: Sequence[Target]) -> None:
    """Check all weights on every process, so that none waits for a process that has failed.

    Raises:
        ModelError: one is not finite.
    """
    for target in targets:
        if not twice(model, partial(_is_finite, target.weight(model))):
            raise ModelError(
                f"model.path={setup.cfg.model.path}: {target.name} has NaN or infinity, so it has no spectrum. "
                "Download the model again, or take an earlier checkpoint"
            )


def _is_finite(weight: torch.Tensor) -> bool:
    return bool(torch.isfinite(weight).all())


class _Search:
    """Computes this process's part of the directions, reports progress, and writes the results."""

    def __init__(
        self, setup: Setup, model: PreTrainedModel, targets: Sequence[Target], find: Find, shared: Mapping[str, str]
    ) -> None:
        self.setup, self.model, self.targets, self.find, self.shared = setup, model, targets, find, shared
        self.results: dict[str, Directions] = {}

    def run(self, numbers: Sequence[int], then: Callable[[int], None] = lambda number: None) -> None:
        """Compute the directions of the targets with these indices."""
        started = shown = time.monotonic()
        for done, number in enumerate(numbers, 1):
            target = self.targets[number]
            self.results[target.name] = twice(self.model, partial(self._found, target))
            then(number)
            now = time.monotonic()
            if now - shown > SECONDS_BETWEEN_LINES:
                shown = now
                left = (now - started) / done * (len(numbers) - done)
                self.setup.run.say(f"directions: {done} of {len(numbers)} weights, about {left:.0f} s left")

    def _found(self, target: Target) -> Directions:
        found = self.find(target, target.weight(self.model).detach().to(self.setup.session.device))
        if target.name in self.shared:
            found = {part: tensor for part, tensor in found.items() if part not in SHARED}
        return found

    def run_and_write(self, folder: Path) -> None:
        """Compute all directions, and write them while the next ones are computed."""
        with ThreadPoolExecutor(4) as writers:
            written: list[Future[None]] = []
            self.run(range(len(self.targets)), lambda number: written.append(writers.submit(self._write, folder, number)))
            for future in written:
                future.result()
        _write_index(folder, self.targets)

    def write(self, folder: Path) -> None:
        """Write all directions."""
        with ThreadPoolExecutor(4) as writers:
            for future in [writers.submit(self._write, folder, number) for number in range(len(self.targets))]:
                future.result()
        _write_index(folder, self.targets)

    def _write(self, folder: Path, number: int) -> None:
        tensors = {name: tensor.cpu() for name, tensor in self.results[self.targets[number].name].items()}
        try:
            save_file(tensors, folder / _file(number))
        except SafetensorError as error:
            raise OSError(str(error)) from None


def _find_all(
    setup: Setup,
    model: PreTrainedModel,
    targets: Sequence[Target],
    shapes: dict[str, Shapes],
    find: Find,
    folder: Path,
    shared: Mapping[str, str],
) -> dict[str, Directions]:
    session, search = setup.session, _Search(setup, model, targets, find, shared)
    check_finite(setup, model, targets)
    if session.group.world == 1:
        make_once(folder, search.run_and_write, _is_whole)
        # Another run may have written them first.
        return search.results or _load_all(session, targets, folder)
    owners = _owners(targets, session.group.world, shared)
    search.run([number for number, owner in enumerate(owners) if owner == session.group.rank])
    for target, owner in zip(targets, owners, strict=True):
        mine = search.results.setdefault(target.name, _empty(shapes[target.name], session.device))
        for name in sorted(mine):
            dist.broadcast(mine[name], owner)
    if session.group.is_main:
        make_once(folder, search.write, _is_whole)
    return search.results


def _load_all(session: Session, targets: Sequence[Target], folder: Path) -> dict[str, Directions]:
    """Read the directions on rank 0 and broadcast them: other machines may not have the folder.

    The stored directions may differ from the current options if a run is resumed with other options.
    """

    def load(number: int) -> Directions:
        return dict(load_file(folder / _file(number), device=str(session.device)))

    directions: dict[str, Directions] = {}
    if session.group.is_main:
        with ThreadPoolExecutor(NUM_THREADS) as readers:
            directions = dict(zip((target.name for target in targets), readers.map(load, range(len(targets))), strict=True))
    if session.group.world > 1:
        forms_on_main = {name: _form(tensors) for name, tensors in directions.items()}
        stored = json.loads(broadcast_text(json.dumps(forms_on_main)))
        for target in targets:
            forms = {name: (shape, getattr(torch, dtype)) for name, (shape, dtype) in stored[target.name].items()}
            tensors = directions.setdefault(target.name, _empty(forms, session.device))
            for name in sorted(tensors):
                dist.broadcast(tensors[name], 0)
    return directions


def _form(tensors: Directions) -> dict[str, tuple[list[int], str]]:
    """Shape and dtype of each tensor, for JSON."""
    return {name: (list(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()}


def _empty(shapes: Shapes, device: torch.device) -> Directions:
    return {name: torch.empty(shape, dtype=dtype, device=device) for name, (shape, dtype) in shapes.items()}


def _owners(targets: Sequence[Target], world: int, shared: Mapping[str, str]) -> list[int]:
    """Rank that computes each target: the most expensive first, each to the rank with the least load so far.

    Targets with the same directions go to the same rank, which finds them once.
    """
    costs = [t.size**2 * (10 * t.size + t.rows) * (t.shape[0] if t.experts else 1) for t in targets]
    loads, owners = [0] * world, [0] * len(targets)
    places = {target.name: number for number, target in enumerate(targets)}
    for number in sorted(range(len(targets)), key=lambda n: -costs[n]):
        if targets[number].name not in shared:
            owners[number] = loads.index(min(loads))
            loads[owners[number]] += costs[number]
    return [owners[places[shared.get(target.name, target.name)]] for target in targets]


def _key(folder: Path, shapes: dict[str, Shapes], algo: OsftConfig, session: Session) -> str:
    """Key in the cache: a hash of the weights and of everything else that the directions depend on."""
    key = hashlib.sha256(f"{RECIPE} {algo.parametrization} {session.compute_dtype}".encode())
    key.update(repr(sorted(shapes.items())).encode())
    key.update(weights_digest(folder).encode())
    return key.hexdigest()[:32]


def _disk_problem(folder: Path, shapes: dict[str, Shapes]) -> str:
    """A message if the disk has no room for the directions; otherwise empty."""
    needed = 0
    for tensors in shapes.values():
        for shape, dtype in tensors.values():
            needed += dtype.itemsize * torch.Size(shape).numel()
    existing = next(parent for parent in folder.parents if parent.exists())
    free = shutil.disk_usage(existing).free
    if needed <= free:
        return ""
    in_cache = cache_dir() in folder.parents
    where = f"the cache {cache_dir()}" if in_cache else f"output_dir={folder.parents[1]}"
    remedy = "Set HUB_CACHE=FOLDER on a larger disk, or type algo.cache=false" if in_cache else "Type output_dir=FOLDER"
    return f"{where} has {free / 2**30:.1f} GB free, the directions need {needed / 2**30:.1f} GB. {remedy}"


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"


def _write_index(folder: Path, targets: Sequence[Target]) -> None:
    sizes = {_file(number): (folder / _file(number)).stat().st_size for number in range(len(targets))}
    names = {_file(number): target.name for number, target in enumerate(targets)}
    (folder / INDEX).write_text(json.dumps({"sizes": sizes, "names": names}), encoding="utf-8")


def _is_whole(folder: Path) -> bool:
    try:
        sizes = json.loads((folder / INDEX).read_text(encoding="utf-8"))["sizes"]
        return all((folder / file).stat().st_size == size for file, size in sizes.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _link(folder: Path, store: Path) -> None:
    """Link the directions into the run folder; copy them only if it is on another disk."""

    def link(aside: Path) -> None:
        for file in folder.iterdir():
            try:
                os.link(file, aside / file.name)
            except OSError:
                shutil.copyfile(file, aside / file.name)

    make_once(store, link, _is_whole)
