"""Files, folders and datasets of the model hub to rows.

files           what a path stands for
folders         which files of a folder are data, and of which split
read            the rows of a source, one at a time
entries         rows, lines that are not parsed yet, errors in the place of a row
text_files      JSON lines, whole texts
json_files      JSON lists, a list under a key, objects over several lines
csv_files       CSV
columnar_files  parquet, Arrow
arrow_rows      Arrow tables to rows
model_hub       datasets of the model hub
memory          rows of lists, DataFrames and datasets that a program has in memory
rows            rows that a program has in memory, written to a file
"""
