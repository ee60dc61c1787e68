"""The command line: verbs, and the pages that they print."""
