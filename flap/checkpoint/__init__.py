"""Write checkpoints, which other tools can load without flap, and load them with flap.

This file imports nothing, because vLLM also imports it with flap's plugin for vLLM, and the
environment of vLLM may lack packages that the rest of flap needs.
"""
