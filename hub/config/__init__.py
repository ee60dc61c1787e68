"""Typed options: dataclasses with bounds and a docstring for each field, and the rules between them."""
