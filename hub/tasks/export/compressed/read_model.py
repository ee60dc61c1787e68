"""Reads a model folder with transformers and answers questions about it: a script for the environment that can read it.

    python read_model.py FOLDER TRUST_REMOTE_CODE FOLDER_FOR_ANSWERS

It imports nothing of the hub. A line of JSON on the standard input is a question, a line on the standard output its answer.
Arrays are files that the asker removes.
"""

import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO


def facts(model: Any, tokenizer: Any) -> "dict[str, Any]":
    """What the reader is, the chat template that it finds, and ids of the tokens that end an answer."""
    import transformers

    ends = [tokenizer.eos_token_id, getattr(model.generation_config, "eos_token_id", None)]
    numbers = {int(one) for end in ends for one in (end if isinstance(end, list) else [end]) if one is not None}
    name = f"transformers {transformers.__version__}"
    if getattr(model.config, "quantization_config", None) is not None:
        name += f" with compressed-tensors {version('compressed-tensors')}"
    template = tokenizer.chat_template if isinstance(tokenizer.chat_template, str) else None
    return {"name": name, "template": template, "ends": sorted(numbers)}


def answer(question: "dict[str, Any]", model: Any, tokenizer: Any, out: Path) -> "dict[str, Any]":
    """Answer one question: `text` for its token ids, or `ids` for logits, and with `hidden` for hidden states.

    Args:
        question: one of these.
        model: of transformers.
        tokenizer: its tokenizer.
        out: folder for arrays.
    """
    import numpy as np
    import torch

    if "text" in question:
        return {"ids": list(tokenizer(question["text"], add_special_tokens=False)["input_ids"])}
    hidden = bool(question.get("hidden"))
    row = torch.tensor([question["ids"]], device=model.device)
    with torch.no_grad():
        found = model(input_ids=row, use_cache=False, **({"output_hidden_states": True} if hidden else {}))
    if hidden:
        states = getattr(found, "hidden_states", None)
        if not states or len({state.shape for state in states}) > 1:
            return {"file": None}
        values = torch.cat([state.float().cpu() for state in states])
    else:
        values = found.logits[0].float().cpu()
    file = out / ("hidden.npy" if hidden else "logits.npy")
    np.save(file, values.numpy())
    return {"file": str(file)}


def serve(questions: TextIO, answers: TextIO, model: Any, tokenizer: Any, out: Path) -> None:
    """Answer questions until there are no more."""
    for line in questions:
        try:
            reply = answer(json.loads(line), model, tokenizer, out)
        except Exception as error:  # the asker shows it
            reply = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def load(folder: Path, trust_remote_code: bool) -> "tuple[Any, Any]":
    """The model in float32 and its tokenizer."""
    import torch
    import transformers

    trusted = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    kind = getattr(transformers, names[0], transformers.AutoModelForCausalLM)
    loaded: Any = kind.from_pretrained(folder, dtype=torch.float32, output_loading_info=True, **trusted)
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{missing[0]} and {len(missing) - 1} other tensors are not found")
    model = model.eval()
    if torch.cuda.is_available():
        model = model.to("cuda")
    return model, transformers.AutoTokenizer.from_pretrained(folder, **trusted)


def main() -> None:
    """Load the model and answer."""
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the folder of this file, whose modules are no libraries
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what libraries print is no answer
    folder, trusted, out = Path(sys.argv[1]), sys.argv[2] == "True", Path(sys.argv[3])
    try:
        model, tokenizer = load(folder, trusted)
        first = facts(model, tokenizer)
    except Exception as error:
        first = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"}
    answers.write(json.dumps(first) + "\n")
    answers.flush()
    if "error" not in first:
        serve(sys.stdin, answers, model, tokenizer, out)


if __name__ == "__main__":
    main()
