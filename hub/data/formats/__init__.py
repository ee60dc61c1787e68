"""Rows to conversations, documents or tokens.

detect      the format of a row, and its conversion; formats of plugins
converters  a function for each of the hub's own formats
columns     other names of fields
file_format the format of each file; rows to what is trained on
missing     values that nobody wrote: NaN, nulls of a table
messages    checks of messages: roles, contents, tool calls
examples    what a row becomes
roles       refuses rows that an algorithm can't train on
"""
