"""The exporter `compressed`: what it is called, and what must be there."""

from collections.abc import Iterator

from hub.config.schema import RunConfig
from hub.plugins.offers import Exporter
from hub.tasks.export.compressed.interpreter import problem_of_python

CALIBRATED = frozenset({"w4a16", "w8a8_int8"})
"""Schemes whose weights are rounded by what rows of text send through the model."""


def problems(cfg: RunConfig) -> Iterator[str]:
    """A line for each thing that stands in the way."""
    wanted = [scheme for scheme in cfg.export.scheme if scheme in CALIBRATED]
    if wanted and not (cfg.data.path or cfg.data.mix):
        yield no_rows(wanted[0])
    doubled = next((one for one in cfg.export.scheme if cfg.export.scheme.count(one) > 1), None)
    if doubled is not None:
        yield f"export.scheme={','.join(cfg.export.scheme)} has {doubled} twice. Leave one out"
    if line := problem_of_python(cfg.export.python):
        yield line


def no_rows(scheme: str) -> str:
    """The line on a scheme that needs rows where none are known."""
    return (
        f"export.scheme={scheme} is calibrated on training rows, and none are known. Type data.path=FILE, or "
        "scheme=w8a8_fp8, which needs none"
    )


EXPORTER = Exporter(
    name="compressed",
    function="hub.tasks.export.compressed.write:write",
    summary="4-bit or 8-bit weights by llmcompressor, for vLLM and SGLang",
    problems=problems,
)
