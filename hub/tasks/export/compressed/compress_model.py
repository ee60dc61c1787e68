"""Compresses a model folder by llmcompressor: a script that runs in the environment that has it.

    python compress_model.py JOB.json

It imports nothing of the hub. Lines for the user begin with `SAY`, the reason of a refusal with `REFUSE`, the result with
`DONE`.
"""

import json
import shutil
import sys
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

SAY, REFUSE, DONE = "hub-say: ", "hub-refuse: ", "hub-done: "

GROUPS = (128, 64, 32)
"""Sizes of groups of 4-bit weights that share a scale, the best for speed first: those that vLLM has kernels for."""

ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
"""Names of layers that choose experts. They are small, and an error in them sends a token elsewhere."""

STATE_SPACE = frozenset({"linear_attn", "x_proj", "dt_proj"})
"""Names of parts with a recurrent state, in which errors add up. llmcompressor's own recipes leave them out."""

DTYPES = {"w8a8_fp8": "FP8_DYNAMIC", "w8a8_int8": "W8A8"}
"""Schemes of 8 bits, as llmcompressor calls them: weights by output channel, activations by token when they come."""


class RefusedError(Exception):
    """The model can't be compressed like this. The text is for the user."""


def layers_to_compress(model: Any) -> tuple[list[str], list[str]]:
    """Names of linear layers that are compressed, and of those that stay as they are.

    Those within the layers of the language model are compressed. The output layer, embeddings, towers of images and sound, and
    what chooses experts stay.

    Args:
        model: of transformers, or any module.
    """
    import torch

    decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
    inside = {id(module) for name, module in decoder.named_modules() if _is_in_a_layer(name)}
    output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    compressed: list[str] = []
    kept: list[str] = []
    for name, module in model.named_modules():
        if not isinstance(module, torch.nn.Linear):
            continue
        parts = name.split(".")
        stays = module is output or id(module) not in inside or parts[-1] in ROUTERS or STATE_SPACE.intersection(parts)
        (kept if stays else compressed).append(name)
    return compressed, kept


def group_size(widths: "dict[str, int]") -> int:
    """The largest size of groups that divides all widths.

    Args:
        widths: number of inputs of each layer, by its name.

    Raises:
        RefusedError: there is none.
    """
    for size in GROUPS:
        if all(width % size == 0 for width in widths.values()):
            return size
    name, width = next((name, width) for name, width in widths.items() if width % GROUPS[-1])
    sizes = ", ".join(map(str, GROUPS[:-1]))
    raise RefusedError(
        f"4-bit weights share scales in groups of {sizes} or {GROUPS[-1]}, and none of these divides the {width} inputs of "
        f"{name}. Type scheme=w8a8_fp8 or scheme=w8a8_int8, which have no groups"
    )


def complete(source: Path, made: Path) -> None:
    """Give a compressed folder all that the model's own has: its config, tokenizer, template, and tensors that were not loaded.

    Args:
        source: folder of the model.
        made: folder with compressed weights and a config that describes them.
    """
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = json.loads((made / "config.json").read_text(encoding="utf-8"))["quantization_config"]
    for file in source.rglob("*"):
        place = made / file.relative_to(source)
        if file.is_file() and not _is_weights(file) and ".cache" not in file.relative_to(source).parts:
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, place)
    (made / "config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    (made / "recipe.yaml").unlink(missing_ok=True)
    missing = sorted(_layers(source).keys() - _layers(made).keys() - _tied(source))
    if missing:
        _carry(source, made, missing)


def compress(job: "dict[str, Any]") -> "dict[str, Any]":
    """Compress a model.

    Args:
        job: `model`, its folder; `out`; `scheme`; `rows`, token ids; `trust_remote_code`.

    Returns:
        `group_size`, the number of layers that are `compressed`, and the `kept` ones by the last part of their names.
    """
    import torch
    import transformers
    from llmcompressor import oneshot
    from llmcompressor.modeling.moe.linearize import linearize_moe

    source, out = Path(job["model"]), Path(job["out"])
    trusted = {"trust_remote_code": bool(job["trust_remote_code"]), "local_files_only": True}
    kind = model_class(source, transformers)
    model = kind.from_pretrained(source, dtype="auto", **trusted)
    linearize_moe(model)
    tokenizer = transformers.AutoTokenizer.from_pretrained(source, **trusted)
    compressed, kept = layers_to_compress(model)
    if not compressed:
        raise RefusedError(
            f"{type(model).__name__} has no linear layers that can be compressed (those of GPT-2 are of another kind, "
            "Conv1D). Type to=gguf or to=merged"
        )
    refuse_experts(job["scheme"], type(model).__name__, compressed, _layers(source).keys())
    found: dict[str, Any] = {"compressed": len(compressed), "kept": sorted({name.split(".")[-1] for name in kept})}
    recipe = _recipe(job, model, compressed, kept, found)
    rows = [{"input_ids": torch.tensor(row)} for row in job["rows"]]
    data = {"dataset": torch.utils.data.DataLoader(rows, batch_size=1)} if rows else {}  # type: ignore[arg-type,var-annotated]
    on = f", calibrated on {len(rows)} rows with {sum(map(len, job['rows'])):,} tokens" if rows else ", without calibration"
    _say(f"compressing {len(compressed)} linear layers{on}")
    oneshot(model=model, recipe=recipe, tokenizer=tokenizer, trust_remote_code_model=trusted["trust_remote_code"], **data)
    model.save_pretrained(out, save_compressed=True)
    complete(source, out)
    return found


def refuse_experts(scheme: str, name: str, compressed: "list[str]", stored: "Collection[str]") -> None:
    """Refuse experts that programs would not find, or not read, in the compressed model.

    Args:
        scheme: of the weights.
        name: of the class of the model.
        compressed: names of its layers. Each expert has layers of its own.
        stored: names of the tensors in its folder.

    Raises:
        RefusedError: there are such.
    """
    experts = [layer for layer in compressed if any(part.isdigit() for part in layer.partition(".experts.")[2].split("."))]
    if not experts:
        return
    if scheme == "w8a8_int8":
        raise RefusedError(
            f"transformers does not read experts in 8-bit integers, so {name} could not be checked. Type scheme=w8a8_fp8 or "
            "scheme=w4a16"
        )
    other = next((layer for layer in experts if f"{layer}.weight" not in stored), None)
    if other is not None:
        theirs = next((tensor for tensor in sorted(stored) if ".experts." in tensor), "other tensors")
        raise RefusedError(
            f"{name} stores its experts as {theirs}, and llmcompressor would write {other}, which is not found again. Type "
            "to=gguf or to=merged"
        )


def model_class(folder: Path, transformers: Any) -> Any:
    """The class of a model folder: the one its config names, so that towers of images and sound are there."""
    names = json.loads((folder / "config.json").read_text(encoding="utf-8")).get("architectures") or [""]
    return getattr(transformers, names[0], transformers.AutoModelForCausalLM)


def _recipe(job: "dict[str, Any]", model: Any, compressed: "list[str]", kept: "list[str]", found: "dict[str, Any]") -> Any:
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier

    scheme = job["scheme"]
    if scheme in DTYPES:
        modifier = GPTQModifier if job["rows"] else QuantizationModifier
        return modifier(targets=["Linear"], scheme=DTYPES[scheme], ignore=kept)
    size = group_size({name: model.get_submodule(name).in_features for name in compressed})
    found["group_size"] = size
    _say(f"groups of {size} weights share a scale")
    weights = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=size)
    groups = {"group_0": QuantizationScheme(targets=["Linear"], weights=weights)}
    return GPTQModifier(config_groups=groups, ignore=kept)


