"""The matrix of encoders: every family of the lineage loaded, exported, quantised and checked.

`rows` says which, `folders` makes them small, `measuring` runs one, `page` writes the document.
`python -m benchmarks.families` runs them all.
"""
