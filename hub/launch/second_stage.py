"""Training that begins with the result of another one: `model.path` names a run, or an adapter."""

import os
from dataclasses import fields, replace
from pathlib import Path

from hub.compose import runfile
from hub.config.schema import AlgoConfig, ModelConfig, RunConfig
from hub.config.tokens import TokenOptions
from hub.models.finished import adapter_folder, adapter_values, finished_adapter


def with_stage(cfg: RunConfig) -> RunConfig:
    """With the model of the run or the base of the adapter that `model.path` names, and the options of the adapter.

    Raises:
        ModelError: the adapter can't be read, or its base is gone.
        ConfigError: the algorithm can't train it further, or its options say something else.
    """
    cfg = replace(cfg, model=_model(cfg.model))
    if cfg.model.adapter is None or type(cfg.algo) is AlgoConfig:
        return cfg
    folder = Path(os.path.expanduser(cfg.model.adapter))
    return replace(cfg, algo=cfg.algo.with_adapter(adapter_values(folder), cfg.model.adapter))


def _model(model: ModelConfig) -> ModelConfig:
    folder = Path(os.path.expanduser(model.path))
    if not model.path or model.adapter is not None or os.path.isfile(folder / "config.json"):
        return model
    if os.path.isfile(folder / "run.yaml"):
        folder = folder / "model"
        if os.path.isfile(folder / "config.json"):
            return replace(model, path=str(folder))
    if (adapter := adapter_folder(str(folder))) is None:
        return model
    base = finished_adapter(adapter, model).base
    run_file = adapter.parent / "run.yaml"
    if run_file.is_file() and not model.changes_vocab:
        # The tokens that the run added are rows of its base. What runs code is never taken from a run's folder.
        before = runfile.read(run_file).model
        base = replace(base, **{item.name: getattr(before, item.name) for item in fields(TokenOptions)})
    return replace(base, adapter=str(adapter))
