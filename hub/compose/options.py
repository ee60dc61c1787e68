"""Sets options of a config one by one. An option or a value that does not exist gives one line, with the nearest names."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from difflib import get_close_matches
from typing import Any, get_args, get_origin

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hub.config.option import list_item, type_words
from hub.config.schema import PARTS, AlgoConfig, RunConfig
from hub.errors import did_you_mean
from hub.plugins.offers import Algorithm

GROUPS = (*PARTS, "experiment")
"""The groups in the defaults list of conf/config.yaml. Plugins and --config-dir may add others."""


ELSEWHERE = {
    "adapter": "algo",
    "algorithm": "algo",
    "alpha": "algo.lora_alpha",
    "base_model": "model.path",
    "batch_size": "algo.effective_batch_size",
    "bf16": "model.dtype",
    "chat_template": "data.template",
    "cutoff_len": "data.max_seq_len",
    "dataset": "data.path",
    "dataset_name": "data.path",
    "dataset_path": "data.path",
    "datasets": "data.mix",
    "dropout": "algo.lora_dropout",
    "eval_steps": "algo.eval_every_steps",
    "file": "data.path",
    "files": "data.path",
    "finetuning_type": "algo",
    "fp16": "model.dtype",
    "gradient_accumulation_steps": "algo.effective_batch_size",
    "logging_steps": "algo.log_every_steps",
    "lora_rank": "algo.lora_r",
    "lr": "algo.learning_rate",
    "lr_scheduler_type": "algo.lr_scheduler",
    "max_length": "data.max_seq_len",
    "max_seq_length": "data.max_seq_len",
    "micro_batch_size": "algo.effective_batch_size",
    "model_name": "model.path",
    "model_name_or_path": "model.path",
    "model_path": "model.path",
    "num_gpus": "launch.nproc_per_node",
    "num_train_epochs": "algo.num_epochs",
    "nproc": "launch.nproc_per_node",
    "optim": "algo.optimizer",
    "output": "output_dir",
    "output_path": "output_dir",
    "per_device_train_batch_size": "algo.effective_batch_size",
    "r": "algo.lora_r",
    "rank": "algo.lora_r",
    "report_to": "track",
    "resume_from_checkpoint": "resume",
    "save_steps": "algo.save_every_steps",
    "save_total_limit": "algo.keep_checkpoints",
    "scheduler": "algo.lr_scheduler",
    "sequence_len": "data.max_seq_len",
    "steps": "algo.max_steps",
    "torch_dtype": "model.dtype",
    "train_file": "data.path",
    "val_size": "data.eval_fraction",
    "validation_file": "data.eval_path",
    "wandb_project": "track.project",
}
"""Names of options in other trainers -> the option or the group here, for a hint."""


def library_message(error: Exception) -> str:
    """What Hydra or OmegaConf said, without its details about itself, in one line."""
    lines = [line.strip() for line in str(error).partition("\nConfig search path")[0].splitlines()]
    message = [line for line in lines if line and not line.startswith(("full_key:", "object_type=", "reference_type="))]
    return " ".join(message) or type(error).__name__


def place_of(node: DictConfig, name: str) -> tuple[Any, str]:
    """The section of the config that contains an option, or None, and the option's last name."""
    *parents, last = name.split(".")
    place: Any = node
    for step in parents:
        place = place[step] if OmegaConf.is_dict(place) and step in place else None
    return (place if OmegaConf.is_dict(place) else None), last


def exists(node: DictConfig, name: str) -> bool:
    """Whether a config has an option of this name."""
    place, last = place_of(node, name)
    return place is not None and last in place


