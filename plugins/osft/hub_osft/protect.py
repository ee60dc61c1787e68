"""Data to protect: the input directions that it uses (subspace=activations), the layers that it needs (rank_policy=adaptive).

One forward pass over the data computes, for each target, the covariance X^T X of its inputs. A change Delta = Z Q^T, with Q the
directions of least covariance, hardly changes the layer's outputs on such inputs (gradient projection memory, arXiv 2103.09762;
Adam-NSCL, 2103.07113). With a strength, a few more passes measure how much each target matters
(`hub.protection.sensitivity`). The samples are those that are given, or those that an earlier run left, or else what the model
itself says (`hub.protection.selfmade`). A run leaves its samples for the next one, or, with `algo.save_protection`, only the
sums.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from hub import DataError, ModelError
from hub.data.samples.sample import Sample, samples_of
from hub.parallel.strategy import layer_classes
from hub.protection.covariances import InputSums, Sums, add_up
from hub.protection.files import PROTECTION, SAMPLES
from hub.protection.pull import low_rank_plus_diagonal
from hub.protection.sensitivity import geometric_mean, measure_sensitivity, pull_per_energy
from hub.protection.sources import Wanted, earlier_file, embedding_rows, learned, leave, report, samples_to_protect
from hub.train.setup.setup import Setup
from hub_osft import wide
from hub_osft.config import ADAPTIVE, WEIGHTS, OsftConfig
from hub_osft.directions import Directions, check_finite, is_wide
from hub_osft.targets import Target

SEEN = "tokens_seen"
"""Name of the tensor (vocabulary,), stored with the covariances, that marks the tokens in the data."""

LARGEST_IN_FLOAT64 = 8192
"""Largest input width whose covariance is decomposed in float64; a GPU takes ten times as long as in float32."""

INSTEAD = "Type algo.protect_from=none, and algo.protect_data=FILE with rows to keep"
"""What to type if what an earlier run left can't be used."""


