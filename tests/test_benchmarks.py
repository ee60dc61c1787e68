"""`python -m benchmarks`: a whole run on a CPU, and how the figures are computed."""

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import attention, evaluation, experts, step_profile
from benchmarks.context import Fit, search
from benchmarks.evaluation_answers import chosen_ends
from benchmarks.peers import Step, Task, peers
from benchmarks.runner import Row, Start, run, speed
from benchmarks.shapes import made, made_for, num_multiplied
from benchmarks.table import ratio, share_of_peak
from benchmarks.workloads import WORKLOADS

pytestmark = pytest.mark.usefixtures("warm_python")

ROOT = Path(__file__).parents[1]


def test_each_peer_does_the_same_work_and_has_its_row(tmp_path):
    pytest.importorskip("trl", reason="the package trl is not installed")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    words = ["tiny", "--only", "ours", "trl", "--steps", "4", "--json", "result.json", "--markdown", "result.md"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = json.loads((tmp_path / "result.json").read_text())["rows"]
    assert [row["way"] for row in rows] == ["ours", "trl"]
    for row in rows:
        assert len(row["steps"]) == 4
        assert row["tokens_per_second"] > 0
        assert row["first_step_seconds"] > 0
        assert row["about"]["versions"]["torch"]
        # Both tell the loss of random tokens, near the logarithm of the vocabulary.
        assert all(6.0 < step["loss"] < 6.6 for step in row["steps"])
    assert rows[0]["ratio"] == pytest.approx(rows[0]["tokens_per_second"] / rows[1]["tokens_per_second"])
    assert (tmp_path / "result.md").read_text() in done.stdout
    assert not list((tmp_path / "runs").iterdir())


def test_adapters_on_experts_are_measured_beside_pefts_way():
    rows = experts.rows_of("gpt_oss_20b", 64, 4, True, torch.device("cpu"))
    assert [row[1] for row in rows] == ["PEFT", "grouped"]
    assert float(rows[1][4]) < 1e-5


def test_one_that_fails_says_why_and_one_that_takes_too_long_is_ended(tmp_path, monkeypatch, capsys):
    task = Task(
        contender="ours", kind="lora", model="/nowhere", rows="/nowhere", steps=9, batch=8, longest=256, mean=60.0, packed=True,
        micro_rows=2, gpus=1, least_memory=False, ours={},
    )  # fmt: skip
    (tmp_path / "python").write_text(f"#!/bin/sh\nexec {sys.executable} -c \"raise SystemExit('no luck: out of memory')\"\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setenv("HUB_PEER_TRL", f"PYTHONPATH=/elsewhere {tmp_path / 'python'}")
    start = Start.of("trl")
    assert start.variables["PYTHONPATH"] == os.pathsep.join([str(ROOT), "/elsewhere"])
    (tmp_path / "a").mkdir()
    row = run(peers()["trl"], "tiny", task, tmp_path / "a", limit=30)
    assert (row.tokens_per_second, row.out_of_memory) == (None, True)
    assert row.failure == "out of memory (0 of 9 steps)"
    assert "no luck" in capsys.readouterr().out
    (tmp_path / "python").write_text("#!/bin/sh\nexec sleep 60\n")
    (tmp_path / "b").mkdir()
    row = run(peers()["trl"], "tiny", task, tmp_path / "b", limit=0.3)
    assert row.failure == "stopped after 0 s (0 of 9 steps)"
    assert row.seconds < 10


def test_speed_is_the_median_of_the_later_half_of_the_steps():
    times = [0, 100, 200, 201, 202, 212, 213]
    steps = [Step(number=i, time=time, tokens=1000) for i, time in enumerate(times, 1)]
    assert speed(steps) == 1000
    assert speed(steps[:4]) == pytest.approx((1000 / 100 + 1000) / 2)
    assert speed(steps[:1]) == 0


def test_the_ratio_is_to_the_best_peer_and_the_share_names_its_convention():
    rows = [
        Row(workload="lora_8b", contender="ours", title="", tokens_per_second=15000.0),
        Row(workload="lora_8b", contender="trl", title="", tokens_per_second=8000.0),
        Row(workload="lora_8b", contender="unsloth", title="", tokens_per_second=10000.0),
        Row(workload="lora_8b_fp8", contender="ours", title="", tokens_per_second=20000.0),
        Row(workload="full_1b", contender="ours", title="", tokens_per_second=50000.0),
    ]
    assert [ratio(row, rows) for row in rows] == [1.5, 0.8, 1.0, 2.0, None]
    # 32 layers of 218,103,808 weights, and the output layer.
    assert num_multiplied("8b") == 7_504_658_432
    share = share_of_peak(rows[0], "8b", "NVIDIA H100 80GB HBM3", 1)
    assert share == pytest.approx(15000 * 4 * 7_504_658_432 / 989e12)
    assert share_of_peak(rows[4], "1b", "NVIDIA H100 80GB HBM3", 2) == pytest.approx(50000 * 6 * 1_235_746_816 / 1978e12)
    assert share_of_peak(rows[0], "8b", "another GPU", 1) is None


@pytest.mark.parametrize(("per_token", "bent"), [(240e3, 0.0), (2.1e6, 0.0), (240e3, 0.05)])
def test_the_search_for_the_longest_row_ends_close_to_it_after_few_tries(per_token, bent):
    capacity, tries = 80e9, []

    def memory(tokens: int) -> float:
        return 7e9 + per_token * tokens * (1 + bent * tokens / 1e5)

    def attempt(tokens: int) -> Fit | bool:
        tries.append(tokens)
        return Fit(tokens, memory(tokens)) if memory(tokens) <= capacity else False

    found = search(attempt, 8192, lambda: capacity)
    assert memory(found.longest) <= capacity < memory(found.too_long)
    assert found.too_long <= max(1.04 * found.longest, found.longest + 512)
    assert len(tries) <= 10
    assert len(set(tries)) == len(tries)


def test_a_search_whose_first_try_is_too_long_goes_down_and_one_that_fails_ends():
    found = search(lambda tokens: Fit(tokens, tokens) if tokens < 3000 else False, 8192, lambda: None)
    assert 2500 <= found.longest < 3000 <= found.too_long
    assert search(lambda tokens: None, 8192, lambda: None).longest == 0


def test_a_profile_sorts_kernels_and_finds_the_idle_time(tmp_path):
    def kernel(name: str, begin: int, length: int) -> dict:
        return {"ph": "X", "cat": "kernel", "name": name, "ts": begin, "dur": length, "tid": 7}

    names = [
        "pytorch_flash::flash_fwd_kernel<cutlass>",
        "nvjet_tst_128x256",
        "triton_poi_fused__to_copy_addmm_silu_0",
        "liger_cross_entropy_kernel",
    ]
    events = [kernel(name, 1000 * i, 600) for i, name in enumerate(names)]
    events += [
        kernel("ncclDevKernel_AllGather", 100, 300),
        {"ph": "X", "cat": "cuda_runtime", "name": "x", "ts": 0, "dur": 9000},
    ]
    (tmp_path / "trace.json").write_text(json.dumps({"traceEvents": events}))
    groups, by_name, busy = step_profile.measured(tmp_path / "trace.json")
    assert set(groups) == {
        "attention", "matrix products", "elementwise, norms, reductions", "loss of the output layer", "communication",
    }  # fmt: skip
    assert groups["attention"] == by_name[names[0]] == (pytest.approx(600e-6), 1)
    assert busy == pytest.approx(4 * 600e-6)
    (tmp_path / "profile.json").write_text(json.dumps({"seconds": 0.008, "tokens": [100, 100]}))
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "plan.json").write_text(json.dumps({"max_tokens_per_gpu": 64}))
    (tmp_path / "rows.json").write_text(json.dumps({"tokens": 50, "squares": 2500}))
    said = step_profile.report(tmp_path, WORKLOADS["lora_8b"], tmp_path / "rows.json", "NVIDIA H100 80GB HBM3")
    assert "| idle: no kernel running | 2.8 | 70.0% |" in said
    assert "| `nvjet_tst_128x256` | 0.3 | 7.5% | 0 |" in said
    assert f"{1000 * 4 * 7_504_658_432 * 100 / 989e12:.1f}" in said


def test_a_made_model_loads_and_a_longer_one_shares_its_weights():
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = made("tiny")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    weight = model.model.layers[1].mlp.down_proj.weight
    assert weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.linalg.matrix_rank(weight) == 64
    assert model.lm_head.weight is model.model.embed_tokens.weight
    assert len(AutoTokenizer.from_pretrained(folder)) == model.config.vocab_size
    longer = made_for("tiny", 20_000)
    assert AutoModelForCausalLM.from_pretrained(longer).config.max_position_embeddings == 20_000
    assert (longer / "model-0.safetensors").samefile(folder / "model-0.safetensors")


def test_the_parents_side_of_a_peer_needs_nothing_but_the_standard_library():
    code = (
        "import sys; from benchmarks.peers import peers; peers(); print({'torch', 'trl', 'hub', 'psutil'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_the_requests_of_an_evaluation_share_what_those_of_the_task_share():
    for name, workload in evaluation.WORKLOADS.items():
        pairs = evaluation.requests(workload, 3, 1.0)
        assert pairs == evaluation.requests(workload, 3, 1.0)
        contexts = [context for context, _ in pairs]
        assert [contexts.count(context) for context in dict.fromkeys(contexts)] == [evaluation.CHOICES] * 3
        begin = workload.few_shot // 2
        assert (len({context[:begin] for context in contexts}) == 1) == (begin == 0 or "shot" in name)


def test_ends_are_chosen_that_give_answers_of_about_a_length():
    draw = random.Random(0)
    free = [[draw.randint(0, 400) for _ in range(200)] for _ in range(40)]
    for mean in (2.0, 100.0):
        ends = chosen_ends(free, mean)
        lengths = [next((place for place, token in enumerate(ids, 1) if token in ends), len(ids)) for ids in free]
        assert 0.7 * mean <= sum(lengths) / len(lengths) <= mean
        assert min(lengths) < mean / 1.5 < mean * 1.5 < max(lengths)


def test_attention_is_compared_by_each_way_that_is_here_and_the_others_say_why_not(capsys):
    attention.main(
        ["--head-sizes", "16", "--heads", "4", "--key-heads", "2", "--tokens", "70", "--softcap", "5", "--rounds", "1"]
    )
    lines = capsys.readouterr().out.splitlines()
    ways = {line.split("|")[2].strip(): float(line.split("|")[6]) for line in lines if line.startswith("| 16 ")}
    assert {"eager", "FlexAttention"} <= ways.keys()
    assert max(ways.values()) < 1e-5
    assert "sdpa, heads of 16: UnsuitedError: it has no soft cap" in lines
