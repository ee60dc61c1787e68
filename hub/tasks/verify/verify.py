"""The task `verify`: measures on the user's own model, data, algorithm and processes that the layout changes nothing.

`gradients.py` has the steps and the reference. This module has what is compared and reported. Weights stay as they are, nothing
is saved.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from hub.data.prepare import Sample
from hub.data.samples.sample import samples_of
from hub.errors import VerifyError
from hub.parallel.group import barrier, max_over_ranks
from hub.run import Outcome
from hub.system.files import write_json
from hub.tasks.verify.gradients import Gradient, Measure, OneByOne, disable_dropout, rms
from hub.train.batch import collate
from hub.train.layout.isolation import TOLERANCE as LEAK_TOLERANCE
from hub.train.layout.layout import Layout, choose_layout
from hub.train.losses.causal_lm import causal_lm_loss
from hub.train.meters import peak_memory_gb
from hub.train.recipe import Recipe, check_units
from hub.train.setup.setup import Setup

MOST_NOISE = 1e-3
"""In float32, noise above this would hide mistakes."""

FLOAT32_LEAK = 1e-4
"""Largest share of a full leak that passes as rounding in float32."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    group: str
    name: str
    holds: bool | None
    """None: it could not be tried here; `measured` says why."""

    measured: str
    value: float | None = None


