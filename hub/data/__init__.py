"""From files to tokens.

read      files, folders and data sets of the model hub -> rows, each with its file and line
formats   a row -> a conversation: messages with roles, checked
turns     a conversation -> its text by the chat template, and where the assistant's turns stand in it
template  a conversation -> token ids and the mask of the tokens that are trained
prepare   all of it for one run: held-out rows, lengths, counts (imports numpy: for workers)
"""
