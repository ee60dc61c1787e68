"""Whole runs on tiny models: what is learned, which directions change, what is saved, and resume."""

import json
import shutil
from collections.abc import Callable
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hub_osft.config import OsftConfig
from hub_osft.directions import _key, by_spectrum
from hub_osft.recipe import with_coordinates
from hub_osft.targets import find_targets, with_ratio
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM
from zoo.zoo import zoo_model

from hub import ConfigError, HubError, Result
from hub.testing import tiny_model
from hub.train.setup.layers import READ

pytestmark = pytest.mark.usefixtures("warm_python", "cache")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def losses(result: Result) -> list[float]:
    return [line["loss"] for line in result.metrics]


def by_weights(words: tuple[str, ...]) -> tuple[str, ...]:
    """The words of a run, with the directions of the weights unless they say otherwise."""
    says = any(word.startswith(("algo=sft", "algo.subspace=")) for word in words)
    return words if says else ("algo.subspace=weights", *words)


@pytest.fixture
def run(run) -> Callable[..., Result]:
    return lambda folder, *words: run(folder, *by_weights(words))


@pytest.fixture
def run_and_stop(run_and_stop) -> Callable[..., None]:
    return lambda folder, *words: run_and_stop(folder, *by_weights(words))


def test_with_everything_free_it_is_plain_fine_tuning(tmp_path, run):
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
def test_the_saved_model_loads_and_differs_from_the_first_in_free_directions_only(tmp_path, form, cache, run):
    result = run(tmp_path, *form, "algo.save_every_steps=5")
    assert result.eval_loss < result.eval_loss_before - 0.2
    AutoModelForCausalLM.from_pretrained(result.model_path)
    first, last = weights(cache["llama"]), weights(result.model_path)
    of_checkpoint = weights(result.run_path / "checkpoints/step-00000005/model")
    assert first.keys() == last.keys() == of_checkpoint.keys()
    rounding = 2**-8 if "model.dtype=bfloat16" in form else 2**-22
    for (name, before), saved in product(first.items(), (last, of_checkpoint)):
        before = before.to(saved[name].dtype).double()
        change = saved[name].double() - before
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
    model, algo = (
        AutoModelForCausalLM.from_pretrained(cache["llama"]),
        OsftConfig(subspace="weights", parametrization="factored"),
    )
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


@pytest.mark.parametrize("form", ["fast", "factored"])
def test_changes_that_bfloat16_does_not_resolve_are_in_the_saved_weights_on_average(form, cache, monkeypatch):
    model, algo = (
        AutoModelForCausalLM.from_pretrained(cache["llama"], dtype=torch.bfloat16),
        OsftConfig(subspace="weights", parametrization=form),
    )
    targets = with_ratio(find_targets(model, algo), 0.25)
    find = by_spectrum(algo, torch.float32)
    found = {target.name: find(target, target.weight(model).detach()) for target in targets}
    coordinates = with_coordinates(model, algo, targets, found, torch.device("cpu"))
    coordinates.placed()
    before = {target.name: target.weight(model).detach().double() for target in targets}
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("osft_coordinates", "osft_left")):
                parameter += 1e-4 * torch.randn_like(parameter)
    asked, saved = {}, {}
    with monkeypatch.context() as patch:
        patch.setattr("hub_osft.coordinates.rounded", lambda whole, dtype, name: asked.setdefault(name, whole).to(dtype))
        with coordinates.exact():
            pass
    for _ in range(2):
        with coordinates.exact():
            again = {target.name: target.weight(model).detach().double() for target in targets}
        assert not saved or all(torch.equal(again[name], saved[name]) for name in saved)
        saved = again
    changes = [
        (whole.double() - before[name], saved[name] - before[name]) for name, whole in zip(before, asked.values(), strict=True)
    ]
    kept = sum(float((one * other).sum()) for one, other in changes) / sum(float(one.square().sum()) for one, _ in changes)
    assert kept == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize(
    "family", ["mixtral", "gpt2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gpt_oss", "deepseek_v2"))]
)
def test_experts_and_conv1d_train_and_the_saved_model_is_the_trained_one(tmp_path, family, run):
    result = run(tmp_path, f"model.path=tiny:{family}")
    plan = json.loads((result.run_path / "plan.json").read_text())
    again = run(tmp_path, f"model.path={result.model_path}", "algo.max_steps=1")
    assert again.eval_loss_before == pytest.approx(result.eval_loss, abs=1e-4)
    assert result.eval_loss < result.eval_loss_before - 0.1
    targets = plan["directions_free_of"]
    assert any("c_attn" in name for name in targets) if family == "gpt2" else any("experts." in name for name in targets)


