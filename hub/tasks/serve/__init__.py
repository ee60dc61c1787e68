"""`python -m hub serve`: an OpenAI-compatible server for a finished model, by the engine that is installed."""
