"""Whole runs: what is learnt, where it may go, what is saved, and that it can be resumed, on tiny models."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hub_osft.config import OsftConfig
from hub_osft.directions import Directions, by_spectrum
from hub_osft.targets import find_targets, with_ratio
from hub_osft.train import pull_of, with_coordinates
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from hub import ConfigError, HubError, Interrupted, Result, compose
from hub.launch import launch
from hub.testing import tiny_data_path, tiny_model, tiny_model_path

pytestmark = pytest.mark.usefixtures("warm_python")

OPTIONS = ["model=tiny", "data=tiny", "model.dtype=float32", "algo.learning_rate=1e-2", "algo.max_steps=6",
           "algo.effective_batch_size=8", "data.eval_fraction=0.1"]  # fmt: skip


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of the test's own; the tiny models stay where they are."""
    found = {family: tiny_model_path(family) for family in ("llama",)}
    monkeypatch.setenv("HUB_CACHE", str(tmp_path / "cache"))
    return found


def run(tmp_path: Path, *overrides: str) -> Result:
    algo = [] if any(word.startswith("algo=") for word in overrides) else ["algo=osft"]
    return launch(compose(*algo, *OPTIONS, "launch=inline", f"output_dir={tmp_path / 'runs'}", *overrides))


def run_and_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *overrides: str) -> None:
    """A run that is told to stop after its third look for a signal."""
    from hub.train import loop

    seen = iter(range(1, 100))
    with monkeypatch.context() as patch:
        patch.setattr(loop, "stop_requested", lambda: signal.SIGTERM if next(seen) == 3 else None)
        with pytest.raises(Interrupted):
            run(tmp_path, *overrides)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def sensitivity(model: Path) -> dict[str, float]:
    """What is saved of how much each weight matters to what is protected."""
    with safe_open(model / "protection.safetensors", "pt") as stored:
        return json.loads(stored.metadata()["sensitivity"])


def losses(result: Result) -> list[float]:
    return [line["loss"] for line in result.metrics]


def test_with_everything_free_it_is_plain_fine_tuning(tmp_path):
    rest = ["algo.weight_decay=0.1", "algo.max_grad_norm=0.5"]
    plain = run(tmp_path, "algo=sft", *rest)
    free = [f"algo.train_{name}=true" for name in ("embeddings", "norms", "head")]
    osft = run(tmp_path, "algo.unfreeze_rank_ratio=1.0", *free, *rest)
    assert losses(osft) == pytest.approx(losses(plain), rel=1e-5)
    assert osft.eval_loss == pytest.approx(plain.eval_loss, rel=1e-5)


@pytest.mark.parametrize(
    "form",
    [[], ["algo.constraint=corner"], ["algo.parametrization=factored"], ["model.dtype=bfloat16", "algo.weight_decay=0.1"]],
)
def test_the_saved_model_loads_and_differs_from_the_first_in_free_directions_only(tmp_path, form, cache):
    result = run(tmp_path, *form)
    assert result.eval_loss < result.eval_loss_before - 0.2
    AutoModelForCausalLM.from_pretrained(result.model_path)
    first, last = weights(cache["llama"]), weights(result.model_path)
    assert first.keys() == last.keys()
    rounding = 2**-8 if "model.dtype=bfloat16" in form else 2**-22
    for name, before in first.items():
        before = before.to(last[name].dtype).double()
        change = last[name].double() - before
        if "proj" not in name:
            assert not change.any()
            continue
        u, _, v = torch.linalg.svd(before, full_matrices=False)
        kept = min(before.shape) * 3 // 4
        u, v = u[:, :kept], v[:kept].mT
        leak = [u.mT @ change @ v] if "algo.constraint=corner" in form else [u.mT @ change, change @ v]
        assert change.norm() > 1e-3
        assert all(part.norm() < 1e-5 * change.norm() + rounding * before.norm() for part in leak), name


def test_the_factors_of_a_single_free_direction_are_projected_onto_it_and_not_changed_otherwise(cache):
    model, algo = AutoModelForCausalLM.from_pretrained(cache["llama"]), OsftConfig(parametrization="factored")
    targets = with_ratio(find_targets(model, algo), 1 / 64)
    find = by_spectrum(algo, torch.float32)
    found = {target.name: find(target, target.weight(model).detach()) for target in targets}
    coordinates = with_coordinates(model, algo, targets, found, torch.device("cpu"))
    for layer, _, _ in coordinates.layers:
        right = layer.osft_right.detach().clone()
        layer.osft_right.data.mul_(0.5)
        for _ in range(2):
            coordinates.follow(None)
        torch.testing.assert_close(layer.osft_right.detach(), 0.5 * right)


