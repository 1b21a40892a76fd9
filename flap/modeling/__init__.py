"""The pruned architectures as classes for transformers, and their registration.

This file imports nothing, because inference engines also import this package, and their
environments may lack packages that the rest of flap needs.
"""
