"""From files to units of tokens.

sources      a path -> rows, each with its file and line
formats      a row -> what is trained on: a conversation, a document, tokens, or several of these
tokens       a conversation -> token ids with a loss mask
samples      units, their counts, and how sources are mixed
token_cache  large sources, encoded once
prepare      all data of one run: evaluation set, lengths, counts
streaming    data that is read while training
doctor       `python -m hub data`, which inspects a dataset
check        errors in the first rows, found before anything heavy is imported
json_values  types and words for what rows are made of
"""
