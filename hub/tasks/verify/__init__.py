"""`python -m hub verify`: measures on the user's own run that the layout does not change the gradient."""