@pytest.mark.parametrize("family", ["mixtral", "gpt2", "gpt_oss", "deepseek_v2"])
def test_experts_and_conv1d_train_and_the_saved_model_is_the_trained_one(tmp_path, family):
    result = run(tmp_path, f"model.path=tiny:{family}")
    plan = json.loads((result.run_path / "plan.json").read_text())
    again = run(tmp_path, f"model.path={result.model_path}", "algo.max_steps=1")
    assert again.eval_loss_before == pytest.approx(result.eval_loss, abs=1e-4)
    assert result.eval_loss < result.eval_loss_before - 0.1
    targets = plan["directions_free_of"]
    assert any("c_attn" in name for name in targets) if family == "gpt2" else any("experts." in name for name in targets)


@pytest.mark.parametrize("form", ["algo.subspace=activations", "algo.parametrization=factored"])
def test_experts_that_a_form_leaves_frozen_are_named(tmp_path, capsys, form):
    protected = ["algo.protect_data=tiny:chats"] if "activations" in form else []
    run(tmp_path, "model.path=tiny:mixtral", form, *protected, "algo.max_steps=1")
    said = f"the experts' weights lie in 4 fused tensors, which {form} can't train: they stay as they are"
    assert said in " ".join(capsys.readouterr().out.split())
    if protected:
        with pytest.raises(ConfigError, match=r"algo\.target_patterns=mlp: no matrix of this model trains so"):
            run(tmp_path, "model.path=tiny:mixtral", form, *protected, "algo.target_patterns=mlp")


def test_a_stopped_run_resumes_bit_for_bit_even_when_the_cache_is_gone(tmp_path, monkeypatch):
    options = ["algo.save_every_steps=2", "algo.weight_decay=0.1", "algo.train_norms=true"]
    whole = run(tmp_path, *options)
    run_and_stop(tmp_path, monkeypatch, *options)
    shutil.rmtree(tmp_path / "cache" / "osft")
    # The directions must be those of the run, whatever a new search would give.
    monkeypatch.setattr("hub_osft.subspace.torch.linalg.eigh", None)
    resumed = run(tmp_path, *options, "resume=latest")
    first, second = weights(whole.model_path), weights(resumed.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole) == losses(resumed)
    assert not (resumed.run_path / "directions").exists()


