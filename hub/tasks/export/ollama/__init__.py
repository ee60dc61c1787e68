"""The exporter `ollama`: a Modelfile beside a GGUF file, whose prompts are those of training."""
