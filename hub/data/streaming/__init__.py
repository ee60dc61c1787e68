"""Data that is read while training: windows of rows, worker processes, the pipes between them."""