def command(folder: Path, *words: str) -> Result:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    line = [sys.executable, "-m", "hub", *words, "algo=osft", *OPTIONS, f"output_dir={folder}"]
    done = subprocess.run(line, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return Result.read(folder / "latest" / "result.json")


@pytest.mark.parametrize("processes", [1, 2])
def test_the_layout_changes_nothing(tmp_path, processes):
    assert command(tmp_path / "runs", "verify", f"launch.nproc_per_node={processes}").status == "verified"


def test_two_processes_with_whole_copies_and_with_shares_train_as_one(tmp_path):
    options = ["algo.weight_decay=0.1", "algo.train_norms=true", "algo.save_every_steps=3"]
    one = run(tmp_path, *options)
    for strategy in ("ddp", "fsdp"):
        two = command(tmp_path / strategy, *options, "launch.nproc_per_node=2", f"launch.strategy={strategy}")
        assert losses(two) == pytest.approx(losses(one), rel=2e-5)
        first, second = weights(one.model_path), weights(two.model_path)
        assert all((first[name] - second[name]).norm() <= 1e-4 * first[name].norm() for name in first)
        stored = load_file(two.run_path / "checkpoints/step-00000003/trainable.safetensors")
        alone = load_file(one.run_path / "checkpoints/step-00000003/trainable.safetensors")
        assert {name: t.shape for name, t in stored.items()} == {name: t.shape for name, t in alone.items()}


def test_the_second_run_on_a_model_takes_its_directions_from_the_cache(tmp_path, capsys):
    first = run(tmp_path)
    assert "directions of 14 weights found" in capsys.readouterr().out
    second = run(tmp_path)
    assert "directions of 14 weights read from the cache" in capsys.readouterr().out
    assert losses(first) == losses(second)
    run(tmp_path, "algo.unfreeze_rank_ratio=0.5")
    assert "directions of 14 weights found" in capsys.readouterr().out
    for file in (tmp_path / "cache" / "osft").glob("*/00003.safetensors"):
        file.write_bytes(b"cut")
    run(tmp_path)
    assert "directions of 14 weights found" in capsys.readouterr().out


def test_protected_inputs_are_answered_as_before_and_protection_goes_on_without_the_data(tmp_path, cache):
    protected = ["algo.subspace=activations", "algo.protect_data=tiny:chats"]
    result = run(tmp_path, *protected, "algo.save_protection=true", "algo.unfreeze_rank_ratio=0.1")
    assert result.eval_loss < result.eval_loss_before
    first, last = weights(cache["llama"]), weights(result.model_path)
    kept = load_file(result.model_path / "protection.safetensors")
    name = "model.layers.0.self_attn.q_proj"
    change = last[f"{name}.weight"] - first[f"{name}.weight"]
    # All tokens of the samples went in, with those that were learnt added; a layer's three projections share them.
    kept.pop("tokens_seen")
    assert len(kept) == 8
    assert f"{name.replace('q_proj', 'k_proj')}" not in kept
    random = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0)))[0]
    covariance = kept[name].double()

    def answer(delta: torch.Tensor) -> float:
        return float((delta.double() @ covariance @ delta.double().mT).trace())

    assert answer(change) < 0.02 * answer(change @ random)
    again = run(
        tmp_path, "algo.subspace=activations", f"algo.protect_from={result.model_path}", f"model.path={result.model_path}",
        "algo.save_protection=true",
    )  # fmt: skip
    more = load_file(again.model_path / "protection.safetensors")
    assert all(more[key].trace() > kept[key].trace() for key in kept)
    before, after = (sensitivity(one.model_path) for one in (result, again))
    assert len(before) == 14
    assert all(after[name] > before[name] > 0 for name in before)


def test_adaptive_keeps_more_where_a_layer_changes_its_input_less(tmp_path):
    result = run(tmp_path, "algo.rank_policy=adaptive", "algo.protect_data=tiny:chats", "algo.max_keep=0.6")
    plan = json.loads((result.run_path / "plan.json").read_text())
    cosines, kept, free = plan["cosine_of_layers"], plan["kept_share_of_layers"], plan["directions_free_of"]
    mean = sum(cosines.values()) / len(cosines)
    assert len(cosines) == 2
    for layer, cosine in cosines.items():
        assert kept[layer] == pytest.approx(min(1.0, 0.1 + cosine / mean * 0.5))
        assert free[f"{layer}.mlp.up_proj"] == pytest.approx((64 - int(kept[layer] * 64)) / 64)


@pytest.mark.parametrize("tied", [True, False])
def test_the_stronger_the_protection_the_nearer_stay_the_answers(tmp_path, beside_few_words, tied, capsys):
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
    assert "each drawn back the more a change there matters to the data to protect (algo.protect_strength=1000)" in said


def test_weights_that_matter_more_are_drawn_back_more(tmp_path, monkeypatch):
    """Noise in one weight at a time: how far it moves what is said (Kullback-Leibler) is what its pull is in proportion to."""
    pulls: list[float] = []

    def seen(directions: Directions, algo: OsftConfig) -> torch.Tensor | None:
        found = pull_of(directions, algo)
        pulls.append(float(found.mean()))
        return found

    result = run(tmp_path, "algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.protect_strength=10")
    monkeypatch.setattr("hub_osft.train.pull_of", seen)
    trained = run(tmp_path, "algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.protect_strength=10",
                  f"model.path={result.model_path}", "algo.max_steps=1")  # fmt: skip
    told = json.loads((trained.run_path / "plan.json").read_text())["sensitivity_of_weights"]
    assert pulls == pytest.approx([10 * value for value in told.values()], rel=1e-2)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(result.model_path), AutoTokenizer.from_pretrained(result.model_path)
    chats = [json.loads(line)["messages"] for line in tiny_data_path().read_text().splitlines()[:16]]
    rows = [tokenizer.apply_chat_template(chat, return_dict=True, return_tensors="pt")["input_ids"] for chat in chats]

    @torch.no_grad()
    def said() -> list[torch.Tensor]:
        return [model(row).logits[0].double().log_softmax(-1) for row in rows]

    first, moved, dice = said(), {}, torch.Generator().manual_seed(0)
    for name in told:
        weight = model.get_submodule(name).weight.data
        plain, total = weight.clone(), 0.0
        for _ in range(4):
            weight.add_(3e-3 * torch.randn(weight.shape, generator=dice))
            total += sum(float((one.exp() * (one - other)).sum()) for one, other in zip(first, said(), strict=True))
            weight.copy_(plain)
        # Of each weight's rows and columns alike: the product is that of one output and one direction.
        moved[name] = total / weight.numel()
    both = torch.tensor([[told[name], moved[name]] for name in told]).log()
    assert both[:, 0].max() - both[:, 0].min() > 2
    assert torch.corrcoef(both.T)[0, 1] > 0.8


