"""The verbs on finished models. Each is a folder here whose `verb.py` imports neither torch nor transformers."""

from hub.config.finished import FinishedVerb
from hub.tasks.report.verb import VERB as REPORT

_VERBS: tuple[FinishedVerb, ...] = (REPORT,)

FINISHED = {verb.name: verb for verb in _VERBS}