def _is_in_a_layer(name: str) -> bool:
    """Whether a module lies in a numbered part."""
    return any(part.isdigit() for part in name.split("."))


def _is_weights(file: Path) -> bool:
    return file.suffix in (".safetensors", ".bin", ".pt") or file.name.endswith(".index.json")


def _layers(folder: Path) -> "dict[str, Path]":
    """The tensors of a folder by the name of what they belong to, with the file: compressed ones have other last parts."""
    from safetensors import safe_open

    found = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - the file is no dictionary
                for ending in ("_packed", "_scale", "_shape", "_zero_point"):
                    name = name.removesuffix(f"weight{ending}") + "weight" if name.endswith(f"weight{ending}") else name
                found[name] = file
    return found


def _tied(folder: Path) -> "set[str]":
    """Names of an output layer that is the embedding, which needs no tensor of its own."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    tied = config.get("tie_word_embeddings") or config.get("text_config", {}).get("tie_word_embeddings")
    return {name for name in _layers(folder) if name.split(".")[-2:] == ["lm_head", "weight"]} if tied else set()


def _carry(source: Path, made: Path, names: "list[str]") -> None:
    """Copy tensors that transformers does not load, such as layers that foretell several tokens, as they are."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    places, tensors = _layers(source), {}
    for name in names:
        with safe_open(places[name], "pt") as file:
            tensors[name] = file.get_tensor(name)
    file = "model-carried.safetensors"
    save_file(tensors, made / file, metadata={"format": "pt"})
    index = made / "model.safetensors.index.json"
    if index.is_file():
        values = json.loads(index.read_text(encoding="utf-8"))
    else:
        (made / "model.safetensors").rename(made / "model-compressed.safetensors")
        with safe_open(made / "model-compressed.safetensors", "pt") as stored:
            values = {"metadata": {}, "weight_map": dict.fromkeys(stored.keys(), "model-compressed.safetensors")}
    values["weight_map"].update(dict.fromkeys(names, file))
    index.write_text(json.dumps(values, indent=2), encoding="utf-8")
    _say(f"{len(names)} tensors that transformers does not load are kept as they are")


def _say(line: str) -> None:
    print(f"{SAY}{line}", flush=True)


def _reasons(error: BaseException) -> "Iterator[str]":
    while True:
        yield f"{type(error).__name__}: {error}"
        cause = error.__cause__ or error.__context__
        if cause is None:
            return
        error = cause


def main() -> int:
    """Do the job that is described in the file named on the command line."""
    if not sys.flags.safe_path:
        sys.path.pop(0)  # the folder of this file, whose modules are no libraries
    job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    try:
        found = compress(job)
    except RefusedError as error:
        print(f"{REFUSE}{error}", flush=True)
        return 2
    except Exception as error:
        text = " ".join(list(_reasons(error))[-1].split())
        print(f"{REFUSE}llmcompressor failed with {text[:400]}", flush=True)
        raise
    print(f"{DONE}{json.dumps(found)}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
