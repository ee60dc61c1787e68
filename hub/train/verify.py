"""`python -m hub verify`: the proof, on the user's own model, data, algorithm and processes, that layout changes nothing.

`fit` hands over to `verify` instead of training. The steps are those of training (`train_step`, whole); what they are
compared with is not: plain calls of the model, one sample at a time. Weights stay as they are, nothing is saved.
"""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.distributed.tensor import DTensor

from hub.config import AUTO
from hub.data.prepare import Sample
from hub.errors import VerifyError
from hub.run import Outcome, write_json
from hub.train import batches, collate, step
from hub.train.distributed import barrier, max_over_ranks, sum_over_ranks
from hub.train.isolation import TOLERANCE as LEAK_TOLERANCE
from hub.train.layout import Layout, choose_layout
from hub.train.loss import causal_lm_loss
from hub.train.meters import peak_memory_gb
from hub.train.setup import Setup
from hub.train.strategy import full

MOST_SAMPLES = 32
MOST_TOKENS = {"cpu": 1024, "cuda": 4096}
"""Enough samples for several micro-batches on each process, few enough tokens to be done in a minute or so."""

FLOOR = {("cpu", torch.float32): 1e-6, ("cuda", torch.float32): 1e-5}
COARSE_FLOOR = 2e-2
"""Least tolerance of a gradient's relative difference; the second one for arithmetic in bfloat16."""

NOISE_FACTOR = 4.0
"""How much more than the model's own rounding noise may be seen: a layout differs in more sums than the noise's measure."""

MOST_NOISE = 1e-3
"""In float32, noise above this would hide mistakes."""

FLOAT32_LEAK = 1e-4
"""Largest share of a full leak that passes as rounding in float32."""

EXTRA_TOKENS = 7
"""Tokens behind each sample in the measure of noise: they can't be seen by those before, and change how sums are cut."""


@dataclass(frozen=True)
class Check:
    """One line of the table."""

    group: str
    name: str
    holds: bool | None
    """None: it could not be tried here; `measured` says why."""

    measured: str
    value: float | None = None


@dataclass
class Gradient:
    """What one step gave. The gradient itself is on rank 0 only."""

    difference: float
    """Norm of the difference from the reference over the norm of the reference; NaN on the other ranks."""

    loss: float
    num_loss_tokens: int
    """Loss tokens that went through the model, over all ranks and micro-batches."""

    same_on_ranks: bool
    layout: Layout
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)


