"""OSFT on one page: load the model, find the free directions, train coordinates within them."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import PreTrainedModel

from hub import ConfigError, ModelError, Outcome, Run
from hub.models.load import trainable_in_float32
from hub.models.structure import outside_text
from hub.protection.passes import same_inputs
from hub.protection.pull import Pull
from hub.recipe import Recipe, Reparametrization, Setup
from hub.train.setup.layers import in_words
from hub_osft.config import ACTIVATIONS, ADAPTIVE, FACTORED, NEW_TOKENS, OFFLOAD_WHOLE, OsftConfig
from hub_osft.coordinates import FactoredReparametrization, FastReparametrization, Part
from hub_osft.directions import Directions, by_spectrum, find_directions, shapes_of, share
from hub_osft.embeddings import FreeRows, as_target, is_tied
from hub_osft.layers import OsftExperts, OsftFactored, OsftLinear, name_in_plain_model
from hub_osft.protect import Protection
from hub_osft.subspace import decompose, oriented, steps
from hub_osft.targets import (
    LINEAR,
    Target,
    asked_but_left_out,
    experts_left_out,
    find_targets,
    left_out_weights,
    trains_experts,
    with_protected,
    with_ratio,
)


def build(setup: Setup) -> Recipe:
    """Build the recipe: changes within the free directions train. The result is a dense model that transformers loads."""
    cfg, run, algo = setup.cfg, setup.run, setup.cfg.algo
    assert isinstance(algo, OsftConfig)
    if algo.offload_base and setup.session.strategy.shards_weights:
        raise ConfigError(OFFLOAD_WHOLE)
    model = setup.load_model(frozen=True)
    left_out = left_out_weights(setup, model, algo)
    targets = find_targets(model, algo, left_out)
    if missing := asked_but_left_out(algo, left_out):
        run.say(f"frozen, since OSFT can't train them: {in_words(missing.items())}")
    if cfg.model.has_new_tokens and not is_tied(model) and not algo.train_head:
        raise ConfigError(f"the output layer's rows of new tokens would stay frozen (algo.train_head=false). {NEW_TOKENS}")
    some_rows = algo.train_embeddings and algo.subspace == ACTIVATIONS and not (algo.train_head and is_tied(model))
    if some_rows and is_tied(model):
        targets.append(as_target(model))  # the output layer reads the embeddings: their directions count, too
    protection = Protection(setup, model, targets) if algo.needs_data else None
    if protection is not None and algo.rank_policy == ADAPTIVE:
        targets = with_protected(targets, protection.protected_fractions())
    else:
        targets = with_ratio(targets, algo.ratio)
    if protection is not None and algo.subspace == ACTIVATIONS:
        shared = protection.shared(targets)
        directions = find_directions(setup, model, targets, protection.directions, cached=False, shared=shared)
        protection.release()
    else:
        directions = find_directions(setup, model, targets, by_spectrum(algo, setup.session.compute_dtype), cached=True)
    embeddings = None
    if some_rows and protection is not None:
        of_embeddings = directions.pop(targets.pop().name) if is_tied(model) else {}
        penalties = penalties_of(of_embeddings, algo) if of_embeddings else None
        embeddings = FreeRows(model.get_input_embeddings(), protection.free_tokens(), of_embeddings.get("free"), penalties)
    set_trainable(model, algo, run, targets, embeddings)
    if embeddings is not None and cfg.data.streaming:
        run.say(f"the first {len(setup.data.train):,} samples of the stream decide which embeddings are trained")
    if embeddings is not None and not len(embeddings.rows):
        embeddings = None
    coordinates = with_coordinates(model, algo, targets, directions, setup.session.device, embeddings)
    del directions

    def save(trained: PreTrainedModel, folder: Path, weights: dict[str, torch.Tensor]) -> None:
        plain = {new: tensor for name, tensor in weights.items() if (new := name_in_plain_model(name))}
        setup.save_whole_model(trained, folder, plain)

    def finish(outcome: Outcome) -> None:
        if protection is not None and outcome.model_path is not None:
            protection.leave(outcome.model_path, outcome.stopped_by is None)
        if outcome.stopped_by is None and run.is_main:
            # A completed run can't be resumed, so nothing will read them again.
            shutil.rmtree(run.path / "directions", ignore_errors=True)

    return Recipe(model=model, save=save, reparametrization=coordinates, finish=finish)


def plan(setup: Setup) -> Recipe:
    """Build the recipe of a model without data, for `hub plan`: directions have their shapes and no numbers.

    With `rank_policy=adaptive` the data decides how many directions of each weight are free; here all have the same fraction.
    """
    algo = setup.cfg.algo
    assert isinstance(algo, OsftConfig)
    model = setup.load_model(frozen=True)
    targets = with_ratio(find_targets(model, algo, left_out_weights(setup, model, algo)), algo.ratio)
    if algo.rank_policy == ADAPTIVE:
        setup.run.say("algo.rank_policy=adaptive: as many directions are taken to be free in each weight")
    meta = torch.device("meta")
    directions = {
        target.name: {
            name: torch.empty(shape, dtype=dtype, device=meta)
            for name, (shape, dtype) in shapes_of(target, algo, setup.session).items()
        }
        for target in targets
    }
    if algo.subspace == ACTIVATIONS:
        share(directions, same_inputs(model, [target.name for target in targets]))
    set_trainable(model, algo, setup.run, targets)
    coordinates = with_coordinates(model, algo, targets, directions, meta)
    return Recipe(model=model, save=lambda *_: None, reparametrization=coordinates)


def set_trainable(
    model: PreTrainedModel, algo: OsftConfig, run: Run, targets: Sequence[Target], free_rows: FreeRows | None = None
) -> None:
    """Freeze everything but what the options name, and log it in one line."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    weights = {id(target.weight(model)) for target in targets} | {id(parameter) for parameter in outside_text(model)}
    groups: dict[str, list[torch.nn.Parameter]] = {
        "embeddings": list(embeddings.parameters()),
        "norms": [p for p in model.parameters() if p.ndim == 1 and id(p) not in weights],
        "head": [] if head is None else list(head.parameters()),
    }
    learning = [name for name in groups if getattr(algo, f"train_{name}")]
    num_rows = len(free_rows.rows) if free_rows is not None else 0
    if free_rows is not None and not num_rows:
        learning.remove("embeddings")
    for name in learning:
        for parameter in groups[name]:
            parameter.requires_grad_(True)
    trainable_in_float32(model)
    if is_tied(model) and {"embeddings", "head"} & set(learning):
        learning = sorted({*learning, "embeddings", "head"})
    still = [name for name in groups if name not in learning]
    free = sum(target.num_free for target in targets) / sum(target.size for target in targets)
    shown = f"{free:.1%} of the directions of {len(targets)} weights are free"
    if algo.strength:
        strength = f"algo.protect_strength={algo.strength:g}"
        shown += f", each pulled toward the base weights by how much the protected data depends on it ({strength})"
    if free_rows is not None:
        if num_rows:
            shown += f"; the embeddings of {num_rows:,} tokens that the protected data does not have are trained, too"
        else:
            shown += "; no embedding is trained: the protected data has every token of the new data"
        protected = {"embeddings", "head"} if is_tied(model) else {"embeddings"}
        learning = [name for name in learning if name not in protected]
        still = [name for name in still if name not in protected]
    if learning:
        shown += f"; {', '.join(learning)} are trained without protection"
    if still:
        options = " ".join(f"algo.train_{name}=true" for name in still)
        shown += f"; {', '.join(still)} are frozen (to train them type {options})"
    run.say(shown)
    left_out = experts_left_out(model, algo, targets)
    if left_out and not trains_experts(algo):
        form = "parametrization=factored" if algo.subspace == "weights" else "subspace=activations"
        run.say(
            f"the experts' weights are {len(left_out)} fused tensors, which algo.{form} can't train: they are frozen. "
            "To train them type algo.subspace=weights algo.parametrization=fast"
        )
    run.write_plan(
        directions_free=round(free, 4),
        experts_left_out=left_out,
        directions_free_of=({target.name: target.num_free / target.size for target in targets}),
        learning_unprotected=learning,
        embeddings_free=num_rows,
    )


