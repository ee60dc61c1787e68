"""The exporter `merged`: what it is called."""

from hub.plugins.offers import Exporter

EXPORTER = Exporter(
    name="merged",
    function="hub.tasks.export.merged.write:write",
    summary="one plain model of transformers: base and adapter summed in float32, rounded once",
)