class _OneByOne(Layout):
    """Every micro-batch is one sample."""

    def micro_batches(self, samples: Sequence[Sample], rank: int, world: int) -> list[collate.MicroBatch]:
        mine = [[sample] for sample in samples[rank::world]]
        mine += [[collate.weightless(samples[0])]] * (-(-len(samples) // world) - len(mine))
        return [collate.pack(part) if self.packed else collate.pad(part, self.pad_id) for part in mine]


class _Look(torch.optim.Optimizer):
    """Stands where the optimizer stands: looks at the gradients of a step and changes nothing."""

    def __init__(self, parameters: list[torch.nn.Parameter], look: Callable[[], None]) -> None:
        super().__init__(parameters, {})
        self._look = look

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        self._look()


def verify(setup: Setup, model: Any, loss: step.Loss = causal_lm_loss) -> Outcome:
    """Measure, print the table, write verify.json.

    Args:
        setup: config, run folder, processes, tokenizer, data.
        model: as the algorithm trains it, with `requires_grad` set.
        loss: the algorithm's loss, as it is given to `fit`.

    Returns:
        What was measured on, for result.json.

    Raises:
        VerifyError: something does not hold. On rank 0 only; the other ranks return.
    """
    run, session = setup.run, setup.session
    session.strategy.place(model)
    layout = choose_layout(setup, model)
    switched_off = _without_chance(model)
    proof = _Proof(setup, model, loss, layout)
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


class _Proof:
    """The reference and the checks. Each group of checks is a method; all ranks call it."""

    def __init__(self, setup: Setup, model: Any, loss: step.Loss, layout: Layout) -> None:
        self.setup, self.model, self.loss, self.layout = setup, model, loss, layout
        self.session, self.data = setup.session, setup.data
        self.rank, self.world = setup.session.group.rank, setup.session.group.world
        self.device, self.dtype = setup.session.device, setup.session.compute_dtype
        self.exact, self.dtype_name = self.dtype == torch.float32, str(self.dtype).removeprefix("torch.")
        self.config = model.config.get_text_config()
        self.trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        asked, num = setup.cfg.algo.effective_batch_size, len(self.data.train)
        self.batch_size = batches.auto_batch_size(num) if asked == AUTO else int(asked)
        self.samples = self._choose()
        self.num_loss_tokens = sum(int(sample.loss_mask[1:].sum()) for sample in self.samples)
        self.reference: dict[str, torch.Tensor] = {}
        self.reference_loss, _ = self._one_at_a_time(self.samples)
        self.reference = self._copy()
        self.noise_loss, self.noise = self._one_at_a_time(self.samples[::-1], EXTRA_TOKENS)
        self.tolerance = max(FLOOR.get((self.device.type, self.dtype), COARSE_FLOOR), NOISE_FACTOR * self.noise)

    def _choose(self) -> list[Sample]:
        """The samples of the first step, more where it has too few for four micro-batches a process, in its order."""
        order = [self.data.train[i] for i in batches.epoch_order(len(self.data.train), self.setup.cfg.algo.seed, 0)]
        least = min(4 * self.world, len(order))
        wanted = min(max(self.batch_size, least), max(MOST_SAMPLES, self.world))
        budget = MOST_TOKENS["cuda" if self.device.type == "cuda" else "cpu"]
        chosen: list[Sample] = []
        for sample in order[:wanted]:
            if sum(map(len, chosen)) + len(sample) <= budget:
                chosen.append(sample)
        rest = sorted((s for s in order if not any(s is c for c in chosen)), key=len)
        return chosen + rest[: max(0, least - len(chosen))]

    def _one_at_a_time(self, samples: Sequence[Sample], extra: int = 0) -> tuple[float, float]:
        """The gradient of the mean loss per loss token by plain calls of the model, left in the weights of rank 0.

        Returns:
            The mean loss, and the relative difference from the reference.
        """
        self.model.zero_grad(set_to_none=True)
        together = self.session.strategy.name == "fsdp"  # a layer's shares are gathered: all ranks must run it
        total = 0.0
        for sample in samples if together or self.rank == 0 else ():
            with step.autocast(self.session):
                loss_sum = self._loss_of(sample, extra)
            ((loss_sum / self.num_loss_tokens) * (1.0 if self.rank == 0 else 0.0)).backward()
            total += float(loss_sum.detach())
        return total / self.num_loss_tokens, self._difference()

    def _loss_of(self, sample: Sample, extra: int) -> torch.Tensor:
        """Sum of the cross entropies of one sample. An algorithm's own loss can't be known here: it is called."""
        if self.loss is not causal_lm_loss:
            return self.loss(self.model, collate.pack([sample]).to(self.device))
        ids = torch.from_numpy(sample.input_ids.astype(np.int64))
        room = max(0, min(extra, (self._most_positions() or 10**9) - len(ids)))
        row = torch.cat([ids, ids[:1].expand(room)])[None].to(self.device)
        logits = self.model(input_ids=row, use_cache=False).logits[0, : len(ids) - 1].float()
        counts = torch.from_numpy(sample.loss_mask[1:])
        return F.cross_entropy(
            logits[counts.to(logits.device)], ids[1:][counts].to(logits.device), reduction="sum"
        )

    def _most_positions(self) -> int | None:
        return getattr(self.config, "max_position_embeddings", None)

    def _gradients(self) -> Iterator[tuple[str, torch.Tensor | None]]:
        """Whole gradients. All ranks must ask."""
        for name, parameter in self.trained:
            yield name, None if parameter.grad is None else full(parameter.grad)

    def _copy(self) -> dict[str, torch.Tensor]:
        copied: dict[str, torch.Tensor] = {}
        for name, gradient in self._gradients():
            if self.rank == 0 and gradient is not None:
                copied[name] = gradient.detach().to("cpu", copy=True)
        return copied

    def _difference(self) -> float:
        """Norm of (gradients in the weights - reference) over the norm of the reference. Rank 0 only, else NaN."""
        error = size = 0.0
        for name, gradient in self._gradients():
            expected = self.reference.get(name)
            if expected is not None:
                size += _square(expected)
            if gradient is not None:
                error += _square(gradient if expected is None else gradient - expected.to(gradient.device))
            elif expected is not None:
                error += _square(expected)
        if self.rank != 0:
            return math.nan
        return math.sqrt(error / size) if size else (0.0 if error == 0 else math.inf)

    def _step(
        self, layout: Layout, samples: Sequence[Sample] = (), loss: step.Loss | None = None, keep: bool = False
    ) -> Gradient:
        """One step of training in a layout, up to where the optimizer would change the weights."""
        seen = 0
        called = loss or self.loss
        found = Gradient(math.nan, math.nan, 0, True, layout)

        def counting(model: Any, batch: collate.MicroBatch) -> torch.Tensor:
            nonlocal seen
            seen += len(batch.targets)
            return called(model, batch)

        def look() -> None:
            found.difference = self._difference()
            found.same_on_ranks = self._same_on_ranks()
            if keep:
                found.tensors = self._copy()

        optimizer = _Look([p for _, p in self.trained], look)
        outcome = step.train_step(
            self.session, self.model, optimizer, samples or self.samples, layout, None, counting
        )
        found.loss, found.layout = outcome.loss, outcome.layout
        found.num_loss_tokens = int(sum_over_ranks(float(seen))[0])
        return found

    def _same_on_ranks(self) -> bool:
        """Whether every rank holds rank 0's gradient, bit for bit. Shares of a gradient differ by their nature."""
        if not dist.is_initialized():
            return True
        same = True
        for _, parameter in self.trained:
            if parameter.grad is not None and not isinstance(parameter.grad, DTensor):
                of_main = parameter.grad.clone()
                dist.broadcast(of_main, 0)
                same = same and torch.equal(of_main, parameter.grad)
        return max_over_ranks(float(not same)) == 0.0

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
                        worst = max(worst, _rms(before - after) / scale)
        finally:
            self.model.train(was_training)
        words = f"{identical} of {changed} bit-equal"
        if identical < changed:
            words += f", greatest effect {worst:.1e} of a full leak (allowed {limit:.0e})"
        yield Check(group, f"one {form} sample is changed, the others' logits stay", worst <= limit, words, worst)
        apart = max(_rms(a - b) / scale for a, b in zip(plain, alone, strict=True))
        words = f"{apart:.1e} of a full leak (allowed {limit:.0e})"
        yield Check(group, f"{form} with others = alone", apart <= limit, words, apart)

    @torch.no_grad()
    def _logits(self, samples: Sequence[Sample]) -> list[torch.Tensor]:
        """Each sample's logits in one micro-batch of training's own making."""
        batch = (collate.pack(samples) if self.layout.packed else collate.pad(samples, self.layout.pad_id)).to(self.device)
        inputs: dict[str, Any] = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "use_cache": False}
        if batch.attention_mask is not None:
            inputs["attention_mask"] = batch.attention_mask
        with step.autocast(self.session):
            logits = self.model(**inputs).logits
        if batch.attention_mask is not None:
            return [row[: len(sample)].clone() for row, sample in zip(logits, samples, strict=True)]
        return [part.clone() for part in logits[0].split([len(sample) for sample in samples])]

    @torch.no_grad()
    def _full_leak(self, first: Sample, second: Sample, alone: torch.Tensor) -> float:
        """How much the second sample's logits change when it goes on from the first as one text."""
        ids = torch.from_numpy(np.concatenate([first.input_ids, second.input_ids]).astype(np.int64))
        ids = ids[-(self._most_positions() or len(ids)) :][None].to(self.device)
        with step.autocast(self.session):
            together = self.model(input_ids=ids, use_cache=False).logits[0, -len(second) :]
        return max(_rms(together - alone), 1e-30)

    def _other_text(self, sample: Sample) -> Sample:
        rng = np.random.default_rng(0)
        return replace(sample, input_ids=rng.integers(0, self.config.vocab_size, len(sample)).astype(np.int32))

    def layouts(self) -> Iterator[Check]:
        """The gradient of one step in every layout, against one sample at a time on one process."""
        group = "layout"
        if self.exact:
            words = f"{self.noise:.1e}, so a difference of {self.tolerance:.1e} is allowed"
            yield Check(group, "rounding noise of the reference", self.noise <= MOST_NOISE, words, self.noise)
        for name, layout, why_not in self._variants():
            if layout is None:
                yield Check(group, name, None, why_not)
                continue
            yield self._judge(group, name, layout, self._step(layout))

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
                layout = self._in_pieces(base, count)
                plural = "es" if count > 1 else ""
                why_not = f"{len(self.samples)} samples of these lengths can't be cut so"
                yield f"{count} micro-batch{plural} a process, {form}", layout, why_not
        values = {item.name: getattr(self.layout, item.name) for item in dataclasses.fields(self.layout)}
        yield "one sample a micro-batch", _OneByOne(**values), ""

    def _in_pieces(self, layout: Layout, count: int) -> Layout | None:
        """The layout with the least bound that gives `count` micro-batches on each process; None when none does."""
        lengths = [len(sample) for sample in self.samples]
        bound = max(max(lengths), -(-sum(lengths) // (self.world * count)))
        while True:
            found = len(batches.split(lengths, self.world, bound, layout.cost_ratio)[0])
            if found <= count:
                return replace(layout, max_tokens=bound) if found == count else None
            bound += max(1, bound // 50)

    def determinism(self) -> Iterator[Check]:
        """The same step twice."""
        first = self._step(self.layout, keep=True)
        reference, self.reference = self.reference, first.tensors
        again = self._step(self.layout, keep=True)
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
        yield Check("masks", "tokens with loss", 0 < num, f"{num:,} of {whole:,} ({num / whole:.0%})", num / whole)
        untrained = [sample.where for sample in self.data.train if not sample.loss_mask[1:].any()]
        words = f"none of {len(self.data.train)} samples is without" if not untrained else f"none in {untrained[0]}"
        yield Check("masks", "every sample has a token with loss", not untrained, words)
        yield Check("masks", "the end of a turn is trained", not template.startswith("Warning"), template)

    def mutants(self) -> Iterator[Check]:
        """Known mistakes, made on purpose: a proof that does not see them proves nothing."""
        yield self._mean_per_micro_batch()
        num = self.num_loss_tokens

        def shifted(model: Any, batch: collate.MicroBatch) -> torch.Tensor:
            return self.loss(model, batch) * (num / (num + 1))

        yield self._noticed("the count of loss tokens is off by one", self._step(self.layout, loss=shifted))
        yield self._leaking_attention()

    def _mean_per_micro_batch(self) -> Check:
        name = "the mean of each micro-batch, then the mean of these"
        layout = self._in_pieces(self.layout, 4) or self._in_pieces(self.layout, 2) or self.layout
        ranks = range(self.world)
        counts = [len(b.targets) for rank in ranks for b in layout.micro_batches(self.samples, rank, self.world)]
        if len(set(counts)) == 1:
            return Check("mistakes", name, None, "all micro-batches have as many loss tokens, so it is no mistake here")

        def mean(model: Any, batch: collate.MicroBatch) -> torch.Tensor:
            return self.loss(model, batch) / max(1, len(batch.targets)) * (self.num_loss_tokens / len(counts))

        return self._noticed(name, self._step(layout, loss=mean))

    def _leaking_attention(self) -> Check:
        name = "samples that see their neighbours"
        limit = self._most_positions() or 10**9
        ordered, merged = sorted(self.samples, key=len), []
        while len(ordered) > 1 and len(ordered[0]) + len(ordered[1]) <= limit:
            merged.append(_as_one(ordered.pop(0), ordered.pop(0)))
        if not merged:
            return Check("mistakes", name, None, "no two samples fit into the model as one text")
        together = [*merged, *ordered]
        longest = max(map(len, together))
        layout = replace(self.layout, max_tokens=max(longest, self.layout.max_tokens))
        return self._noticed(name, self._step(layout, together))

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
            "reference": "plain calls of the model" if self.loss is causal_lm_loss else "the algorithm's own loss",
            "reference_loss": self.reference_loss,
            "noise": self.noise,
            "tolerance": self.tolerance,
        }


def _without_chance(model: Any) -> bool:
    """Switch off dropout and router noise, which differ from layout to layout by their nature. True when there was any."""
    found = False
    for module in model.modules():
        for name, value in list(vars(module).items()):
            chance = name == "p" and "Dropout" in type(module).__name__
            if (chance or "drop" in name or "jitter" in name) and isinstance(value, float) and value > 0:
                setattr(module, name, 0.0)
                found = True
    return found


def _as_one(first: Sample, second: Sample) -> Sample:
    """Two samples as one text: the loss is on the same tokens, but the second sees the first."""
    mask = np.concatenate([first.loss_mask, second.loss_mask])
    mask[len(first)] = False
    return Sample(np.concatenate([first.input_ids, second.input_ids]), mask, first.where)


def _square(tensor: torch.Tensor) -> float:
    return float(torch.linalg.vector_norm(tensor.detach(), dtype=torch.float64)) ** 2


def _rms(difference: torch.Tensor) -> float:
    return math.sqrt(_square(difference) / max(1, difference.numel()))


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