class Protection:
    """What the data to protect needs of a model."""

    def __init__(self, setup: Setup, model: PreTrainedModel, targets: Sequence[Target]) -> None:
        """Read the data, and measure it on the model before training.

        Raises:
            DataError: a row can't be used.
            ModelError: what an earlier run left belongs to a model with other layers.
        """
        algo = setup.cfg.algo
        assert isinstance(algo, OsftConfig)
        self.setup, self.model, self.targets, self.algo = setup, model, targets, algo
        self.vocabulary = embedding_rows(model)
        self.earlier = None if algo.subspace == WEIGHTS else earlier_file(setup, algo.protect_from)
        """File that an earlier run left. None: there is no such run."""

        widest = max(target.size for target in targets)
        wanted = Wanted(algo.protect_files, algo.protect_samples, self.earlier, INSTEAD)
        self.groups = samples_to_protect(setup, model, wanted, widest)
        self.samples = [sample for group in self.groups.values() for sample in group]
        self.inputs = InputSums(target.name for target in targets)
        """The covariances of the targets' inputs."""

        self.cosines = _Cosines()
        self.sensitivity: dict[str, float] = {}
        """Target -> squared gradient of the loss with respect to its outputs, averaged over them, summed over the data."""

        self.knows_sensitivity = True
        """Whether `sensitivity` covers all protected data."""

        self.seen = torch.zeros(self.vocabulary, dtype=torch.bool)
        """Tokens that occur in the data."""
        self._last: tuple[str, torch.Tensor, torch.Tensor] | None = None
        besides = [f"the statistics of {self.earlier}"] if self.takes_statistics else []
        report(setup, self.groups, self.vocabulary, self.earlier, besides)
        check_finite(setup, model, targets)
        self._measure(self.samples)
        if algo.strength or self.saves_statistics:
            self._measure_sensitivity(self.samples)
        if self.earlier is not None and self.takes_statistics:
            self._add_earlier(self.earlier)
        self.pull_factors = self._pull_factors() if algo.strength else {}
        """Target -> the penalty on a change along a direction, per energy of the data along it, at strength 1."""

        self._found: dict[tuple[str, int], torch.Tensor] = {}
        self._wide: dict[str, Directions] = {}

    @property
    def takes_statistics(self) -> bool:
        """Whether an earlier run left sums, and no samples."""
        return self.earlier is not None and self.earlier.name == PROTECTION

    @property
    def saves_statistics(self) -> bool:
        """Whether this run leaves sums, and no samples: a later run could not get those of an earlier one otherwise."""
        return self.algo.save_protection or self.takes_statistics

    def directions(self, target: Target, weight: torch.Tensor) -> Directions:
        """The target's input directions that the data uses least, as columns.

        Returns:
            `free` (p, f), one tensor for all targets with the same input. With a strength also `pull` (f,): the penalty on a
            change along each direction at strength 1. Empty if all directions are free and there is no strength. Of a wide
            input the parts of `hub_osft.wide`.
        """
        if target.num_free == target.size and not self.algo.strength:
            return {}
        name = self.inputs.aliases[target.name]
        if is_wide(target, self.algo):
            if name not in self._wide:
                self._wide.clear()
                covariance = self.inputs.totals[name].to(weight.device)
                top, energy, rest = low_rank_plus_diagonal(covariance, min(wide.RANK, target.size))
                self._wide[name] = {"top": top.contiguous(), "energy": energy, "rest": rest}
            return {**self._wide[name], "factor": torch.tensor([self.pull_factors[target.name]], device=weight.device)}
        if self._last is None or self._last[0] != name:
            covariance = self.inputs.totals[name].to(weight.device)
            in_float64 = len(covariance) <= LARGEST_IN_FLOAT64
            values, vectors = torch.linalg.eigh(covariance.double() if in_float64 else covariance)
            self._last = (name, values, vectors)
            self._found.clear()
        if (name, target.num_free) not in self._found:
            vectors = self._last[2][:, : target.num_free]
            if vectors.dtype == torch.float32:
                vectors = torch.linalg.qr(vectors)[0]
            self._found[name, target.num_free] = vectors.float().contiguous()
        directions = {"free": self._found[name, target.num_free]}
        if self.algo.strength:
            energy = self._last[1].clamp(min=0)[: target.num_free]
            directions["pull"] = (energy * self.pull_factors[target.name]).float()
        return directions

    def shared(self, targets: Sequence[Target]) -> dict[str, str]:
        """Targets that have the directions of an earlier one, since both read the same input: name -> that one's name."""
        first: dict[tuple[str, int], str] = {}
        owners = {t.name: first.setdefault((self.inputs.aliases[t.name], t.num_free), t.name) for t in targets}
        return {name: owner for name, owner in owners.items() if name != owner}

    def release(self) -> None:
        """Forget the sums on the device, once directions are found. They stay in CPU memory if they will be saved."""
        self._last = None
        self._found.clear()
        self._wide.clear()
        self.inputs.totals = {name: total.cpu() for name, total in self.inputs.totals.items()} if self.saves_statistics else {}

    def free_tokens(self) -> torch.Tensor:
        """Tokens that occur in the new data but not in the protected data, ascending."""
        new = torch.zeros_like(self.seen)
        for sample in samples_of(self.setup.data.train):
            new[torch.from_numpy(sample.input_ids.astype("int64"))] = True
        return (new & ~self.seen).nonzero()[:, 0]

    def protected_fractions(self) -> dict[str, float]:
        """The fraction of protected directions of each target, by the paper's rule: min + I (max - min), at most 1.

        I is the importance of the target's decoder layer: the mean cosine of the layer's input and output over all tokens,
        divided by its mean over the layers. (A single matrix seldom has an input and an output of the same width.)

        Raises:
            ModelError: no decoder layer is found.
        """
        if not self.cosines.totals:
            raise ModelError(
                "algo.rank_policy=adaptive: the hub does not recognize this model's decoder layers. Type algo.rank_policy=fixed"
            )
        means = {name: float(total[0] / total[1]) for name, total in self.cosines.totals.items()}
        mean = sum(means.values()) / len(means)
        least, most = self.algo.min_keep, self.algo.max_keep
        layers = {name: min(1.0, max(0.0, least + value / mean * (most - least))) for name, value in means.items()}
        self.setup.run.say(f"layers protect {min(layers.values()):.0%} to {max(layers.values()):.0%} of their directions")
        self.setup.run.write_plan(kept_share_of_layers=layers, cosine_of_layers=means)

        def of(target: Target) -> float:
            return next((fraction for layer, fraction in layers.items() if target.name.startswith(f"{layer}.")), most)

        return {target.name: of(target) for target in self.targets}

    def leave(self, model: Path, is_over: bool) -> None:
        """Leave what this run protected and learned to the next: in its folder, or beside its model. All ranks must call it.

        Args:
            model: folder of the trained model.
            is_over: whether the run is completed. One that was stopped may be resumed, and needs its samples.
        """
        file = self.setup.run.path / SAMPLES
        if self.saves_statistics:
            self._save(model)
            if self.setup.session.group.is_main and is_over:
                file.unlink(missing_ok=True)
        elif self.setup.session.group.is_main:
            leave(self.setup, self.groups, self.algo.protect_samples, self.vocabulary)

    def _save(self, folder: Path) -> None:
        """Save the sums, with those of this run's samples on the trained model, in the folder of that."""
        chosen, before = learned(self.setup, self.algo.protect_samples), self.inputs.totals
        self.inputs.totals = {}
        self._measure(chosen)
        new = {name: total.cpu() for name, total in self.inputs.totals.items()}
        both = before.keys() & new.keys()
        self.inputs.totals = {**before, **new, **{name: before[name] + new[name] for name in both}}
        if self.knows_sensitivity:
            self._measure_sensitivity(chosen)
        if self.setup.session.group.is_main:
            tensors = {name: total.float().cpu().contiguous() for name, total in self.inputs.totals.items()} | {SEEN: self.seen}
            metadata = {"aliases": json.dumps(self.inputs.aliases)}
            if self.knows_sensitivity:
                metadata["sensitivity"] = json.dumps(self.sensitivity)
            try:
                save_file(tensors, folder / PROTECTION, metadata=metadata)
            except SafetensorError as error:
                raise ModelError(f"{folder / PROTECTION} can't be written ({error})") from None
            size = sum(t.nbytes for t in tensors.values()) / 2**30
            added = f"{len(chosen):,} training samples added"
            self.setup.run.say(
                f"protection of {len(self.inputs.totals)} inputs written, {added}: {folder / PROTECTION} ({size:.2f} GB)"
            )

    def _add_earlier(self, file: Path) -> None:
        """Add the protection that an earlier run saved."""
        with safe_open(file, "pt", device=str(self.setup.session.device)) as stored:
            metadata = stored.metadata() or {}
            aliases, sensitivity = (json.loads(metadata.get(name, "{}")) for name in ("aliases", "sensitivity"))
            missing = sorted({target.name for target in self.targets} - set(aliases))
            if missing:
                raise ModelError(
                    f"algo.protect_from={file.parent}: it protects other layers; {missing[0]} is none of them. "
                    "Type the same model.path family, algo.target_patterns and algo.train_embeddings as in that run, or "
                    "algo.protect_from=none"
                )
            seen = stored.get_tensor(SEEN).cpu() if SEEN in stored.keys() else None  # noqa: SIM118  # no mapping
            if seen is None or seen.shape != self.seen.shape:
                raise ModelError(
                    f"algo.protect_from={file.parent}: it protects another vocabulary. Type the model folder of a run with "
                    "algo.subspace=activations algo.save_protection=true on this model"
                )
            self.knows_sensitivity = all(target.name in sensitivity for target in self.targets)
            if self.algo.strength and not self.knows_sensitivity:
                raise ModelError(
                    f"algo.protect_from={file.parent}: it does not say how much each weight matters, which "
                    "algo.protect_strength needs. Type algo.protect_strength=0, or use algo.protect_data instead"
                )
            for name, total in sensitivity.items():
                self.sensitivity[name] = self.sensitivity.get(name, 0.0) + total
            self.seen |= seen
            self.inputs.aliases = self.inputs.aliases or {target.name: aliases[target.name] for target in self.targets}
            done: set[str] = set()
            for target in self.targets:
                name = self.inputs.aliases[target.name]
                if name in done:
                    continue
                earlier = stored.get_tensor(aliases[target.name])
                if earlier.shape != (target.size, target.size):
                    raise ModelError(f"algo.protect_from={file.parent}: {target.name} has another width there")
                self.inputs.totals[name] = self.inputs.totals[name] + earlier if name in self.inputs.totals else earlier
                done.add(name)

    def _measure(self, samples: Sequence[Sample]) -> None:
        """Run samples through the model, divided over the ranks, and add up statistics of its layers."""
        for sample in samples:
            self.seen[torch.from_numpy(sample.input_ids.astype("int64"))] = True
        adaptive = self.algo.rank_policy == ADAPTIVE
        inputs = self.algo.subspace == "activations"
        chosen = [one for one, used in ((self.inputs, inputs), (self.cosines, adaptive)) if used]
        add_up(self.setup, self.model, samples, chosen)

    def _measure_sensitivity(self, samples: Sequence[Sample]) -> None:
        names = [target.name for target in self.targets]
        for name, total in measure_sensitivity(self.setup, self.model, names, samples).items():
            self.sensitivity[name] = self.sensitivity.get(name, 0.0) + total

    def _pull_factors(self) -> dict[str, float]:
        diagonals = {target.name: self.inputs.totals[self.inputs.aliases[target.name]].diagonal() for target in self.targets}
        sizes = [target.weight(self.model).detach().float().square().mean().sqrt() for target in self.targets]
        size = geometric_mean(map(float, sizes))
        factors = pull_per_energy(self.sensitivity, diagonals, size)
        if not any(factors.values()):
            raise DataError(
                f"algo.protect_strength={self.algo.strength:g} protects nothing: no weight matters to what the data to "
                "protect says. Type algo.protect_data=FILE with samples that have loss tokens"
            )
        means = {name: factor * size * float(diagonals[name].mean()) for name, factor in factors.items()}
        self.setup.run.write_plan(
            sensitivity_of_weights={name: float(f"{value:.3g}") for name, value in means.items()},
            size_of_weights=float(f"{size:.4g}"),
        )
        return factors


class _Cosines(Sums):
    """The cosine of each decoder layer's input and output: its sum and the number of tokens."""

    def watch(self, model: PreTrainedModel, mask: Sequence[torch.Tensor]) -> list[RemovableHandle]:
        def watch(name: str) -> Callable[..., None]:
            def hook(
                module: torch.nn.Module,
                inputs: tuple[torch.Tensor, ...],
                named: dict[str, torch.Tensor],
                output: torch.Tensor | tuple[torch.Tensor, ...],
            ) -> None:
                x: torch.Tensor = inputs[0] if inputs else named["hidden_states"]
                y = output[0] if isinstance(output, tuple) else output
                cosine = F.cosine_similarity(x[mask[0]].double(), y[mask[0]].double(), dim=-1)
                number = torch.tensor(float(len(cosine)), dtype=torch.float64, device=x.device)
                self.add_(name, torch.stack([cosine.sum(), number]))

            return hook

        layers = layer_classes(model)
        return [
            module.register_forward_hook(watch(name), with_kwargs=True)
            for name, module in model.named_modules()
            if type(module).__name__ in layers
        ]
