"""The verb `export`: a finished model as other programs read it, each export compared with the model that was trained."""
