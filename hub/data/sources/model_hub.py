"""Data sets of the model hub, through `datasets`: by name, subset and split, as a whole or as a stream."""

from collections.abc import Iterator
from typing import Any

from hub.data.sources.files import shorten
from hub.errors import DataError, one_line

TIMEOUT_SECONDS = 10


def read_model_hub(name: str, subset: str | None, split: str, stream: bool) -> Iterator[dict[str, Any]]:
    """The rows of a data set.

    Args:
        name: `organisation/name`.
        subset: which of its parts (there it is called config); None where it has one only.
        split: of that part.
        stream: no more than one row is to be in memory.

    Raises:
        DataError: there is no such data set, part or split, or the model hub can't be reached.
    """
    from datasets import load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not HF_HUB_OFFLINE:
        # Asked first, since load_dataset retries for half a minute where there is no network.
        try:
            HfApi().dataset_info(name, timeout=TIMEOUT_SECONDS)
        except GatedRepoError:
            raise DataError(
                f"{name}: this data set must be asked for. Accept its terms on its page, then: hf auth login"
            ) from None
        except RepositoryNotFoundError:
            raise DataError(
                f"{name}: no such file here, and no such data set on the model hub. If it is private: hf auth login"
            ) from None
        except Exception as error:  # each version of huggingface_hub has other classes for a missing network
            raise DataError(
                f"{name}: no such file here, and the model hub can't be reached ({one_line(error)}). "
                "Give a local file, or set HF_HUB_OFFLINE=1 to take a data set that was loaded before"
            ) from None
    try:
        rows = load_dataset(name, subset, split=split, streaming=stream)
    except Exception as error:  # load_dataset has no class of its own for its errors
        reason = one_line(error)
        raise DataError(f"{name}: the data set can't be loaded ({reason}).{_choice(name, subset, split)}") from None
    yield from map(dict, rows)


def _choice(name: str, subset: str | None, split: str) -> str:
    """What there is to choose from, where no part was chosen or one that does not exist."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    try:
        subsets = get_dataset_config_names(name)
        if subset not in (subsets if subset or len(subsets) > 1 else [None]):
            return f" Type data.subset=NAME; there are {shorten(', '.join(subsets))}"
        splits = get_dataset_split_names(name, subset)
        return "" if split in splits else f" Type data.split=NAME; there are {shorten(', '.join(splits))}"
    except Exception:  # what there is can't be found out: the first error stands
        return ""