@pytest.mark.parametrize(
    ("family", "left_out", "trained"),
    [("mamba", f"2 x mixer.dt_proj ({READ})", "mixer.out_proj"), ("jetmoe", None, "mlp.output_linear.weight")],
)
def test_weights_that_can_not_train_are_frozen_and_named(tmp_path, capsys, family, left_out, trained, run):
    result = run(tmp_path, f"model.path={zoo_model(family)}", "algo.max_steps=3")
    assert not (lines := [s for s in capsys.readouterr().out.splitlines() if "OSFT can't train" in s]) or left_out in lines[0]
    assert bool(lines) == bool(left_out)
    plan = json.loads((result.run_path / "plan.json").read_text())
    targets = plan["directions_free_of"]
    assert any(name.endswith(trained) for name in targets)
    assert plan["experts_left_out"] == []
    first, last = weights(zoo_model(family)), weights(result.model_path)
    changed = {name for name in first if (first[name] - last[name]).abs().max() > 1e-4}
    if left_out:  # the file of jetmoe has other names than the model
        assert changed == {f"{name}.weight" for name in targets}
    again = run(tmp_path, f"model.path={result.model_path}", "algo.max_steps=1")
    assert again.eval_loss_before == pytest.approx(result.eval_loss, abs=1e-4)


def test_a_pattern_for_weights_that_can_not_train_is_refused(tmp_path, run):
    with pytest.raises(ConfigError) as refused:
        run(tmp_path, f"model.path={zoo_model('mamba')}", "algo.target_patterns=[in_proj,dt_proj]")
    assert str(refused.value) == (
        f"algo.target_patterns: dt_proj matches only weights that OSFT can't train: 2 x mixer.dt_proj ({READ}). "
        "Names end in in_proj, out_proj, x_proj"
    )


@pytest.mark.slow
@pytest.mark.parametrize("form", ["algo.subspace=activations", "algo.parametrization=factored"])
def test_experts_that_a_form_leaves_frozen_are_named(tmp_path, capsys, form, run):
    protected = ["algo.protect_data=tiny:chats"] if "activations" in form else []
    run(tmp_path, "model.path=tiny:mixtral", form, *protected, "algo.max_steps=1")
    said = f"the experts' weights are 4 fused tensors, which {form} can't train: they are frozen"
    assert said in " ".join(capsys.readouterr().out.split())
    if protected:
        with pytest.raises(ConfigError, match=r"algo\.target_patterns=mlp: no matrix of this model trains so"):
            run(tmp_path, "model.path=tiny:mixtral", form, *protected, "algo.target_patterns=mlp")


@pytest.mark.slow
def test_a_stopped_run_resumes_bit_for_bit_even_when_the_cache_is_gone(tmp_path, monkeypatch, run, run_and_stop):
    options = ["algo.save_every_steps=2", "algo.weight_decay=0.1", "algo.train_norms=true"]
    whole = run(tmp_path, *options)
    run_and_stop(tmp_path, *options)
    shutil.rmtree(tmp_path / "cache" / "osft")
    # The directions must be those of the run, whatever a new search would give.
    monkeypatch.setattr("hub_osft.subspace.torch.linalg.eigh", None)
    resumed = run(tmp_path, *options, "resume=latest")
    first, second = weights(whole.model_path), weights(resumed.model_path)
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert losses(whole) == losses(resumed)
    assert not (resumed.run_path / "directions").exists()


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_the_layout_changes_nothing(tmp_path, processes, command):
    assert command(tmp_path / "runs", "verify", f"launch.nproc_per_node={processes}").status == "verified"


