"""The exporter `merged`: one plain model of transformers."""