def test_what_a_weight_matters_is_asked_where_tokens_count(tmp_path, monkeypatch):
    """The beginning of a sample need not have any: here it is the question."""
    monkeypatch.setattr("hub_osft.sensitivity.PASS_TOKENS", 12)
    options = ["algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.protect_strength=10", "algo.max_steps=1"]
    result = run(tmp_path, *options)
    assert all(json.loads((result.run_path / "plan.json").read_text())["sensitivity_of_weights"].values())
    monkeypatch.setattr(
        "hub_osft.protect.measure_sensitivity", lambda *args: dict.fromkeys(["model.layers.0.mlp.up_proj"], 0.0)
    )
    with pytest.raises(HubError, match=r"it says matters to no weight, so algo\.protect_strength protects nothing"):
        run(tmp_path, *options)


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_a_run_that_began_without_a_strength_goes_on_without_one(tmp_path, monkeypatch, ratio):
    options = ["algo.subspace=activations", "algo.protect_data=tiny:chats", f"algo.unfreeze_rank_ratio={ratio}"]
    run_and_stop(tmp_path, monkeypatch, *options)
    with pytest.raises(HubError, match=r"algo\.protect_strength=30: the run that goes on began without it"):
        run(tmp_path, *options, "algo.protect_strength=30", "resume=latest", "resume_with_changes=true")


def test_a_pattern_that_matches_nothing_names_the_nearest(tmp_path):
    with pytest.raises(ConfigError, match=r"algo\.target_patterns: q_prj matches no matrix\. Did you mean q_proj"):
        run(tmp_path, "algo.target_patterns=[q_prj]")


def test_a_model_that_is_too_small_for_the_ratio_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"unfreeze_rank_ratio=0\.001 leaves no direction free: .* has 64\. Type at least"):
        run(tmp_path, "algo.unfreeze_rank_ratio=0.001")


@pytest.mark.parametrize(
    "options", [(), ("algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.protect_strength=9")]
)
def test_a_weight_that_is_not_finite_is_named(tmp_path, options):
    folder = tiny_model(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HubError, match=r"model\.layers\.1\.mlp\.up_proj has NaN or infinity"):
        run(tmp_path, f"model.path={folder}", "data.eval_fraction=0", *options)


def test_too_little_room_for_the_cache_is_found_before_the_search(tmp_path, monkeypatch):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("hub_osft.directions.shutil.disk_usage", lambda path: usage._replace(free=1000))
    said = r"the cache .* GB free, the directions need .* HUB_CACHE=FOLDER .* algo\.cache=false"
    with pytest.raises(ConfigError, match=said):
        run(tmp_path)


