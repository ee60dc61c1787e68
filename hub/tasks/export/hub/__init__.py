"""The exporter `hub`: pushes what was made to the model hub."""
