"""Writes the merged model, and reads it with plain transformers."""

from functools import partial

import transformers

from hub.tasks.export.job import Job, Written
from hub.tasks.export.readers import open_folder


def write(job: Job) -> list[Written]:
    """Write the model into the folder of the job.

    Raises:
        ModelError: it can't be merged.
    """
    folder = job.merged()
    model = job.finished.base
    return [
        Written(
            kind="model",
            path=folder,
            open=partial(open_folder, folder, model.trust_remote_code),
            made_by={"transformers": transformers.__version__},
        )
    ]
