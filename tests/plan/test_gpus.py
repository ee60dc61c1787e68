"""The table of GPUs: names as people and drivers write them, a user's own entries, the smallest that fits."""

import pytest

from hub.config.plan import PlanConfig
from hub.config.schema import RunConfig
from hub.errors import ConfigError
from hub.plan.gpus import planned_gpu, planned_number, smallest_that_fits
from hub.system.known_gpus import GIB, by_driver_name, find_gpu, known_gpus, shipped_gpus
from hub.train.layout.flops import peak_of


@pytest.fixture(autouse=True)
def config_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    return tmp_path / "finetune-hub"


def error(*args, **options):
    with pytest.raises(ConfigError) as caught:
        planned_gpu(PlanConfig(*args, **options))
    return str(caught.value)


@pytest.mark.parametrize("typed", ["rtx4090", "4090", "RTX 4090", "NVIDIA GeForce RTX 4090", "rtx-4090"])
def test_a_gpu_is_found_as_people_and_drivers_write_it(typed):
    assert find_gpu(typed, known_gpus()).name == "rtx4090"


def test_a_wrong_name_gives_one_line_with_the_nearest():
    assert "Did you mean rtx4090" in error(gpu="rtx4909")
    assert "a100_40gb" in error(gpu="a100"), "two kinds: neither is chosen in silence"
    assert "a100_80gb" in error(gpu="a100")
    assert "Known: rtx" in error(gpu="mi300x")
    assert "\n" not in error(gpu="x")


def test_figures_that_the_data_sheets_say_twice_agree():
    gpus = shipped_gpus()
    assert {name: gpus[name].peak["bf16"] for name in ("h100", "h200", "a100_80gb", "b200")} == {
        "h100": 989e12,
        "h200": 989e12,
        "a100_80gb": 312e12,
        "b200": 2250e12,
    }
    for name, gpu in gpus.items():
        peak = gpu.peak
        assert ("bf16" in peak) == gpu.has_bfloat16, name
        assert ("fp8" in peak) == (gpu.compute_capability >= (8, 9)), name
        if "tf32" in peak:
            assert peak["bf16"] / peak["tf32"] == pytest.approx(2, rel=0.03), name
        if "fp8" in peak:
            assert peak["fp8"] / peak["bf16"] == pytest.approx(2, rel=0.03), name
        assert 7 * GIB < gpu.memory_bytes < 192 * GIB, name
        assert None not in (gpu.names or None, gpu.source or None, gpu.watts), name
        assert 5 < peak["fp16"] / gpu.bandwidth < 500, name  # a wrong unit is a factor of a thousand


def test_of_two_kinds_with_one_name_memory_decides():
    gpus = known_gpus()
    name = "NVIDIA GeForce RTX 4060 Ti"
    assert by_driver_name(name, gpus, 16 * GIB).name == "rtx4060_ti_16gb"
    assert by_driver_name(name, gpus, 8 * GIB).name == "rtx4060_ti"
    assert by_driver_name("NVIDIA Z9", gpus) is None


def test_a_users_gpu_is_planned_for_and_has_a_peak_in_runs(config_folder, tmp_path):
    ours = "ours: {names: [NVIDIA Z9], memory: 30, bandwidth: 1000, capability: 12.1, tflops: {bf16: 400}}\n"
    (tmp_path / "gpus.yaml").write_text(ours)
    assert planned_gpu(PlanConfig(gpu="ours", gpus_file=str(tmp_path / "gpus.yaml"))).compute_capability == (12, 1)
    assert "Did you mean" in error(gpu="ours") or "Known" in error(gpu="ours")
    config_folder.mkdir()
    (config_folder / "gpus.yaml").write_text(ours + ours.replace("ours", "h100").replace("NVIDIA Z9", "NVIDIA H100 80GB HBM3"))
    assert planned_gpu(PlanConfig(gpu="ours")).memory_bytes == 30 * GIB
    assert peak_of("NVIDIA Z9") == 400e12
    assert peak_of("NVIDIA H100 80GB HBM3") == 400e12, "it replaces the hub's own entry"
    (config_folder / "gpus.yaml").write_text("ours: {memory: -1}")
    with pytest.warns(UserWarning, match="The hub's own table"):
        assert peak_of("NVIDIA H100 80GB HBM3") == 989e12, "a run that has begun goes on"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ours: {memory: 30, bandwidth: 1, capability: 9.0}", "has no tflops"),
        ("ours: {memory: 0, bandwidth: 1, capability: 9.0, tflops: {bf16: 1}}", "memory=0.0 must be a number above 0"),
        ("ours: {memory: x, bandwidth: 1, capability: 9.0, tflops: {bf16: 1}}", "memory=x must be a number above 0"),
        ("ours: {memory: 1, bandwith: 1}", "Did you mean bandwidth?"),
        ("ours: {memory: 1, bandwidth: 1, capability: 9.0, tflops: {int3: 1}}", "must be a number for some of bf16"),
        ("ours: 3", "must have memory"),
        ("- ours", "must hold GPUs by name"),
        ("ours: {", "not valid YAML"),
    ],
)
def test_a_mistake_in_a_table_is_one_line(tmp_path, text, said):
    (tmp_path / "gpus.yaml").write_text(text)
    line = error(gpus_file=str(tmp_path / "gpus.yaml"))
    assert said.replace("0.0", "0") in line
    assert "\n" not in line
    assert "there is no such file" in error(gpus_file=str(tmp_path / "none.yaml"))


def test_the_smallest_gpu_that_fits_takes_few_questions():
    gpus, asked = known_gpus(), []

    def fits(gpu):
        asked.append(gpu.name)
        return gpu.memory_bytes > 40 * GIB

    assert smallest_that_fits(gpus, fits).name == "a40"
    assert len(asked) <= 6
    assert smallest_that_fits(gpus, fits, has=lambda gpu: gpu.compute_capability >= (9, 0)).name == "h100_pcie"
    assert smallest_that_fits(gpus, lambda gpu: False) is None


def test_the_number_of_gpus_is_that_of_the_run():
    assert planned_number(PlanConfig(gpus=8), "auto") == 8
    assert planned_number(PlanConfig(gpu="h100"), 4, nnodes=2) == 8
    assert planned_number(PlanConfig(gpu="h100"), "auto") == 1


def test_wrong_options_of_a_plan_are_one_line_each():
    cfg = RunConfig(plan=PlanConfig(gpu="h100", gpus=0, compare="gpus"))
    said = "\n".join(cfg.problems(parts=("plan",)))
    assert "plan.gpus=0 is not allowed" in said
    assert "plan.compare=gpus is not allowed. Allowed: none, algo, gpu" in said
