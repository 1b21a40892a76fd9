"""Checkpoints that other tools can load without this package.

Nothing is imported here: vLLM's plugin is in this room, and beside vLLM what other rooms need is missing.
"""
