"""From files to tokens.

files, read      a path, also one of the model hub (model_hub) -> rows, each with its file and line
formats          a row -> what is trained on: a conversation, a document, tokens (examples, messages, converters)
turns            a conversation -> its text by the chat template, and where the assistant's turns stand in it
template         a conversation -> token ids and the mask of the tokens that are trained
encode           a row -> its samples, or why it gives none
mix              how many samples each source gives to each step
prepare, part    all of it for one run: held-out rows, lengths, counts; large sources are kept (kept)
stream, feed     the same for data that does not fit into memory; workers and frames make it beside training
doctor           `python -m hub data`
"""