def set_option(node: DictConfig, name: str, value: Any, shown: str, algorithms: Mapping[str, Algorithm]) -> str | None:
    """Set one option. Returns the problem if that fails."""
    place, last = place_of(node, name)
    # data.columns has arbitrary keys, and a plugin's option may have them, too.
    is_open = place is not None and not is_dataclass(OmegaConf.get_type(place))
    if not (is_open or exists(node, name)):
        return _unknown(node, name, algorithms)
    value = in_list(place, last, value)
    item_type = list_item(OmegaConf.get_type(place), last)
    if item_type and (problem := _list_problem(item_type, name, value, shown)):
        return problem
    is_nested = is_several(value) and any(is_several(part) or isinstance(part, Mapping) for part in value)
    try:
        if is_nested and item_type is None and is_list(place, last):
            raise OmegaConfBaseException  # OmegaConf takes any list for a list of texts
        if is_no_bool(OmegaConf.get_type(place), last, value):
            raise OmegaConfBaseException
        if value == "???":
            raise OmegaConfBaseException("??? marks a missing value")
        OmegaConf.update(node, name, value, force_add=is_open or _is_open(place, last))
    except OmegaConfBaseException as error:
        several = ". Several sources are written data.mix=[{path: A}, {path: B}]" if name == "data.path" else ""
        allowed = type_words(OmegaConf.get_type(place), last) or library_message(error)
        return f"{name}={shown} is not allowed. Allowed: {allowed}{several if isinstance(value, list) else ''}"
    return None


def is_list(place: Any, last: str) -> bool:
    """Whether an option of a section is a list by its type."""
    return OmegaConf.is_dict(place) and last in place and OmegaConf.is_list(place._get_node(last))


def is_list_option(name: str, algorithms: Mapping[str, Algorithm]) -> bool:
    """Whether the option of a full name is a list, of any algorithm."""
    part, _, last = name.rpartition(".")
    sections: list[Any] = [item.type for item in fields(RunConfig) if item.name == part and is_dataclass(item.type)]
    if part == "algo":
        sections = [algorithm.config for algorithm in algorithms.values()]
    kinds = [item.type for section in sections for item in fields(section) if item.name == last]
    return any(get_origin(one) is list for kind in kinds for one in (kind, *get_args(kind)))


