"""The verbs on finished models. Each is a folder here whose `verb.py` imports neither torch nor transformers."""

from hub.config.finished import FinishedVerb
from hub.tasks.evaluate.verb import VERB as EVALUATE

_VERBS: tuple[FinishedVerb, ...] = (EVALUATE,)

FINISHED = {verb.name: verb for verb in _VERBS}
