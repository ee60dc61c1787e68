"""The task `verify`: measures on the user's model, data, algorithm and processes that the layout does not change the gradient.

`gradients.py` has the steps and the reference. This module has the checks and the report. No weight changes, and no model is
saved.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from hub.data.prepare import Sample
from hub.data.samples.sample import samples_of
from hub.errors import VerifyError
from hub.models.structure import max_positions, without_dropout
from hub.parallel.group import barrier, max_over_ranks
from hub.result import Outcome
from hub.system.files import write_json
from hub.tasks.verify.gradients import Gradient, Measure, OneByOne
from hub.train.batch import collate
from hub.train.layout import leaks
from hub.train.layout.layout import Layout, choose_layout
from hub.train.losses.causal_lm import causal_lm_loss, model_inputs
from hub.train.meters import peak_memory_gb
from hub.train.recipe import Recipe, check_units
from hub.train.setup.setup import Setup

WIDTH = 40
"""Characters of a check's name, so that a line fits 80 columns. A longer name moves what follows it."""

MOST_NOISE = 1e-3
"""Maximum relative noise in float32. More would hide mistakes."""


@dataclass(frozen=True)
class Check:
    """One check: a line of the table."""

    group: str
    name: str
    holds: bool | None
    """Whether it passed. None: it does not apply here, for the reason in `measured`."""

    measured: str
    value: float | None = None


def verify(setup: Setup, recipe: Recipe) -> Outcome:
    """Make the checks, log the table, write verify.json.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        recipe: the model as the algorithm trains it, and its objective.

    Returns:
        The outcome for result.json. No step is trained.

    Raises:
        VerifyError: a check failed. On rank 0 only. The other ranks return.
    """
    run, session, model = setup.run, setup.session, recipe.model
    check_units(setup, recipe.objective)
    session.strategy.place(model)
    layout, shrink = choose_layout(setup, model, recipe.loss, sum(p.numel() for p in model.parameters()))
    had_dropout = without_dropout(model)
    proof = _Proof(setup, model, recipe.criterion, layout, shrink)
    run.say(
        f"verifying in {proof.dtype_name} on {len(proof.samples)} samples, {sum(map(len, proof.samples))} tokens, "
        f"{proof.num_loss_tokens} with loss{', dropout disabled' if had_dropout else ''}. Nothing is trained or saved"
    )
    checks: list[Check] = []
    for group in (proof.isolation(), proof.layouts(), proof.determinism(), proof.masks(), proof.mutants()):
        checks += group
    text = proof.marked_text()
    failed = [check for check in checks if check.holds is False]
    for line in _table(checks, proof, text):
        run.say(line)
    if run.is_main:
        file = run.path / "verify.json"
        write_json(file, proof.report() | {"holds": not failed, "checks": [_json(c) for c in checks], "sample": text})
        run.say(f"written to {file}")
    memory = max_over_ranks(peak_memory_gb(session.device))
    barrier()
    if failed and run.is_main:
        more = f" (and {len(failed) - 1} more)" if len(failed) > 1 else ""
        raise VerifyError(f"check failed: {failed[0].group}: {failed[0].name}: {failed[0].measured}{more}")
    return Outcome(
        num_steps=0,
        effective_batch_size=proof.batch_size,
        train_loss=None,
        eval_loss_before=None,
        eval_loss=None,
        tokens_per_second=None,
        peak_memory_gb=round(memory, 3),
        base_model_path=setup.base_path,
    )


