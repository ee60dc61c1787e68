"""The verbs on finished models. Each is a folder here whose `verb.py` imports neither torch nor transformers."""

from hub.config.finished import FinishedVerb
from hub.tasks.average.verb import VERB as AVERAGE
from hub.tasks.evaluate.verb import VERB as EVALUATE
from hub.tasks.scale.verb import VERB as SCALE

_VERBS: tuple[FinishedVerb, ...] = (EVALUATE, SCALE, AVERAGE)

FINISHED = {verb.name: verb for verb in _VERBS}
