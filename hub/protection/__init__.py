"""What a run protects: samples, what is measured on them, and what a run leaves for the next one.

For any algorithm that protects what a model can do. Which changes are forbidden or pulled back is in the algorithm's plugin.
"""
