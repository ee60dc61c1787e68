"""Options that do not fit are one line each, before anything is started."""

import json

import pytest


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ("algo.beta=0", "algo.beta=0.0 is not allowed. Allowed: a number above 0"),
        ("algo.loss=dop", "algo.loss=dop is not allowed. Allowed: dpo, robust, ipo,"),
        ("algo.loss=simpo algo.reference=base", "algo.loss=simpo takes no reference, but algo.reference=base. Leave it out"),
        ("algo.reference=none", "algo.loss=dpo compares with a reference, but algo.reference=none. Leave it out, or type"),
        ("algo.reference=nowhere", "algo.reference=nowhere: there is no such folder. Allowed: base, none, a model's folder,"),
        ("algo.reference=adapter", "algo.reference=adapter is an adapter, not a model. Merge it first: python -m hub export"),
        ("algo.gamma=1", "algo.gamma=1 is for simpo, but algo.loss=dpo. Leave it out"),
        ("algo.loss=kto algo.label_smoothing=0.1", "algo.loss=kto takes no algo.label_smoothing. Leave it out, or type"),
        ("algo.loss=exo", "algo.loss=exo needs algo.label_smoothing above 0, its target. Type"),
        ("algo.loss=ipo algo.length_normalized=true", "algo.loss=ipo is a mean per token by its definition. Leave"),
        ("algo.loss=orpo algo.sft_weight=1", "algo.loss=orpo has the chosen answer's likelihood by its definition. Leave"),
        ("algo.desirable_weight=2", "algo.desirable_weight=2 is for kto, but algo.loss=dpo. Leave it out"),
        ("data.streaming=true algo.max_steps=2", "algo.loss=dpo computes the reference's log-probabilities of all rows before"),
        ("data.loss_on=all", "data.loss_on=all would count the prompt, which chosen and rejected share. Type"),
        ("data.text_column=prompt data.format=document", "data.text_column and data.block_size are for raw documents, not for"),
        (
            "data.path=judged.jsonl data.format=judged",
            "judged.jsonl:1: this row has one sample (desirable). algo=lora_dpo trains on rows with the samples chosen, "
            "rejected. Type data.format=preference",
        ),
        (
            "algo.loss=kto data.path=chats.jsonl data.format=messages",
            "{folder}/chats.jsonl: each row has one sample. algo=lora_dpo trains on rows with the samples chosen, rejected, or "
            "desirable, or undesirable. Type data.format=preference or judged",
        ),
        ("data.eval_path=chats.jsonl", "chats.jsonl:1: this row has no chosen answer. A row of the format preference has"),
    ],
)
def test_a_mistake_is_one_line(hub, pairs, tmp_path, options, line):
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    chat = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "chats.jsonl").write_text(json.dumps(chat) + "\n")
    judged = {"prompt": "a", "completion": "b", "label": True}
    (tmp_path / "judged.jsonl").write_text(json.dumps(judged) + "\n")
    said = hub("algo=lora_dpo", "model=tiny", f"data.path={pairs}", *options.split(), "launch=inline")
    assert said.code == 2
    assert any(problem.startswith(line.format(folder=tmp_path)) for problem in said.problems), said.problems


def test_algorithms_for_answers_refuse_pairs_and_the_three_have_their_defaults(hub, pairs, tmp_path):
    said = hub("algo=lora_sft", "model=tiny", f"data.path={pairs}")
    assert "to learn the preference type algo=lora_dpo" in said.problems[0]
    for algo in ("sft", "lora_sft", "osft"):
        said = hub(f"algo={algo}", "model=tiny", f"data.path={pairs}", "data.format=preference")
        assert said.problems[0].startswith(
            f"data.format=preference gives 2 samples a row (chosen, rejected); algo={algo} trains on one. Type data.format=ch"
        )
    (tmp_path / "judged.csv").write_text("prompt,completion,label\na,b,true\n")
    said = hub("algo=sft", "model=tiny", "data.path=judged.csv", "data.format=judged")
    assert said.problems == [
        "data.format=judged gives answers that are good or bad; algo=sft would learn both. Take the bad ones out and type "
        "data.format=prompt_completion, or type algo=lora_dpo algo.loss=kto"
    ]
    for algo, rate in (("dpo", "5e-07"), ("lora_dpo", "1e-05"), ("osft_dpo", "5e-06"), ("qlora_dpo", "1e-05")):
        shown = hub("show", f"algo={algo}", "model=tiny", f"data.path={pairs}", "learning_rate", "num_epochs").out
        assert f"algo.learning_rate = {rate}" in shown
        assert "algo.num_epochs = 1.0" in shown
