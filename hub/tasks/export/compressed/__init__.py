"""The exporter `compressed`: 4-bit and 8-bit weights in the compressed-tensors format, for vLLM and SGLang."""
