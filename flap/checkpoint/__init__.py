"""Checkpoints that other tools can load without this package.

Nothing is imported here: `register` runs while transformers is being imported, when other rooms cannot be imported.
"""
