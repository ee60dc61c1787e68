"""Data that is read while training.

windows  the rows of a source in shuffled windows
workers  the processes that read and encode them
frames   windows and items as bytes, for the pipes between processes
feed     the units of one source, and its position
"""
