"""Rows to tokens with a loss mask.

encode           a row to its units, or to the reason why it gives none
template         a conversation to tokens, and which of them are trained
forms            the forms in which templates take messages
turns            where the assistant's turns are in a rendered conversation
row_forms        rows of one form, of which only the first is marked
marked_row       a row that is marked, and the turns in it
marks            marks around its texts, which show where each is rendered
edges            how far two renderings agree around a turn
omissions        what the template leaves out, in words
refusals         what to type where a template refuses a conversation
chat_template    renders conversations, and has what is known of the template
tokenize         texts to tokens, many at once
spelling         the bytes of tokens, which tell where they are in a text
special_tokens   the added and special tokens of a tokenizer
rendered_before  texts that hold special tokens: rendered before, perhaps
template_date    the date that a chat template writes
template_limits  bounds on the time and memory of a chat template
"""