@pytest.mark.slow
def test_two_processes_with_whole_copies_and_with_shares_train_as_one(tmp_path, run, command):
    options = ["algo.subspace=weights", "algo.weight_decay=0.1", "algo.train_norms=true", "algo.save_every_steps=3"]
    one = run(tmp_path, *options)
    for strategy in ("ddp", "fsdp"):
        two = command(tmp_path / strategy, *options, "launch.nproc_per_node=2", f"launch.strategy={strategy}")
        assert losses(two) == pytest.approx(losses(one), rel=2e-5)
        first, second = weights(one.model_path), weights(two.model_path)
        assert all((first[name] - second[name]).norm() <= 1e-4 * first[name].norm() for name in first)
        stored = load_file(two.run_path / "checkpoints/step-00000003/trainable.safetensors")
        alone = load_file(one.run_path / "checkpoints/step-00000003/trainable.safetensors")
        assert {name: t.shape for name, t in stored.items()} == {name: t.shape for name, t in alone.items()}


def test_the_second_run_on_a_model_takes_its_directions_from_the_cache(tmp_path, capsys, run):
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


def test_directions_are_kept_by_the_numbers_of_the_weights_not_by_their_shapes(tmp_path):
    session, algo = SimpleNamespace(compute_dtype=torch.float32), OsftConfig(subspace="weights")
    shapes = {"a": {"free": ((4, 2), torch.float32)}}
    tensors = {name: torch.arange(6.0) for name in ("one", "two")}
    keys = []
    for changed in ({}, {"one": torch.arange(6.0) + 1e-6}, {"two": torch.arange(6.0).flip(0)}):
        folder = tmp_path / str(len(keys))
        folder.mkdir()
        for name, tensor in (tensors | changed).items():
            save_file({"weight": tensor}, folder / f"{name}.safetensors")
        keys.append(_key(folder, shapes, algo, session))
    keys.append(_key(folder, shapes, OsftConfig(subspace="weights", parametrization="factored"), session))
    keys.append(_key(folder, {"a": {"free": ((4, 3), torch.float32)}}, algo, session))
    keys.append(_key(folder, shapes, algo, SimpleNamespace(compute_dtype=torch.bfloat16)))
    assert len(set(keys)) == len(keys)
    assert _key(folder, shapes, algo, session) == keys[2]


def test_a_pattern_that_matches_nothing_names_the_nearest(tmp_path, run):
    with pytest.raises(ConfigError, match=r"algo\.target_patterns: q_prj matches no matrix\. Did you mean q_proj"):
        run(tmp_path, "algo.target_patterns=[q_prj]")


def test_a_model_that_is_too_small_for_the_ratio_is_refused(tmp_path, run):
    with pytest.raises(ConfigError, match=r"unfreeze_rank_ratio=0\.001 leaves no direction free: .* has 64\. Type at least"):
        run(tmp_path, "algo.unfreeze_rank_ratio=0.001")


@pytest.mark.parametrize(
    "options", [(), ("algo.subspace=activations", "algo.protect_data=tiny:chats", "algo.protect_strength=9")]
)
def test_a_weight_that_is_not_finite_is_named(tmp_path, options, run):
    folder = tiny_model(tmp_path / "broken")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(HubError, match=r"model\.layers\.1\.mlp\.up_proj has NaN or infinity"):
        run(tmp_path, f"model.path={folder}", "data.eval_fraction=0", *options)


def test_too_little_room_for_the_cache_is_found_before_the_search(tmp_path, monkeypatch, run):
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("hub_osft.directions.shutil.disk_usage", lambda path: usage._replace(free=1000))
    said = r"the cache .* GB free, the directions need .* HUB_CACHE=FOLDER .* algo\.cache=false"
    with pytest.raises(ConfigError, match=said):
        run(tmp_path)