def test_protection_of_another_model_is_refused(tmp_path):
    result = run(tmp_path, "algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.save_protection=true",
                 "algo.target_patterns=attention", "algo.max_steps=1")  # fmt: skip
    with pytest.raises(HubError, match=r"it protects other layers; model\.layers\.0\.mlp\.down_proj is none of them"):
        run(tmp_path, "algo.subspace=activations", f"algo.protect_from={result.model_path}")
    file = result.model_path / "protection.safetensors"
    with safe_open(file, "pt") as stored:
        tensors, metadata = {name: stored.get_tensor(name) for name in stored.keys()}, stored.metadata()  # noqa: SIM118
    stored_whole = dict(tensors)
    for seen in ({"tokens_seen": tensors.pop("tokens_seen")[:100]}, {}):
        save_file(tensors | seen, file, metadata)
        with pytest.raises(HubError, match="it protects another vocabulary"):
            run(
                tmp_path,
                "algo.subspace=activations",
                f"algo.protect_from={result.model_path}",
                "algo.target_patterns=attention",
            )
    save_file(stored_whole, file, {"aliases": metadata["aliases"]})
    with pytest.raises(HubError, match=r"it does not say how much each weight matters, which algo\.protect_strength needs"):
        run(tmp_path, "algo.subspace=activations", f"algo.protect_from={result.model_path}", "algo.protect_strength=30",
            "algo.target_patterns=attention")  # fmt: skip
    again = run(tmp_path, "algo.subspace=activations", f"algo.protect_from={result.model_path}", "algo.save_protection=true",
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
        return folder, [f"model.path={folder}", "algo.subspace=activations", f"algo.protect_data={file}",
                        "algo.train_embeddings=true", "algo.weight_decay=0.1", "algo.save_every_steps=3"]  # fmt: skip

    return made


@pytest.mark.parametrize(("tied", "strength"), [(True, 0), (False, 0), (True, 3000)])
def test_of_the_embeddings_only_tokens_learn_that_the_data_to_protect_never_has(
    tmp_path, beside_few_words, tied, strength, capsys
):
    folder, options = beside_few_words(tied)
    options.append(f"algo.protect_strength={strength}")
    result = run(tmp_path, *options, "algo.save_protection=true")
    first, last = weights(folder), weights(result.model_path)
    change = last["model.embed_tokens.weight"].double() - first["model.embed_tokens.weight"].double()
    moved = change.abs().amax(1) > 0
    num = json.loads((result.run_path / "plan.json").read_text())["embeddings_free"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"embeddings of {num} tokens learn too, which the data to protect never has" in said
    protected = protected_tokens(folder, options)
    assert 0 < int(moved.sum()) <= num < len(moved) / 2
    assert not moved[protected].any()
    stored = load_file(result.model_path / "protection.safetensors")
    assert stored["tokens_seen"][moved].all()  # learnt now, so the next task's run protects them
    if tied:
        with torch.no_grad():
            hidden = AutoModelForCausalLM.from_pretrained(folder).model(protected).last_hidden_state[0].double()
        covariance = hidden.mT @ hidden  # of what the output layer reads
        random = torch.linalg.qr(torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64))[0]
        assert (change @ covariance @ change.mT).trace() < 0.01 * (change @ random @ covariance @ random.mT @ change.mT).trace()
    else:
        assert torch.equal(first["lm_head.weight"], last["lm_head.weight"])
    again = run(tmp_path, *options[3:], f"model.path={result.model_path}", "algo.subspace=activations",
                f"algo.protect_from={result.model_path}")  # fmt: skip
    assert "the data to protect has every token of the new data" in " ".join(capsys.readouterr().out.split())
    assert torch.equal(weights(again.model_path)["model.embed_tokens.weight"], last["model.embed_tokens.weight"])


def protected_tokens(folder: Path, options: list[str]) -> torch.Tensor:
    """Of a protected sample, (1, n)."""
    rows = Path(next(word for word in options if "protect_data" in word).partition("=")[2]).read_text().splitlines()
    found = AutoTokenizer.from_pretrained(folder).apply_chat_template(
        json.loads(rows[0])["messages"], return_dict=True, return_tensors="pt"
    )
    return found["input_ids"]


def test_of_a_stream_the_beginning_says_which_embeddings_learn(tmp_path, beside_few_words, capsys):
    _, options = beside_few_words(True)
    run(tmp_path, *options, "data.streaming=true", "data.eval_fraction=0", "algo.max_steps=1")
    assert "of the stream its first 128 samples say which embeddings may learn" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("strength", [0, 30])
def test_embeddings_that_learn_in_part_resume_bit_for_bit_and_train_on_two_processes_as_on_one(
    tmp_path, beside_few_words, monkeypatch, strength
):
    folder, options = beside_few_words(True)
    options += [f"algo.protect_strength={strength}", "algo.save_protection=true"]
    whole = run(tmp_path, *options)
    run_and_stop(tmp_path, monkeypatch, *options)
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
