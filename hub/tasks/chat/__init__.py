"""`python -m hub chat`: a conversation with a finished model in the terminal."""
