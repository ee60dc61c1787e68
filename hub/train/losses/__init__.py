"""Objectives: the value that training lowers, as weights of loss tokens."""
