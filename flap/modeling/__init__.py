"""The pruned architectures, as classes of transformers, and their registration with its Auto classes.

Nothing is imported here: the modules are used beside an engine, too, where what other rooms need is missing.
"""
