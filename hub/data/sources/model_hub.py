"""Datasets of the model hub, through the library `datasets`: by name, subset and split, as a whole or as a stream."""

from collections.abc import Iterator

from hub.data.json_values import JsonObject
from hub.data.sources.arrow_rows import rows_of_dataset
from hub.data.sources.files import shorten
from hub.errors import DataError, one_line

TIMEOUT_SECONDS = 10


def read_model_hub(name: str, subset: str | None, split: str, stream: bool) -> Iterator[JsonObject]:
    """The rows of a dataset.

    Args:
        name: `organization/name`.
        subset: the model hub calls it config. None: its only one.
        split: of that subset.
        stream: hold no more than one row in memory.

    Raises:
        DataError: there is no such dataset, subset or split, or the model hub can't be reached.
    """
    from datasets import Dataset, IterableDataset, load_dataset
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    if not HF_HUB_OFFLINE:
        # Asked first, since load_dataset retries for half a minute without a network.
        try:
            HfApi().dataset_info(name, timeout=TIMEOUT_SECONDS)
        except GatedRepoError:
            raise DataError(f"{name}: this dataset is gated. Accept its terms on its page, then type hf auth login") from None
        except RepositoryNotFoundError:
            raise DataError(
                f"{name}: no such file here, and no such dataset on the model hub. If it is private, type hf auth login"
            ) from None
        except Exception as error:  # each version of huggingface_hub has other classes for a missing network
            raise DataError(
                f"{name}: no such file here, and the model hub can't be reached ({one_line(error)}). "
                "Give a local file, or set HF_HUB_OFFLINE=1 to use a dataset that was loaded before"
            ) from None
    try:
        rows: Dataset | IterableDataset
        if stream:
            rows = load_dataset(name, subset, split=split, streaming=True)
        else:
            rows = load_dataset(name, subset, split=split, streaming=False)
    except Exception as error:  # load_dataset has no class of its own for its errors
        reason = one_line(error)
        raise DataError(f"{name}: the dataset can't be loaded ({reason}).{_choice(name, subset, split)}") from None
    yield from rows_of_dataset(rows)


def _choice(name: str, subset: str | None, split: str) -> str:
    """The subsets or splits to choose from, where none was chosen or one that does not exist."""
    from datasets import get_dataset_config_names, get_dataset_split_names

    try:
        subsets = get_dataset_config_names(name)
        if subset not in (subsets if subset or len(subsets) > 1 else [None]):
            return f" Type data.subset=NAME; there are {shorten(', '.join(subsets))}"
        splits = get_dataset_split_names(name, subset)
        return "" if split in splits else f" Type data.split=NAME; there are {shorten(', '.join(splits))}"
    except Exception:  # the choice is unknown, so the first error stands alone
        return ""
