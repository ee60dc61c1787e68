"""Names of weights that a wrapper has changed (torch.compile, DDP, FSDP, PEFT, a model of images), and how to undo that."""

import re
from collections.abc import Collection, Iterator

WRAPPERS = ("_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.")
"""What a wrapper around the whole model puts before every name: torch.compile, DDP and DeepSpeed, PEFT, FSDP."""

INNER = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
"""What a wrapper around a part of the model, such as one layer, puts into the names of that part."""

TEXT_PARTS = (("language_model.", ""), ("model.language_model.", "model."))
"""Where models of images and text have their language model -> where the language model alone has the same weights."""

_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")


def candidates(names: Collection[str]) -> Iterator[dict[str, str]]:
    """Ways to undo wrappers, as `key_mapping` of transformers' `from_pretrained`, from the likeliest on.

    A prefix counts as a wrapper's only if every name has it, so names of two kinds in one folder give no candidate.

    Args:
        names: all names of tensors in the files.
    """
    mapping: dict[str, str] = {}
    plain, prefix = list(names), ""
    while plain and (wrapper := next((w for w in WRAPPERS if all(name.startswith(w) for name in plain)), "")):
        prefix += wrapper
        plain = [name.removeprefix(wrapper) for name in plain]
    if prefix:
        mapping[f"^{re.escape(prefix)}"] = ""
    for token in INNER:
        inside = f".{token}."
        without = [name.replace(inside, ".") for name in plain]
        # Layers 0 with and 1 without the wrapper are two saves in one folder: their names would become alike.
        if without != plain and len(_kinds(without)) == len(_kinds(plain)) and len(set(without)) == len(plain):
            mapping[rf"\.{token}\."] = "."
            plain = without
    if mapping:
        yield dict(mapping)
    for wrapped, alone in TEXT_PARTS:
        in_part = [name for name in plain if name.startswith(wrapped)]
        if in_part and len(in_part) == sum(name.startswith(wrapped.split(".")[0]) for name in plain):
            yield mapping | {f"^{re.escape(wrapped)}": alone}


def words_of(mapping: dict[str, str]) -> str:
    """The parts of names that a mapping removes, for a message."""
    removed = [re.sub(r"^\^|\\", "", pattern).strip(".") + "." for pattern in mapping]
    return " and ".join(removed)


def _kinds(names: Collection[str]) -> set[str]:
    """The names with a star for each number, such as that of a layer."""
    return {_NUMBER.sub("*", name) for name in names}
