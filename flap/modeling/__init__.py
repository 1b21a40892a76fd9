"""The pruned architectures as classes for transformers, and their registration.

This file imports nothing, because inference engines also use these modules, and their environments
lack other packages.
"""
