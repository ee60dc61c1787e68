"""Samples and units: rows of tokens with a loss mask, alone or in groups that are drawn together.

sample      samples, groups, and what a row gives
units       units in their order, those of the token cache on disk
roles       refuses units that an algorithm can't train on
blocks      documents joined to samples of one length
counts      what became of the rows of a source
reports     the counts as plan.json has them
duplicates  exact copies among the units of a run
length      how long a sample may be
mix         how many units each source gives to each step
"""