def verify(setup: Setup, recipe: Recipe) -> Outcome:
    """Measure, print the table, write verify.json.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        recipe: the model as the algorithm trains it, and its objective.

    Returns:
        What was measured on, for result.json.

    Raises:
        VerifyError: something does not hold. On rank 0 only; the other ranks return.
    """
    run, session, model = setup.run, setup.session, recipe.model
    check_units(setup, recipe.objective)
    session.strategy.place(model)
    layout, shrink = choose_layout(setup, model, recipe.loss, sum(p.numel() for p in model.parameters()))
    switched_off = disable_dropout(model)
    proof = _Proof(setup, model, recipe.criterion, layout, shrink)
    run.say(
        f"verifying in {proof.dtype_name} on {len(proof.samples)} samples, {sum(map(len, proof.samples))} tokens, "
        f"{proof.num_loss_tokens} with loss{', dropout off' if switched_off else ''}; nothing is trained or saved"
    )
    checks: list[Check] = []
    for found in (proof.isolation(), proof.layouts(), proof.determinism(), proof.masks(), proof.mutants()):
        checks += found
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
        raise VerifyError(f"does not hold: {failed[0].group}: {failed[0].name}: {failed[0].measured}{more}")
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
    """The checks. Each group of them is a method; all ranks call it."""

    def isolation(self) -> Iterator[Check]:
        """No sample sees another one in its micro-batch: measured on samples of the user's data."""
        group, limit = "isolation", FLOAT32_LEAK if self.exact else LEAK_TOLERANCE
        chosen = sorted(self.samples, key=len)[:6]
        if len(chosen) < 2:
            yield Check(group, "a sample is changed, the others stay", None, "there is only one sample")
            return
        form = "packed" if self.layout.packed else "padded"
        was_training = self.model.training
        self.model.eval()
        try:
            plain = self._logits(chosen)
            alone = [self._logits([sample])[0] for sample in chosen]
            scale = self._full_leak(chosen[0], chosen[1], alone[1])
            identical, changed, worst = 0, 0, 0.0
            for place in range(len(chosen)):
                others = self._logits([*chosen[:place], self._other_text(chosen[place]), *chosen[place + 1 :]])
                for number, (before, after) in enumerate(zip(plain, others, strict=True)):
                    if number != place:
                        changed += 1
                        identical += torch.equal(before, after)
                        worst = max(worst, rms(before - after) / scale)
        finally:
            self.model.train(was_training)
        words = f"{identical} of {changed} bit-equal"
        if identical < changed:
            words += f", greatest effect {worst:.1e} of a full leak (allowed {limit:.0e})"
        yield Check(group, f"one {form} sample is changed, the others' logits stay", worst <= limit, words, worst)
        apart = max(rms(a - b) / scale for a, b in zip(plain, alone, strict=True))
        words = f"{apart:.1e} of a full leak (allowed {limit:.0e})"
        yield Check(group, f"{form} with others = alone", apart <= limit, words, apart)

    def _logits(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Each sample's logits in one micro-batch of training's own making."""
        batch = collate.pack(samples) if self.layout.packed else collate.pad(samples, self.layout.pad_id)
        batch = batch.to(self.device)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        with torch.no_grad(), self.session.autocast():
            logits = self.model(**inputs).logits
        if batch.attention_mask is not None:
            return [row[: len(sample)].clone() for row, sample in zip(logits, samples, strict=True)]
        return [part.clone() for part in logits[0].split([len(sample) for sample in samples])]

    def _full_leak(self, first: Sample, second: Sample, alone: torch.Tensor) -> float:
        """How much the second sample's logits change when it goes on from the first as one text."""
        ids = torch.from_numpy(np.concatenate([first.input_ids, second.input_ids]).astype(np.int64))
        ids = ids[-(self.most_positions() or len(ids)) :][None].to(self.device)
        with torch.no_grad(), self.session.autocast():
            together = self.model(input_ids=ids, use_cache=False).logits[0, -len(second) :]
        return max(rms(together - alone), 1e-30)

    def _other_text(self, sample: Sample) -> Sample:
        rng = np.random.default_rng(0)
        return replace(sample, input_ids=rng.integers(0, self.config.vocab_size, len(sample)).astype(np.int32))

    def layouts(self) -> Iterator[Check]:
        """The gradient of one step in every layout, against one sample at a time on one process."""
        group = "layout"
        done: dict[Any, Gradient] = {}
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

    def _judge(self, group: str, name: str, asked: Layout, found: Gradient) -> Check:
        apart = abs(found.loss - self.reference_loss) / max(abs(self.reference_loss), 1e-30)
        words = f"{found.difference:.1e}, {found.num_loss_tokens} loss tokens"
        if found.layout.max_tokens < asked.max_tokens:
            words += f", memory ran out and it was done again in at most {found.layout.max_tokens} tokens"
        problems = []
        if found.num_loss_tokens != self.num_loss_tokens:
            problems.append(f"the data has {self.num_loss_tokens}")
        if not found.same_on_ranks:
            problems.append("the ranks hold different gradients")
        elif self.world > 1 and self.session.strategy.name != "fsdp":
            words += ", the same gradient on all ranks"
        if self.rank == 0 and not apart <= self.tolerance:
            problems.append(f"the loss is {found.loss:.6g}, not {self.reference_loss:.6g}")
        holds = not problems and (self.rank != 0 or found.difference <= self.tolerance)
        return Check(group, name, holds, "; ".join([words, *problems]), found.difference)

    def _variants(self) -> Iterator[tuple[str, Layout | None, str]]:
        yield "as this run would train", self.layout, ""
        forms = [("packed", True)] if self.layout.packed else []
        for form, packed in [*forms, ("padded", False)]:
            base = replace(self.layout, packed=packed)
            for count in (1, 2, 4):
                layout = self.in_pieces(base, count)
                plural = "es" if count > 1 else ""
                why_not = f"{len(self.samples)} samples of these lengths can't be cut so"
                yield f"{count} micro-batch{plural} a process, {form}", layout, why_not
        values = {item.name: getattr(self.layout, item.name) for item in dataclasses.fields(self.layout)}
        yield "one sample a micro-batch", OneByOne(**values), ""

    def determinism(self) -> Iterator[Check]:
        """The same step twice."""
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
            words += "; this device adds up in any order. algo.deterministic=true asks for the same bits"
        holds = not must and (self.rank != 0 or again.difference <= self.tolerance)
        yield Check("determinism", name, holds, words, again.difference)

    def masks(self) -> Iterator[Check]:
        """What is trained, as the data and the chat template have it."""
        counts, template = self.data.report["train"], str(self.data.report["template"])
        num, whole = counts["num_loss_tokens"], counts["num_tokens"]
        yield Check("masks", "tokens with loss", num > 0, f"{num:,} of {whole:,} ({num / whole:.0%})", num / whole)
        untrained = [sample.where for sample in samples_of(self.data.train) if not sample.loss_mask[1:].any()]
        words = f"none of {len(self.data.train)} samples is without" if not untrained else f"none in {untrained[0]}"
        yield Check("masks", "every sample has a token with loss", not untrained, words)
        yield Check("masks", "the end of a turn is trained", not template.startswith("Warning"), template)

    def mutants(self) -> Iterator[Check]:
        """Known mistakes, made on purpose: a proof that does not see them proves nothing."""
        yield self._mean_per_micro_batch()
        num = self.num_loss_tokens

        def shifted(model: Any, batch: collate.MicroBatch) -> torch.Tensor:
            return self.criterion.loss(model, batch) * (num / (num + 1))

        yield self._noticed("the count of loss tokens is off by one", self.take_step(self.layout, loss=shifted))
        yield self._leaking_attention()

    def _mean_per_micro_batch(self) -> Check:
        name = "the mean of each micro-batch, then the mean of these"
        layout = self.in_pieces(self.layout, 4) or self.in_pieces(self.layout, 2) or self.layout
        ranks = range(self.world)
        counts = [len(b.targets) for rank in ranks for b in layout.micro_batches(self.samples, rank, self.world)]
        if len(set(counts)) == 1:
            return Check("mistakes", name, None, "all micro-batches have as many loss tokens, so it is no mistake here")

        def mean(model: Any, batch: collate.MicroBatch) -> torch.Tensor:
            return self.criterion.loss(model, batch) / max(1, len(batch.targets)) * (self.num_loss_tokens / len(counts))

        return self._noticed(name, self.take_step(layout, loss=mean))

    def _leaking_attention(self) -> Check:
        name = "samples that see their neighbours"
        if not self.next_token:
            return Check("mistakes", name, None, "two samples as one text would be another unit")
        limit = self.most_positions() or 10**9
        ordered, merged = sorted(self.samples, key=len), []
        while len(ordered) > 1 and len(ordered[0]) + len(ordered[1]) <= limit:
            merged.append(_as_one(ordered.pop(0), ordered.pop(0)))
        if not merged:
            return Check("mistakes", name, None, "no two samples fit into the model as one text")
        together = [*merged, *ordered]
        longest = max(map(len, together))
        layout = replace(self.layout, max_tokens=max(longest, self.layout.max_tokens))
        return self._noticed(name, self.take_step(layout, together))

    def _noticed(self, name: str, found: Gradient) -> Check:
        noticed = self.rank != 0 or not found.difference <= self.tolerance
        if noticed:
            times = found.difference / self.tolerance
            words = f"would have been noticed: {found.difference:.1e}, {times:,.0f} times what is allowed"
            return Check("mistakes", name, True, words, found.difference)
        words = f"NOT noticed: {found.difference:.1e} (allowed {self.tolerance:.1e})"
        if not self.exact:
            return Check("mistakes", name, None, f"{words}: this type is too coarse", found.difference)
        return Check("mistakes", name, False, words, found.difference)

    def marked_text(self) -> str:
        """The shortest sample as text, what is trained between [[ and ]]."""
        sample = min(self.samples, key=len)
        text, start = "", 0
        for place in range(1, len(sample) + 1):
            if place == len(sample) or bool(sample.loss_mask[place]) != bool(sample.loss_mask[start]):
                piece = self.setup.tokenizer.decode(sample.input_ids[start:place].tolist(), skip_special_tokens=False)
                text += f"[[{piece}]]" if sample.loss_mask[start] else piece
                start = place
        return f"{sample.where}: {text}"

    def report(self) -> dict[str, Any]:
        """What the checks were made on, for verify.json."""
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
    """Two samples as one text: the loss is on the same tokens, but the second sees the first."""
    mask = np.concatenate([first.loss_mask, second.loss_mask])
    mask[len(first)] = False
    return Sample(np.concatenate([first.input_ids, second.input_ids]), mask, first.where)


def _json(check: Check) -> dict[str, Any]:
    values = dataclasses.asdict(check)
    value = check.value
    return values | {"value": str(value) if value is not None and not math.isfinite(value) else value}


def _table(checks: list[Check], proof: _Proof, text: str) -> Iterator[str]:
    """The lines for the screen."""
    words = {True: "ok", False: "FAIL", None: "-"}
    width = max(len(check.name) for check in checks)
    heads = {
        "layout": "relative difference of the gradient of one step from one sample at a time on one process "
        f"(allowed {proof.tolerance:.1e})",
        "mistakes": "made on purpose, to see that the proof can fail",
    }
    group = ""
    for check in checks:
        if check.group != group:
            group = check.group
            yield f"{group}: {heads[group]}" if group in heads else group
        yield f"  {words[check.holds]:<5}{check.name:<{width}}  {check.measured}"
    yield f"trained in one sample, between [[ and ]]: {text if len(text) <= 1200 else text[:1200] + ' ...'}"
    if not proof.exact:
        yield (
            f"in {proof.dtype_name} only the counts and the order are exact; gradients are compared within "
            f"{proof.tolerance:.1%}. Without model.dtype the proof runs in float32"
        )
    failed = sum(check.holds is False for check in checks)
    passed = sum(check.holds is True for check in checks)
    yield f"{passed} hold, {failed} do not, {len(checks) - passed - failed} could not be tried here"
