"""Checkpoints that stock tools load.

Nothing is imported here: `register` runs while transformers is being imported, when the other stages are not ready.
"""