def with_coordinates(
    model: PreTrainedModel,
    algo: OsftConfig,
    targets: Sequence[Target],
    directions_of: dict[str, Directions],
    device: torch.device,
    embeddings: FreeRows | None = None,
) -> Reparametrization:
    """Replace the targets by layers that train coordinates, which are on `device`."""
    if algo.parametrization == FACTORED:
        return _factored(model, targets, directions_of)
    parts = []
    for target in targets:
        directions = directions_of[target.name]
        free, corner = directions.get("free"), algo.constraint == "corner" and "free" in directions
        whole = free is None or corner
        if free is not None and not corner and "scale" in directions:
            free = free * steps(directions["scale"])[..., None, :]
        shape = (*target.shape[:-2], target.rows, target.size if whole else target.num_free)
        coordinates = torch.zeros(shape, dtype=torch.float32, device=device)
        q = None if whole else free
        parent, _, last = target.module.rpartition(".")
        holder, owner = model.get_submodule(target.module), model.get_submodule(parent)
        if target.experts:
            experts = holder if isinstance(holder, OsftExperts) else OsftExperts(holder)
            setattr(owner, last, experts)
            experts.add(target.parameter, coordinates, q, target.left)
            holder, trained = experts.osft_inner, getattr(experts, f"osft_coordinates_{target.parameter}")
        else:
            assert isinstance(holder, LINEAR)
            holder = OsftLinear(holder, coordinates, q, target.left, target.conv1d)
            setattr(owner, last, holder)
            trained = holder.osft_coordinates
        protected = directions.pop("kept", None)
        penalties = penalties_of(directions, algo)
        part = Part(holder, target.parameter, trained, free, protected, target.left, corner, protected is not None, penalties)
        if "top" in directions:
            scale = directions["factor"] * algo.strength
            part.wide = Pull(directions["top"], directions["energy"] * scale, directions["rest"] * scale)
        parts.append(part)
    return FastReparametrization(parts, embeddings, algo.offload_base)