class _Proof(Measure):
    """The checks. Each group is a method, which all ranks call."""

    def isolation(self) -> Iterator[Check]:
        """Check on samples of the user's data that no sample sees another one in its micro-batch."""
        group, form = "isolation", "packed" if self.layout.packed else "padded"
        chosen = sorted(self.samples, key=len)[:6]
        name = f"one {form} sample is changed, the others' log-probabilities stay"
        if len(chosen) < 2:
            yield Check(group, name, None, "there is only one sample")
            return
        was_training = self.model.training
        self.model.eval()
        try:
            alone = [self._alone(sample) for sample in chosen]
            others = {place: self._other_text(sample) for place, sample in enumerate(chosen)}
            effects = leaks.measure(self._row, chosen, alone, others, repeat=not self.exact)
        finally:
            self.model.train(was_training)
        leak = effects.changed(self.dtype, rows=not self.layout.packed)
        words = f"{effects.unchanged} of {effects.compared} bit-equal"
        if effects.unchanged < effects.compared:
            words += f", {leak}"
        yield Check(group, name, leak.passes, words, leak.measured)
        leak = effects.packed(self.dtype)
        yield Check(group, f"{form} with others = alone", leak.passes, str(leak), leak.measured)

    def _row(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Return the log-probabilities of each sample, from one micro-batch made as in training."""
        batch = collate.pack(samples) if self.layout.packed else collate.pad(samples, self.layout.pad_id)
        with torch.no_grad(), self.session.autocast():
            logits = self.model(**model_inputs(self.model, batch.to(self.device))).logits
        parts = logits[0].split(list(map(len, samples))) if self.layout.packed else logits
        return [leaks.log_probabilities(part, sample) for part, sample in zip(parts, samples, strict=True)]

    def _alone(self, sample: Sample) -> torch.Tensor:
        """Return the log-probabilities of one sample by a plain call of the model."""
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))[None].to(self.device)
        with torch.no_grad(), self.session.autocast():
            logits = self.model(input_ids=ids, use_cache=False).logits[0]
        return leaks.log_probabilities(logits, sample)

    def _other_text(self, sample: Sample) -> Sample:
        rng = np.random.default_rng(0)
        return replace(sample, input_ids=rng.integers(0, self.config.vocab_size, len(sample)).astype(np.int32))

    def layouts(self) -> Iterator[Check]:
        """Compare the gradient of one step in every layout with one sample at a time on one process."""
        group = "layout"
        done: dict[tuple[type[Layout], bool, str], Gradient] = {}
        if self.exact:
            words = f"{self.noise:.1e}, so a difference of {self.tolerance:.1e} is allowed"
            yield Check(group, "rounding noise of the reference", self.noise <= MOST_NOISE, words, self.noise)
        for name, layout, why_not in self._variants():
            if layout is None:
                yield Check(group, name, None, why_not)
                continue
            cut = self.cut(layout)
            if cut not in done:
                done[cut] = self.take_step(layout, keep=layout is self.layout)
            yield self._judge(group, name, layout, done[cut])
        self.as_trained = done[self.cut(self.layout)]

    def _judge(self, group: str, name: str, asked: Layout, gradient: Gradient) -> Check:
        apart = abs(gradient.loss - self.reference_loss) / max(abs(self.reference_loss), 1e-30)
        words = f"{gradient.difference:.1e}, {gradient.num_loss_tokens} loss tokens"
        if gradient.layout.max_tokens < asked.max_tokens:
            words += f", retried with at most {gradient.layout.max_tokens} tokens after it ran out of memory"
        problems = []
        if gradient.num_loss_tokens != self.num_loss_tokens:
            problems.append(f"the data has {self.num_loss_tokens}")
        if not gradient.same_on_ranks:
            problems.append("the ranks hold different gradients")
        elif self.world > 1 and self.session.strategy.name != "fsdp":
            words += ", the same gradient on all ranks"
        if self.rank == 0 and not apart <= self.tolerance:
            problems.append(f"the loss is {gradient.loss:.6g}, not {self.reference_loss:.6g}")
        holds = not problems and (self.rank != 0 or gradient.difference <= self.tolerance)
        return Check(group, name, holds, "; ".join([words, *problems]), gradient.difference)

    def _variants(self) -> Iterator[tuple[str, Layout | None, str]]:
        yield "as this run would train", self.layout, ""
        forms = [("packed", True)] if self.layout.packed else []
        for form, packed in [*forms, ("padded", False)]:
            base = replace(self.layout, packed=packed)
            for count in (1, 2, 4):
                layout = self.in_pieces(base, count)
                plural = "es" if count > 1 else ""
                why_not = f"{len(self.samples)} samples of these lengths can't be split this way"
                yield f"{count} micro-batch{plural} per process, {form}", layout, why_not
        values = {item.name: getattr(self.layout, item.name) for item in dataclasses.fields(self.layout)}
        yield "one sample per micro-batch", OneByOne(**values), ""

    def determinism(self) -> Iterator[Check]:
        """Check that the same step twice gives the same bits."""
        first = self.as_trained
        reference, self.reference = self.reference, first.tensors
        again = self.take_step(self.layout, keep=True)
        self.reference = reference
        same = first.tensors.keys() == again.tensors.keys() and all(
            torch.equal(first.tensors[name], again.tensors[name]) for name in first.tensors
        )
        name = "the same step twice gives the same bits"
        if same and first.loss == again.loss:
            yield Check("determinism", name, True, "bit-equal", 0.0)
            return
        must = self.device.type == "cpu" or self.setup.cfg.algo.deterministic
        words = f"relative difference {again.difference:.1e}"
        if not must:
            words += ". Sums on this device have no fixed order. For equal bits type algo.deterministic=true"
        holds = not must and (self.rank != 0 or again.difference <= self.tolerance)
        yield Check("determinism", name, holds, words, again.difference)

    def masks(self) -> Iterator[Check]:
        """Check which tokens have loss, from the data and the chat template."""
        counts, template = self.data.report["train"], str(self.data.report["template"])
        num, whole = counts["num_loss_tokens"], counts["num_tokens"]
        yield Check("masks", "tokens with loss", num > 0, f"{num:,} of {whole:,} ({num / whole:.0%})", num / whole)
        untrained = [sample.where for sample in samples_of(self.data.train) if not sample.loss_mask[1:].any()]
        words = f"{len(self.data.train)} samples" if not untrained else f"none in {untrained[0]}"
        yield Check("masks", "every sample has a token with loss", not untrained, words)
        yield Check("masks", "the end of a turn is trained", not template.startswith("Warning"), template)

    def mutants(self) -> Iterator[Check]:
        """Make known mistakes on purpose. Checks that do not detect them prove nothing."""
        yield self._mean_per_micro_batch()
        num = self.num_loss_tokens

        def shifted(model: torch.nn.Module, batch: collate.MicroBatch) -> torch.Tensor:
            return self.criterion.loss(model, batch) * (num / (num + 1))

        yield self._detected("the count of loss tokens is off by one", self.take_step(self.layout, loss=shifted))
        yield self._leaking_attention()

    def _mean_per_micro_batch(self) -> Check:
        name = "the mean of each micro-batch, then the mean of these"
        layout = self.in_pieces(self.layout, 4) or self.in_pieces(self.layout, 2) or self.layout
        ranks = range(self.world)
        counts = [len(b.targets) for rank in ranks for b in layout.micro_batches(self.samples, rank, self.world)]
        if len(set(counts)) == 1:
            return Check("mistakes", name, None, "no mistake here: all micro-batches have the same number of loss tokens")

        def mean(model: torch.nn.Module, batch: collate.MicroBatch) -> torch.Tensor:
            return self.criterion.loss(model, batch) / max(1, len(batch.targets)) * (self.num_loss_tokens / len(counts))

        return self._detected(name, self.take_step(layout, loss=mean))

    def _leaking_attention(self) -> Check:
        name = "samples that see their neighbors"
        if not self.criterion.objective.has_unit_weights:
            return Check("mistakes", name, None, "two samples joined to one text would be a different unit")
        limit = max_positions(self.config) or 10**9
        ordered, merged = sorted(self.samples, key=len), []
        while len(ordered) > 1 and len(ordered[0]) + len(ordered[1]) <= limit:
            merged.append(_as_one(ordered.pop(0), ordered.pop(0)))
        if not merged:
            return Check("mistakes", name, None, "no two samples joined to one text fit into the model")
        together = [*merged, *ordered]
        longest = max(map(len, together))
        layout = replace(self.layout, max_tokens=max(longest, self.layout.max_tokens))
        return self._detected(name, self.take_step(layout, together))

    def _detected(self, name: str, gradient: Gradient) -> Check:
        detected = self.rank != 0 or not gradient.difference <= self.tolerance
        if detected:
            times = gradient.difference / self.tolerance
            words = f"detected: {gradient.difference:.1e}, {times:,.0f} times the tolerance"
            return Check("mistakes", name, True, words, gradient.difference)
        words = f"NOT detected: {gradient.difference:.1e} (tolerance {self.tolerance:.1e})"
        if not self.exact:
            return Check("mistakes", name, None, f"{words}: {self.dtype_name} is too coarse", gradient.difference)
        return Check("mistakes", name, False, words, gradient.difference)

    def marked_text(self) -> str:
        """Return the shortest sample as text, with the trained part between [[ and ]]."""
        sample = min(self.samples, key=len)
        text, start = "", 0
        for place in range(1, len(sample) + 1):
            if place == len(sample) or bool(sample.loss_mask[place]) != bool(sample.loss_mask[start]):
                piece = str(self.setup.tokenizer.decode(sample.input_ids[start:place].tolist(), skip_special_tokens=False))
                text += f"[[{piece}]]" if sample.loss_mask[start] else piece
                start = place
        return f"{sample.where}: {text}"

    def report(self) -> dict[str, object]:
        """Return what the checks were made on, for verify.json."""
        return {
            "algorithm": type(self.setup.cfg.algo).__name__,
            "dtype": self.dtype_name,
            "device": self.device.type,
            "num_processes": self.world,
            "strategy": self.session.strategy.name,
            "num_samples": len(self.samples),
            "num_tokens": sum(map(len, self.samples)),
            "num_loss_tokens": self.num_loss_tokens,
            "trainable_parameters": sum(p.numel() for _, p in self.trained),
            "reference": "plain calls of the model" if self.criterion.loss is causal_lm_loss else "the algorithm's own loss",
            "reference_loss": self.reference_loss,
            "noise": self.noise,
            "tolerance": self.tolerance,
        }


def _as_one(first: Sample, second: Sample) -> Sample:
    """Join two samples to one text. The loss is on the same tokens, but the second sample sees the first."""
    mask = np.concatenate([first.loss_mask, second.loss_mask])
    mask[len(first)] = False
    return Sample(np.concatenate([first.input_ids, second.input_ids]), mask, first.where)


def _json(check: Check) -> dict[str, object]:
    values = dataclasses.asdict(check)
    value = check.value
    return values | {"value": str(value) if value is not None and not math.isfinite(value) else value}


def _table(checks: list[Check], proof: _Proof, text: str) -> Iterator[str]:
    """Yield the lines of the report."""
    words = {True: "ok", False: "FAIL", None: "-"}
    width = min(WIDTH, max(len(check.name) for check in checks))
    heads = {
        "layout": "relative difference of the gradient of one step from one sample at a time on one process "
        f"(allowed {proof.tolerance:.1e})",
        "mistakes": "made on purpose, to show that the checks detect them",
    }
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            yield f"{group}: {heads[group]}" if group in heads else group
        yield f"  {words[check.holds]:<5}{check.name:<{width}}  {check.measured}"
    yield f"one sample, the trained part between [[ and ]]: {(text if len(text) <= 1200 else text[:1200] + ' ...').rstrip()}"
    if not proof.exact:
        yield (
            f"in {proof.dtype_name} only the counts and the order are exact. Gradients are compared within "
            f"{proof.tolerance:.1%}. Without model.dtype the checks run in float32"
        )
    failed = sum(check.holds is False for check in checks)
    passed = sum(check.holds is True for check in checks)
    yield f"{passed} passed, {failed} failed, {len(checks) - passed - failed} do not apply here"
