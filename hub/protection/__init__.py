"""What a run is to keep: samples that show it, what these need of a model, and what a run leaves for the next one.

General machinery for algorithms that protect what a model can do. Which changes they forbid is their own matter.
"""
