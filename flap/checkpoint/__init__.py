"""Write checkpoints that other tools can load without flap, and load checkpoints in flap.

This file imports nothing, because vLLM imports it together with flap's plugin for vLLM
(`vllm_plugin.py`), and vLLM's environment may lack packages that the rest of flap needs.
"""
