"""`python -m hub export`: finished models in the formats of other programs, each proven to be the model that was trained."""
