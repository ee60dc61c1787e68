"""Runs that protect data: which outputs stay, which changes are penalized, what is saved for the next task. Tiny models."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from hub_osft.config import OsftConfig
from hub_osft.directions import Directions
from hub_osft.recipe import penalties_of, with_coordinates
from hub_osft.targets import find_targets
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from hub import DataError, HubError, Result, RunConfig
from hub.config.schema import ModelConfig
from hub.data.samples.sample import Group as Pair
from hub.data.samples.sample import Sample
from hub.parallel.group import Group
from hub.parallel.session import Session
from hub.protection import sources
from hub.protection.passes import same_inputs
from hub.protection.samples import read
from hub.protection.selfmade import CHATS, PUBLIC, TEXTS
from hub.protection.sensitivity import measure_sensitivity, pull_per_energy
from hub.testing import tiny_data_path, tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python", "cache")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(result: Result) -> list[float]:
    return [line["loss"] for line in result.metrics]


def sensitivity(model: Path) -> dict[str, float]:
    """What is saved of how much each weight matters to what is protected."""
    with safe_open(model / "protection.safetensors", "pt") as stored:
        return json.loads(stored.metadata()["sensitivity"])


def test_protected_inputs_are_answered_as_before_and_protection_goes_on_without_the_data(tmp_path, cache, run):
    protected = ["algo.protect_data=tiny:chats", "algo.protect_strength=0"]
    result = run(tmp_path, *protected, "algo.save_protection=true", "algo.unfreeze_rank_ratio=0.1")
    assert not (result.run_path / "protected_samples.safetensors").exists()  # sums, and no row
    assert result.eval_loss < result.eval_loss_before
    first, last = weights(cache["llama"]), weights(result.model_path)
    kept = load_file(result.model_path / "protection.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    change = last[f"{name}.weight"] - first[f"{name}.weight"]
    # All tokens of the samples are counted, plus those trained on; a layer's three projections share them.
    kept.pop("tokens_seen")
    assert len(kept) == 8
    assert f"{name.replace('q_proj', 'k_proj')}" not in kept
    random = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    covariance = kept[name].double()

    def answer(delta: torch.Tensor) -> float:
        return float((delta.double() @ covariance @ delta.double().mT).trace())

    assert answer(change) < 0.02 * answer(change @ random)
    again = run(tmp_path, "algo.protect_strength=0", f"model.path={result.model_path}")  # finds them beside the model
    more = load_file(again.model_path / "protection.safetensors")
    assert all(more[key].trace() > kept[key].trace() for key in kept)
    before, after = (sensitivity(one.model_path) for one in (result, again))
    assert len(before) == 14
    assert all(after[name] > before[name] > 0 for name in before)


@pytest.mark.parametrize("subspace", ["weights", "activations"])
def test_adaptive_keeps_more_where_a_layer_changes_its_input_less(tmp_path, subspace, run):
    options = [f"algo.subspace={subspace}", "algo.protect_data=tiny:chats", "algo.max_keep=0.6", "algo.max_steps=2"]
    result = run(tmp_path, "algo.rank_policy=adaptive", *options)
    plan = json.loads((result.run_path / "plan.json").read_text())
    cosines, kept, free = plan["cosine_of_layers"], plan["kept_share_of_layers"], plan["directions_free_of"]
    mean = sum(cosines.values()) / len(cosines)
    assert len(cosines) == 2
    for layer, cosine in cosines.items():
        assert kept[layer] == pytest.approx(min(1.0, 0.1 + cosine / mean * 0.5))
        assert free[f"{layer}.mlp.up_proj"] == pytest.approx((64 - int(kept[layer] * 64)) / 64)


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_stronger_the_protection_the_nearer_stay_the_answers(tmp_path, beside_few_words, tied, capsys, run):
    folder, options = beside_few_words(tied)
    protected = protected_tokens(folder, options)

    def answers(model: Path) -> torch.Tensor:
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(model)(protected).logits

    first, moved = answers(folder), []
    for strength in (0, 10, 1000):
        result = run(tmp_path, *options, "algo.unfreeze_rank_ratio=1.0", f"algo.protect_strength={strength}")
        assert result.eval_loss < result.eval_loss_before - 0.2
        moved.append(float((answers(result.model_path) - first).norm() / first.norm()))
    assert moved[1] < 0.5 * moved[0]
    assert moved[2] < 0.5 * moved[1]
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "each pulled toward the base weights by how much the protected data depends on it (algo.protect_strength=1000)" in said
    )


@pytest.mark.slow
def test_wide_inputs_are_protected_without_their_directions(tmp_path, beside_few_words, monkeypatch, run):
    folder, options = beside_few_words(False)
    protected = protected_tokens(folder, options)
    moved: list[float] = []

    def answers(model: Path) -> torch.Tensor:
        with torch.no_grad():
            return AutoModelForCausalLM.from_pretrained(model)(protected).logits

    for width, strength in ((1000, 1000), (32, 1000), (32, 0)):
        monkeypatch.setattr("hub_osft.wide.WIDE", width)
        monkeypatch.setattr("hub_osft.wide.RANK", 12)
        result = run(tmp_path, *options, "algo.unfreeze_rank_ratio=1.0", f"algo.protect_strength={strength}")
        assert result.eval_loss < result.eval_loss_before - 0.2
        moved.append(float((answers(result.model_path) - answers(folder)).norm()))
    # The few protected tokens are in the whole covariance, and nearly all of them in 12 directions and a diagonal.
    assert moved[0] < moved[1] < 0.02 * moved[2]


def test_weights_that_matter_more_have_a_larger_penalty(tmp_path, monkeypatch, run):
    """Add noise to one weight at a time. Its penalty is in proportion to how far that moves the outputs (Kullback-Leibler)."""
    means: list[float] = []

    def recorded(directions: Directions, algo: OsftConfig) -> torch.Tensor | None:
        penalties = penalties_of(directions, algo)
        means.append(float(penalties.mean()))
        return penalties

    result = run(tmp_path, "algo.protect_data=tiny:chats", "algo.protect_strength=10")
    monkeypatch.setattr("hub_osft.recipe.penalties_of", recorded)
    trained = run(tmp_path, "algo.protect_data=tiny:chats", "algo.protect_strength=10", "algo.protect_from=none",
                  f"model.path={result.model_path}", "algo.max_steps=1")  # fmt: skip
    plan = json.loads((trained.run_path / "plan.json").read_text())
    sensitivity = plan["sensitivity_of_weights"]
    assert means == pytest.approx([10 / plan["size_of_weights"] * value for value in sensitivity.values()], rel=1e-2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(result.model_path), AutoTokenizer.from_pretrained(result.model_path)
    chats = [json.loads(line)["messages"] for line in tiny_data_path().read_text().splitlines()[:16]]
    rows = [tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")["input_ids"] for chat in chats]

    @torch.no_grad()
    def said() -> list[torch.Tensor]:
        return [model(row).logits[0].double().log_softmax(-1) for row in rows]

    first, moved, dice = said(), {}, torch.Generator().manual_seed(0)
    for name in sensitivity:
        weight = model.get_submodule(name).weight.data
        plain, total = weight.clone(), 0.0
        for _ in range(4):
            weight.add_(3e-3 * torch.randn(weight.shape, generator=dice))
            total += sum(float((one.exp() * (one - other)).sum()) for one, other in zip(first, said(), strict=True))
            weight.copy_(plain)
        # Of each weight's rows and columns alike: the product is that of one output and one direction.
        moved[name] = total / weight.numel()
    both = torch.tensor([[sensitivity[name], moved[name]] for name in sensitivity]).log()
    assert both[:, 0].max() - both[:, 0].min() > 2
    assert torch.corrcoef(both.T)[0, 1] > 0.8


@pytest.mark.slow
def test_passes_over_data_to_protect_begin_anew_in_fewer_tokens_when_memory_runs_out(tmp_path, monkeypatch, run, capsys):
    options = ["algo.protect_data=tiny:chats", "algo.save_protection=true", "algo.max_steps=1", "algo.protect_strength=0"]
    whole = load_file(run(tmp_path / "whole", *options).model_path / "protection.safetensors")
    real = LlamaForCausalLM.forward

    def limited(self, input_ids, **named):
        if input_ids.numel() > 400 and not self.training:
            raise torch.OutOfMemoryError("no room")
        return real(self, input_ids=input_ids, **named)

    monkeypatch.setattr(LlamaForCausalLM, "forward", limited)
    narrow = load_file(run(tmp_path / "narrow", *options).model_path / "protection.safetensors")
    assert "out of memory: the data to protect is run in passes of at most 256 tokens" in capsys.readouterr().out
    # The training data is added after a step, whose directions rounding may turn a little.
    apart = [float((narrow[name].double() - whole[name].double()).norm() / whole[name].double().norm()) for name in whole]
    assert max(apart) < 0.02


def test_what_a_weight_matters_is_asked_where_tokens_count(tmp_path, monkeypatch, run):
    """The beginning of a sample need not have any: here it is the question."""
    monkeypatch.setattr("hub.protection.sensitivity.PASS_TOKENS", 12)
    options = ["algo.protect_data=tiny:chats", "algo.protect_strength=10", "algo.max_steps=1"]
    result = run(tmp_path, *options)
    assert all(json.loads((result.run_path / "plan.json").read_text())["sensitivity_of_weights"].values())
    monkeypatch.setattr("hub_osft.protect.measure_sensitivity", lambda s, m, names, d: dict.fromkeys(names, 0.0))
    with pytest.raises(HubError, match=r"algo\.protect_strength=10 protects nothing: no weight matters to what the data"):
        run(tmp_path, *options)


def test_what_a_weight_matters_is_scaled_from_the_tokens_measured_to_all(monkeypatch, cache):
    model = AutoModelForCausalLM.from_pretrained(cache["llama"])
    targets = [target.name for target in find_targets(model, OsftConfig())]
    session = Session(Group(0, 1, 0, torch.device("cpu")), Accelerator(cpu=True), torch.float32)
    setup = SimpleNamespace(session=session, cfg=SimpleNamespace(algo=OsftConfig(), model=None), run=SimpleNamespace(say=print))
    one = Sample(np.arange(5, 25, dtype=np.int32), np.arange(20) > 3, "it.jsonl:1")
    alone = measure_sensitivity(setup, model, targets, [one])
    monkeypatch.setattr("hub.protection.sensitivity.MAX_TOKENS", 20)
    again = measure_sensitivity(setup, model, targets, [one] * 4)  # of which one is measured
    assert again == pytest.approx({name: 4 * value for name, value in alone.items()})
    assert min(alone.values()) > 0


@pytest.mark.slow
@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_run_that_began_without_a_strength_goes_on_without_one(tmp_path, monkeypatch, ratio, run, run_and_stop):
    options = ["algo.protect_data=tiny:chats", f"algo.unfreeze_rank_ratio={ratio}"]
    run_and_stop(tmp_path, *options, "algo.protect_strength=0")
    with pytest.raises(HubError, match=r"algo\.protect_strength=30: the run to resume was started without it"):
        run(tmp_path, *options, "algo.protect_strength=30", "resume=latest", "resume_with_changes=true")


def test_data_to_protect_with_several_samples_a_row_is_refused(monkeypatch, cache):
    def pairs(*_):
        sample = Sample(np.arange(4, dtype=np.int32), np.ones(4, bool), "pairs.jsonl:1")
        pair = Pair((replace(sample, role="chosen"), replace(sample, role="rejected")), sample.where, "pair")
        return SimpleNamespace(train=[pair])

    monkeypatch.setattr(sources, "prepare", pairs)
    cfg = RunConfig(algo=OsftConfig(subspace="activations", protect_data="pairs.jsonl"), model=ModelConfig(path="m"))
    setup = SimpleNamespace(cfg=cfg, base_path=cache["llama"], tokenizer=None, algorithm="osft")
    with pytest.raises(
        DataError, match=r"data\.format=pair gives 2 samples a row \(chosen, rejected\); algo=osft trains on one"
    ):
        sources._read(setup, sources.Wanted(["pairs.jsonl"], 4, None, ""))


def test_a_run_without_data_protects_what_the_model_says_and_the_next_run_also_what_was_learned(tmp_path, capsys, run):
    first = run(tmp_path, "algo.max_steps=2", "algo.seed=3")
    said = " ".join(capsys.readouterr().out.split())
    assert "to protect what the model can do: " in said
    file = first.run_path / "protected_samples.safetensors"
    groups = read(file, "", 512)
    made, learned = list(groups.values())[:3], groups[f"learned in {first.run_path.name}"]
    assert [*groups][:3] == [CHATS, TEXTS, PUBLIC]
    assert all(made)
    assert len(learned) == 115
    tokenizer = AutoTokenizer.from_pretrained(first.model_path)
    for sample in groups[CHATS]:
        asked = tokenizer.decode(sample.input_ids[: int(sample.loss_mask.argmax())])
        assert asked.startswith("<|im_start|>user\n")
        assert asked.endswith("<|im_end|>\n<|im_start|>assistant\n")
    second = run(tmp_path, "algo.max_steps=2", f"model.path={first.run_path}")
    said = " ".join(capsys.readouterr().out.split())
    assert "to protect what the model can do" not in said
    assert f"115 learned in {first.run_path.name}" in said
    after = read(second.run_path / "protected_samples.safetensors", "", 512)
    assert [*after] == [*groups, f"learned in {second.run_path.name}"]
    for name, group in groups.items():
        for one, other in zip(group, after[name], strict=True):
            assert (one.input_ids == other.input_ids).all()
            assert (one.loss_mask == other.loss_mask).all()
    run(tmp_path, "algo.max_steps=1", "algo.seed=3", "evaluate.retention=auto")
    said = " ".join(capsys.readouterr().out.split())
    assert "to protect what the model can do" not in said  # from the cache
    assert f"{len(groups[TEXTS])} texts that the model made" in said
    assert "public text" not in said  # it is measured on
    file.write_bytes(file.read_bytes()[:-9])
    with pytest.raises(HubError, match=r"is damaged\. Type algo\.protect_from=none, and algo\.protect_data=FILE"):
        run(tmp_path, f"model.path={first.run_path}")


def test_layers_with_one_input_have_their_directions_once_and_they_are_those_found_alone(tmp_path, monkeypatch, cache, run):
    kept: dict[str, Directions] = {}

    def recorded(model, algo, targets, directions, *rest):
        kept.update({name: dict(one) for name, one in directions.items()})
        return with_coordinates(model, algo, targets, directions, *rest)

    monkeypatch.setattr("hub_osft.recipe.with_coordinates", recorded)
    options = ["algo.protect_data=tiny:chats", "algo.max_steps=1"]
    result = run(tmp_path, *options, "algo.save_every_steps=1")
    model = AutoModelForCausalLM.from_pretrained(cache["llama"])
    samples = next(iter(read(result.run_path / "protected_samples.safetensors", "", 512).values()))
    sums: dict[str, torch.Tensor] = {}

    def watch(name):
        def hook(module, inputs):
            sums[name] = sums.get(name, 0) + inputs[0][0].double().mT @ inputs[0][0].double()

        return hook

    handles = [model.get_submodule(name).register_forward_pre_hook(watch(name)) for name in kept]
    with torch.no_grad():
        for sample in samples:
            model(input_ids=torch.from_numpy(sample.input_ids.astype("int64"))[None])
    for handle in handles:
        handle.remove()
    assert len({id(one["free"]) for one in kept.values()}) == 8
    for name, one in kept.items():
        q, pull = one["free"].double(), one["pull"].double()
        energies = (q.mT @ sums[name] @ q).diagonal()
        values = torch.linalg.eigvalsh(sums[name])
        torch.testing.assert_close(energies, values, rtol=1e-3, atol=1e-6 * float(values[-1]))
        torch.testing.assert_close(pull / pull.sum(), values / values.sum(), rtol=1e-3, atol=1e-6)
    layer = "model.layers.0.self_attn"
    assert kept[f"{layer}.q_proj"]["free"] is kept[f"{layer}.v_proj"]["free"]
    assert same_inputs(model.to("meta"), [target.name for target in find_targets(model, OsftConfig())]) == {
        f"model.layers.{n}.{name}": f"model.layers.{n}.{owner}"
        for n in (0, 1)
        for name, owner in (("self_attn.k_proj", "self_attn.q_proj"), ("self_attn.v_proj", "self_attn.q_proj"),
                            ("mlp.up_proj", "mlp.gate_proj"))
    }  # fmt: skip


def test_a_strength_has_no_unit_and_few_huge_channels_take_no_protection_from_the_others():
    generator = torch.Generator().manual_seed(0)
    diagonals = {name: torch.rand(64, generator=generator) for name in "abc"}
    sensitivity = {"a": 0.3, "b": 2.0, "c": 0.0}
    factors = pull_per_energy(sensitivity, diagonals, 0.1)
    assert factors["c"] == 0
    larger = pull_per_energy({name: 1e6 * value for name, value in sensitivity.items()}, diagonals, 0.1)
    more = pull_per_energy(sensitivity, {name: 50 * one for name, one in diagonals.items()}, 0.1)
    heavier = pull_per_energy(sensitivity, diagonals, 0.7)
    for name in "ab":
        assert larger[name] == pytest.approx(factors[name])  # of the loss
        assert 50 * more[name] == pytest.approx(factors[name])  # of the inputs, and of how much data there is
        assert 7 * heavier[name] == pytest.approx(factors[name])  # of the weights, as their learning rate
    alike = pull_per_energy({"a": 3.0}, {"a": torch.full((64,), 5.0)}, 0.1)
    assert alike["a"] == pytest.approx(1 / (5 * 0.1))  # a direction of mean energy: curvature 1
    diagonals["a"][3] = 3e3  # of a sum of 32
    assert pull_per_energy(sensitivity, diagonals, 0.1)["a"] > 0.4 * factors["a"]


@pytest.mark.slow
def test_protection_of_another_model_is_refused(tmp_path, run):
    result = run(tmp_path, "algo.protect_data=tiny:chats", "algo.save_protection=true",
                 "algo.target_patterns=attention", "algo.max_steps=1")  # fmt: skip
    with pytest.raises(HubError, match=r"it protects other layers; model\.layers\.0\.mlp\.down_proj is none of them"):
        run(tmp_path, f"algo.protect_from={result.model_path}")
    file = result.model_path / "protection.safetensors"
    with safe_open(file, "pt") as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    stored_whole = dict(tensors)
    for seen in ({"tokens_seen": tensors.pop("tokens_seen")[:100]}, {}):
        save_file(tensors | seen, file, metadata)
        with pytest.raises(HubError, match="it protects another vocabulary"):
            run(tmp_path, f"algo.protect_from={result.model_path}", "algo.target_patterns=attention")
    save_file(stored_whole, file, {"aliases": metadata["aliases"]})
    with pytest.raises(HubError, match=r"it does not say how much each weight matters, which algo\.protect_strength needs"):
        run(tmp_path, f"algo.protect_from={result.model_path}", "algo.protect_strength=30",
            "algo.target_patterns=attention")  # fmt: skip
    again = run(tmp_path, f"algo.protect_from={result.model_path}", "algo.save_protection=true", "algo.protect_strength=0",
                "algo.target_patterns=attention", "algo.max_steps=1")  # fmt: skip
    with safe_open(again.model_path / "protection.safetensors", "pt") as stored:
        assert "sensitivity" not in stored.metadata()  # it would be that of the new samples only


@pytest.fixture
def beside_few_words(tmp_path):
    """Options for training embeddings, while three words are protected; with a model whose output layer they are, or not."""
    chat = [{"role": "user", "content": "one two three"}, {"role": "assistant", "content": "four five six"}]
    file = tmp_path / "protect.jsonl"
    file.write_text("".join(json.dumps({"messages": chat}) + "\n" for _ in range(8)))

    def made(tied: bool) -> tuple[Path, list[str]]:
        folder = tmp_path / f"model-{tied}"
        shutil.copytree(tiny_model_path("llama"), folder)
        torch.manual_seed(0)
        config = AutoConfig.from_pretrained(folder, tie_word_embeddings=tied)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder)
        return folder, [f"model.path={folder}", f"algo.protect_data={file}",
                        "algo.train_embeddings=true", "algo.weight_decay=0.1", "algo.save_every_steps=3"]  # fmt: skip

    return made


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "strength"), [(True, 0), (False, 0), (True, 3000)])
def test_of_the_embeddings_only_tokens_learn_that_the_data_to_protect_never_has(
    tmp_path, beside_few_words, tied, strength, capsys, run
):
    folder, options = beside_few_words(tied)
    options.append(f"algo.protect_strength={strength}")
    result = run(tmp_path, *options, "algo.save_protection=true")
    first, last = weights(folder), weights(result.model_path)
    change = last["model.embed_tokens.weight"].double() - first["model.embed_tokens.weight"].double()
    moved = change.abs().amax(1) > 0
    num = json.loads((result.run_path / "plan.json").read_text())["embeddings_free"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"the embeddings of {num} tokens that the protected data does not have are trained, too" in said
    protected = protected_tokens(folder, options)
    assert 0 < int(moved.sum()) <= num < len(moved) / 2
    assert not moved[protected].any()
    stored = load_file(result.model_path / "protection.safetensors")
    assert stored["tokens_seen"][moved].all()  # learned now, so the next task's run protects them
    if tied:
        with torch.no_grad():
            hidden = AutoModelForCausalLM.from_pretrained(folder).model(protected).last_hidden_state[0].double()
        covariance = hidden.mT @ hidden  # of what the output layer reads
        random = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
        assert (change @ covariance @ change.mT).trace() < 0.01 * (change @ random @ covariance @ random.mT @ change.mT).trace()
    else:
        assert torch.equal(first["lm_head.weight"], last["lm_head.weight"])
    again = run(tmp_path, *options[2:], f"model.path={result.model_path}")
    assert "no embedding is trained: the protected data has every token of the new data" in " ".join(
        capsys.readouterr().out.split()
    )
    assert torch.equal(weights(again.model_path)["model.embed_tokens.weight"], last["model.embed_tokens.weight"])


@pytest.mark.slow
def test_what_a_model_made_of_itself_is_there_on_resume_and_the_same_on_two_processes(
    tmp_path, monkeypatch, run, run_and_stop, command
):
    options = ["algo.train_embeddings=true", "algo.save_every_steps=2"]
    whole = run(tmp_path, *options)
    run_and_stop(tmp_path, *options)
    shutil.rmtree(tmp_path / "cache" / "protected_samples")
    with monkeypatch.context() as patch:
        patch.setattr("hub.protection.sources.self_made", None)
        resumed = run(tmp_path, *options, "resume=latest")
    first, second = weights(whole.model_path), weights(resumed.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    for strategy in ("ddp", "fsdp"):
        two = command(tmp_path / strategy, *options, "launch.nproc_per_node=2", f"launch.strategy={strategy}")
        assert losses(two) == pytest.approx(losses(whole), rel=2e-5)


def protected_tokens(folder: Path, options: list[str]) -> torch.Tensor:
    """Of a protected sample, (1, n)."""
    rows = Path(next(word for word in options if "protect_data" in word).partition("=")[2]).read_text().splitlines()
    found = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        json.loads(rows[0])["messages"], return_dict=True, return_tensors="pt"
    )
    return found["input_ids"]


def test_of_a_stream_the_beginning_says_which_embeddings_learn(tmp_path, beside_few_words, capsys, run):
    _, options = beside_few_words(True)
    run(tmp_path, *options, "data.streaming=true", "data.eval_fraction=0", "algo.max_steps=1")
    assert "the first 128 samples of the stream decide which embeddings are trained" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.slow
@pytest.mark.parametrize("strength", [0, 30])
def test_embeddings_that_learn_in_part_resume_bit_for_bit_and_train_on_two_processes_as_on_one(
    tmp_path, beside_few_words, strength, run, run_and_stop, command
):
    folder, options = beside_few_words(True)
    options += [f"algo.protect_strength={strength}", "algo.save_protection=true"]
    whole = run(tmp_path, *options)
    run_and_stop(tmp_path, *options)
    resumed = run(tmp_path, *options, "resume=latest")
    first, second = weights(whole.model_path), weights(resumed.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    two = command(tmp_path / "fsdp", *options, "launch.nproc_per_node=2", "launch.strategy=fsdp")
    assert losses(two) == pytest.approx(losses(whole), rel=2e-5)
    shared, start = weights(two.model_path), weights(folder)
    moved = [(tensors["model.embed_tokens.weight"] != start["model.embed_tokens.weight"]).any(1) for tensors in (first, shared)]
    assert torch.equal(*moved)
    assert all((first[name] - shared[name]).norm() <= 1e-4 * first[name].norm() for name in first)
    assert sensitivity(two.model_path) == pytest.approx(sensitivity(whole.model_path), rel=0.05)
