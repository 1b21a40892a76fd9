"""Write and load checkpoints that other tools can load without this package.

This file imports nothing, because it is imported together with vLLM's plugin, and the environment
of vLLM lacks packages that the rest of flap needs.
"""
