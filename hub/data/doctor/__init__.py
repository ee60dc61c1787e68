"""`python -m hub data`: inspects a dataset before training. Nothing is trained.

scan             every row as it was written, and the tokens that it becomes
findings         what would spoil training, and what may be intended
oddities         broken text, unusual order of turns
pairs            what is compared of a preference pair
pair_findings    labels that may be swapped, a bias to long answers
near_duplicates  pairs of texts that are nearly the same
lengths          tokens per row: percentiles, a histogram, a recommendation
examine          all of it for the data of a run
page             the result on a terminal, or as JSON
"""
