"""Lets a process that a test starts import a mutant: Python imports this by itself if the folder is on its path."""

import json
import os

if "HUB_MUTANT" in os.environ:
    from mutants.belongs import ROOT
    from mutants.mutate import Module
    from mutants.source import use_source

    chosen = json.loads(os.environ["HUB_MUTANT"])
    path = ROOT / chosen["file"]
    module = Module(path.read_text(encoding="utf-8"), str(path))
    use_source(module, module.mutants[chosen["number"]])
