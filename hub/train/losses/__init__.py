"""Objectives, the values that training lowers, and the loss of a micro-batch."""
