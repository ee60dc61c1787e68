"""The merged model that exporters share: made once, and its weights removed as soon as no exporter reads them any more."""

import shutil
from collections.abc import Callable
from pathlib import Path

_WEIGHTS = "*.safetensors"


class SharedModel:
    """One plain model of transformers in a folder that is nobody's export."""

    def __init__(self, folder: Path, make: Callable[[Path], Path]) -> None:
        self._folder, self._make = folder, make

    def whole(self) -> Path:
        """The folder with the model, weights and all. It is made if it is not there."""
        if not any(self._folder.glob(_WEIGHTS)):
            shutil.rmtree(self._folder, ignore_errors=True)  # settings without weights
            self._make(self._folder)
        return self._folder

    def settings(self) -> Path:
        """The folder with config, generation config and tokenizer. Its weights may be gone."""
        return self._folder if self._folder.is_dir() else self.whole()

    def let_go(self) -> None:
        """Remove the weights. For a model of 8 billion weights these are 15 GiB of the disk."""
        for file in self._folder.glob(_WEIGHTS):
            file.unlink()
