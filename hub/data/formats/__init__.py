"""Rows to conversations, documents or tokens."""
