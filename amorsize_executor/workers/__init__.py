"""Worker processes: their life, the channels to them, and what travels there.

What a worker imports at its start is imported again by each worker. So these modules do without `typing`, `re`,
`logging`, `socket`, `multiprocessing` and others of the standard library that take long to import, and use the C
modules behind some of them. Types are for type checkers alone, which take a false ``TYPE_CHECKING`` for true by its
name.
"""
