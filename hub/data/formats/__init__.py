"""Rows to conversations, documents or tokens.

detect      the format of a row, and its conversion; formats of plugins
converters  a function for each of the hub's own formats
messages    checks of messages: roles, contents, tool calls
examples    what a row becomes
"""