def is_several(value: Any) -> bool:
    """Whether a value is a list of any type, OmegaConf's too."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


def in_list(place: Any, last: str, value: Any) -> Any:
    """The value of an option. For a list that takes such values it is a list: `f1` stands for `[f1]`."""
    if not is_list(place, last) or value in (None, "", "???") or is_several(value):
        return value
    takes_mappings = list_item(OmegaConf.get_type(place), last) is not None
    return [value] if isinstance(value, Mapping) == takes_mappings else value


def is_no_bool(cls: Any, name: str, value: Any) -> bool:
    """Whether a number other than 0 and 1 is given for an option that is true or false: OmegaConf takes each for true."""
    kinds = {item.name: item.type for item in fields(cls)} if is_dataclass(cls) else {}
    return kinds.get(name) in (bool, bool | None) and not isinstance(value, str | None) and value not in (0, 1)


def _is_open(place: Any, last: str) -> bool:
    """Whether an option is a dict with arbitrary keys."""
    current = place._get_node(last) if last in place else None
    return OmegaConf.is_dict(current) and not is_dataclass(OmegaConf.get_type(current))


def _list_problem(item_type: Any, name: str, value: Any, shown: str) -> str | None:
    """What is wrong with a list of dataclasses such as data.mix, down to a single option of an item."""
    known = [item.name for item in fields(item_type)]
    form = f"Allowed: a list of {{{', '.join(known)}}}, e.g. {name}=[{{{known[0]}: VALUE}}, ...]"
    if not isinstance(value, list | tuple):
        return f"{name}={shown} is not allowed. {form}"
    for number, part in enumerate(value):
        if not isinstance(part, Mapping):
            return f"{name}[{number}]={part} is not allowed. {form}"
        for key, inner in part.items():
            if key not in known:
                near = did_you_mean(str(key), known) or f" Allowed: {', '.join(known)}"
                return f"{name}[{number}].{key}: there is no such option.{near}"
            try:
                OmegaConf.update(OmegaConf.structured(item_type), key, inner)
            except OmegaConfBaseException:
                return f"{name}[{number}].{key}={inner} is not allowed. Allowed: {type_words(item_type, key)}"
    return None


def _own_names(options: Any) -> set[str]:
    return {item.name for item in fields(options)}


def full_names(word: str, algorithms: Mapping[str, Algorithm]) -> list[str]:
    """The options and groups that a word may stand for: its last part, or what other trainers call it.

    Args:
        word: `learning_rate`, `lr` or `algo.learning_rate`.
        algorithms: the installed algorithms.
    """
    known = dict.fromkeys([*GROUPS, *_names(RunConfig, AlgoConfig)])
    known |= {f"algo.{name}": None for algorithm in algorithms.values() for name in sorted(_own_names(algorithm.config))}
    last = word.rpartition(".")[2]
    exact = [name for name in known if word == name] or [name for name in known if last == name.rpartition(".")[2]]
    return exact or [name for name in [ELSEWHERE.get(last)] if name in known]


def _unknown(node: DictConfig, name: str, algorithms: Mapping[str, Algorithm]) -> str:
    """The error line for an option that does not exist."""
    own: Any = OmegaConf.get_type(node.algo)
    first, _, last = name.rpartition(".")
    if last == "name" and first in PARTS:
        return f"{name}: there is no such option. A choice is written {first}=NAME"
    elsewhere = ELSEWHERE.get(last, "")
    here = elsewhere.removeprefix("algo.") if elsewhere.startswith("algo.") else last
    having = sorted(a for a, algorithm in algorithms.items() if here in _own_names(algorithm.config))
    if own is AlgoConfig and first == "algo" and having and (resumed := node.get("resume")) not in (None, "", "auto"):
        run = f"{node.get('output_dir')}/latest" if resumed == "latest" else resumed
        return (
            f"{name}: resume={resumed} without algo=NAME takes all options from the run. To change some type python -m hub "
            f"{run}/run.yaml resume={resumed} {name}=VALUE resume_with_changes=true"
        )
    if own is AlgoConfig and first == "algo" and (having or not algorithms):
        return f"{name}: choose the algorithm first. Type algo=NAME, one of: {', '.join(having) or 'none is installed'}"
    if first in ("", "algo") and having and here not in _own_names(own) and own is not AlgoConfig:
        return (
            f"{name}: this algorithm has no such option; algo.{here} is of algo={' and algo='.join(having)}. "
            "Leave it out, or choose that"
        )
    known = list(_names(RunConfig, own))
    if own is AlgoConfig:
        known += [f"algo.{item.name}" for algorithm in algorithms.values() for item in fields(algorithm.config)]
    if elsewhere in (*known, *GROUPS):
        return f"{name}: there is no such option. Here it is {elsewhere}"
    is_last_word = not first and any(option.endswith(f".{name}") for option in known)
    near = "" if first or is_last_word else did_you_mean(name, [*GROUPS, *(word for word in known if "." not in word)])
    near = near or _nearest(name, known)
    chosen = next((algo for algo, algorithm in algorithms.items() if algorithm.config is own), "NAME")
    return f"{name}: there is no such option.{near or f' python -m hub show algo={chosen} lists all.'}"


def _nearest(name: str, known: Collection[str]) -> str:
    """A sentence with the full names of the options nearest to a name: compared as a whole, else by the last word."""
    if whole := get_close_matches(name, known, n=1, cutoff=0.8):
        return f" Did you mean {whole[0]}?"
    by_last: dict[str, list[str]] = {}
    for option in dict.fromkeys(known):
        by_last.setdefault(option.rsplit(".", 1)[-1], []).append(option)
    part, _, last = name.lower().replace("-", "_").rpartition(".")
    words = [last] if last in by_last else get_close_matches(last, by_last, n=2, cutoff=0.62)
    options = [option for word in words for option in by_last[word]]
    same_part = [option for option in options if option.split(".")[0] == part]
    if part in PARTS and not same_part:  # an option of another section only if the word is almost the same
        options = [option for word in get_close_matches(last, words, cutoff=0.85) for option in by_last[word]]
    return f" Did you mean {' or '.join((same_part or options)[:3])}?" if options else ""


def _names(cls: Any, algo: Any, prefix: str = "") -> Iterator[str]:
    for item in fields(cls):
        part = algo if item.name == "algo" and not prefix else item.type
        if is_dataclass(part):
            yield from _names(part, algo, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}"
