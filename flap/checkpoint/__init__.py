"""Checkpoints that other tools can load without this package.

This module imports nothing: vLLM's plugin is in this room, and in the environment of vLLM the
packages that other rooms need are missing.
"""