def penalties_of(directions: Directions, algo: OsftConfig) -> torch.Tensor | None:
    """Return the penalty on a change along each direction, per unit of learning rate. None: no penalty along directions.

    It pulls the weights toward the base weights.

    Raises:
        ModelError: the directions are of a run that was started without a strength.
    """
    if not algo.strength or "top" in directions:
        return None
    if "pull" not in directions:
        raise ModelError(
            f"algo.protect_strength={algo.strength:g}: the run to resume was started without it. "
            "Type algo.protect_strength=0, or start a new run"
        )
    return directions["pull"] * algo.strength


def _factored(
    model: PreTrainedModel, targets: Sequence[Target], directions_of: dict[str, Directions]
) -> FactoredReparametrization:
    layers = []
    for target in targets:
        weight, directions = target.weight(model), directions_of[target.name]
        a = oriented(weight.detach(), target.left)
        if not directions:
            left, scale, right = decompose(a)
            directions = {"left": left, "scale": scale, "free": right, "kept": left[:, :0]}
            directions = {name: tensor.float().contiguous() for name, tensor in directions.items()}
        left, scale, free = directions["left"], directions["scale"], directions["free"]
        high = (a.to(left.device).double() - (left.double() * scale.double()) @ free.double().mT).float()
        # A copy: with a single direction the transpose would share the memory of Q.
        factors = (left, scale, free.mT.clone(memory_format=torch.contiguous_format))
        plain = model.get_submodule(target.module)
        assert isinstance(plain, LINEAR)
        layer = OsftFactored(plain, high, factors, target.left, target.conv1d)
        parent, _, last = target.module.rpartition(".")
        setattr(model.get_submodule(parent), last, layer)
        layers.append((layer, directions["kept"], free))
    return FactoredReparametrization(layers)
