"""Lets a process import a mutant in the place of its module."""

import importlib.machinery
from types import CodeType

from mutants.mutate import Module, Mutant


def use_source(module: Module, mutant: Mutant) -> None:
    """From now on the import of a module gives a mutant of it.

    Args:
        module: the file.
        mutant: one of its mutants.
    """
    real = importlib.machinery.SourceFileLoader.get_code

    def get_code(self: importlib.machinery.SourceFileLoader, name: str) -> CodeType | None:
        return module.code(mutant) if self.path == module.name else real(self, name)

    importlib.machinery.SourceFileLoader.get_code = get_code  # type: ignore[method-assign]
