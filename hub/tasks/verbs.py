"""The verbs on finished models. Each is a folder here whose `verb.py` imports neither torch nor transformers."""

from hub.config.finished import FinishedVerb

_VERBS: tuple[FinishedVerb, ...] = ()

FINISHED = {verb.name: verb for verb in _VERBS}
