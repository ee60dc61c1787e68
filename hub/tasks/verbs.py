"""The verbs on finished models. Each is a folder here whose `verb.py` imports neither torch nor transformers."""

from hub.config.finished import FinishedVerb
from hub.tasks.average.verb import VERB as AVERAGE
from hub.tasks.chat.verb import VERB as CHAT
from hub.tasks.continual.verb import VERB as CONTINUAL
from hub.tasks.evaluate.verb import VERB as EVALUATE
from hub.tasks.export.verb import VERB as EXPORT
from hub.tasks.generate.verb import VERB as GENERATE
from hub.tasks.report.verb import VERB as REPORT
from hub.tasks.scale.verb import VERB as SCALE
from hub.tasks.serve.verb import VERB as SERVE

_VERBS: tuple[FinishedVerb, ...] = (
    CHAT,
    GENERATE,
    SERVE,
    EVALUATE,
    REPORT,
    EXPORT,
    SCALE,
    AVERAGE,
    CONTINUAL,
)

FINISHED = {verb.name: verb for verb in _VERBS}
