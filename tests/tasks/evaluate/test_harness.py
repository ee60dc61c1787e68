import json
import logging
import shutil
import socket
import threading
import time
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from hub.config.evaluate import EvaluateConfig
from hub.errors import ConfigError
from hub.system.network import answers
from hub.tasks.evaluate.harness import HubLM
from hub.tasks.evaluate.harness_tasks import load_tasks, problems, run_tasks
from hub.tasks.loading import Loaded
from hub.testing import tiny_model_path

logging.getLogger("lm_eval").setLevel(logging.ERROR)
from lm_eval.models.huggingface import HFLM  # noqa: E402

QUESTIONS = [
    {
        "question": f"Question {i}: where is the {thing}?\nAnswer:",
        "choices": ["in the sea", "home", "in the sky", "no"],
        "gold": i % 4,
    }
    for i, thing in enumerate(["fish", "moon", "cat", "end of it", "fish and the cat", "word"])
]
CHOICE = """
task: choices
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: multiple_choice
test_split: test
fewshot_split: test
num_fewshot: 2
doc_to_text: question
doc_to_choice: choices
doc_to_target: gold
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: rolling
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: question
metric_list: [{{metric: word_perplexity}}]
"""
GENERATION = """
task: generation
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
output_type: generate_until
test_split: test
doc_to_text: question
doc_to_target: "{{{{choices[gold]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 8, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""


def _loaded(family: str) -> Loaded:
    folder = tiny_model_path(family)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    return Loaded(family, model, AutoTokenizer.from_pretrained(folder), torch.device("cpu"), torch.float32, None, folder)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("tasks")
    data = folder / "questions.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in QUESTIONS), encoding="utf-8")
    files = {}
    for name, text in {"choices": CHOICE, "rolling": ROLLING, "generation": GENERATION}.items():
        files[name] = str(folder / f"{name}.yaml")
        Path(files[name]).write_text(text.format(file=data), encoding="utf-8")
    return files


def test_scores_are_those_of_the_hf_model_of_lm_eval(tasks):
    loaded = _loaded("llama")
    cfg = EvaluateConfig(tasks=list(tasks.values()), seed=3)
    found = {}
    for name, lm in {
        "ours": HubLM(loaded),
        "theirs": HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=4),
    }.items():
        figures = run_tasks(lm, load_tasks(cfg), cfg)
        found[name] = {(one.task, one.metric): one for one in figures}
    ours, theirs = found["ours"], found["theirs"]
    assert set(ours) == set(theirs) == {
        ("choices", "acc"), ("choices", "acc_norm"), ("rolling", "word_perplexity"), ("generation", "exact_match"),
    }  # fmt: skip
    for key, one in ours.items():
        assert one.value == pytest.approx(theirs[key].value, rel=1e-5), key
        assert (one.values is None) == (key[0] == "rolling")
        if one.values is not None:
            assert one.values.tolist() == theirs[key].values.tolist()
            assert one.stderr == pytest.approx(theirs[key].stderr)


def test_log_likelihoods_are_those_of_the_hf_model_of_lm_eval():
    from lm_eval.api.instance import Instance

    loaded = _loaded("llama")
    longest = 64
    texts = [(row["question"], f" {choice}") for row in QUESTIONS for choice in row["choices"]]
    texts += [("", "in the sea"), ("the fish ", "is home"), ("the " * 200, "sea"), ("a", " b" * 20), ("<|im_start|>", "user")]
    requests = [Instance("loglikelihood", {}, pair, number) for number, pair in enumerate(texts)]
    theirs = HFLM(pretrained=loaded.model, tokenizer=loaded.tokenizer, batch_size=3, max_length=longest)
    ours = HubLM(loaded, batch_size=5)
    ours._max_length = longest
    wanted, found = theirs.loglikelihood(requests, disable_tqdm=True), ours.loglikelihood(requests)
    assert ours.layout == "packed, shared beginnings once"
    for pair, (value, greedy), (our_value, our_greedy) in zip(texts, wanted, found, strict=True):
        assert our_value == pytest.approx(value, abs=1e-4), pair
        assert our_greedy == greedy
    with pytest.raises(ConfigError, match=r"a choice has .* tokens, more than the 64 that the model can hold"):
        ours.loglikelihood([Instance("loglikelihood", {}, ("a", " b" * 100), 0)])
    rolling = [Instance("loglikelihood_rolling", {}, (f"{question} " * 9,), 0) for question, _ in texts[:3]]
    assert ours.loglikelihood_rolling(rolling) == pytest.approx(
        theirs.loglikelihood_rolling(rolling, disable_tqdm=True), abs=1e-3
    )


def test_without_a_network_the_cache_is_read_and_nothing_is_tried_again(tasks, tmp_path, monkeypatch):
    import datasets
    from huggingface_hub import constants

    sleeps: list[float] = []
    monkeypatch.setattr(time, "sleep", sleeps.append)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    away = tmp_path / "away.yaml"
    text = CHOICE.replace("dataset_path: json", "dataset_path: someone/data").replace("dataset_kwargs", "metadata")
    away.write_text(text.format(file="none"), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"away.yaml: its data is on the model hub, and http://127.0.0.1:9 can't be reached"):
        load_tasks(EvaluateConfig(tasks=[str(away)]))
    assert not sleeps
    assert not constants.HF_HUB_OFFLINE
    with monkeypatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(ConfigError, match=r"its data is not in the cache, and HF_HUB_OFFLINE is set"):
            load_tasks(EvaluateConfig(tasks=[str(away)]))
    rows = datasets.Dataset.from_list(QUESTIONS)
    builder = datasets.load_dataset_builder(
        "json", data_files={"test": str(Path(tasks["choices"]).with_name("questions.jsonl"))}
    )
    builder.download_and_prepare()
    cached = tmp_path / "someone___data/default/0.0.0/0123"
    shutil.copytree(builder.cache_dir, cached)
    (cached / "json-test.arrow").rename(cached / "data-test.arrow")
    (found,) = load_tasks(EvaluateConfig(tasks=[str(away)]))["tasks"].values()
    assert found.dataset["test"]["gold"] == rows["gold"]
    assert not sleeps


def test_a_server_that_refuses_answers_and_one_that_is_not_there_does_not():
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        refusing = threading.Thread(target=_refuse, args=(server,))
        refusing.start()
        assert answers(f"http://127.0.0.1:{port}")
        refusing.join()
    assert not answers(f"http://127.0.0.1:{port}")
    assert not answers("not a url")


def _refuse(server: socket.socket) -> None:
    connection, _ = server.accept()
    connection.recv(1024)
    connection.sendall(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
    connection.close()


def test_a_name_is_checked_without_lm_eval_once_all_names_are_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HUB_CACHE", str(tmp_path))
    assert problems(["helaswag"]) == []
    folder = tmp_path / "lm_eval" / version("lm_eval")
    folder.mkdir(parents=True)
    (folder / "tasks.json").write_text('["hellaswag", "mmlu"]', encoding="utf-8")
    (line,) = problems(["helaswag", "mmlu"])
    assert line.startswith("evaluate.tasks=helaswag: lm-eval has no such task. Did you mean hellaswag?")
