"""The transformers classes of pruned models, and their registration with the Auto classes.

This file imports nothing, because inference engines also import this package, and their
environments may lack packages that the rest of flap needs.
"""
