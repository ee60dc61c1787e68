"""The command line: argv to a verb, and what is printed for the user."""
