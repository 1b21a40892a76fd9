"""The pruned architectures as classes of transformers, and their registration.

Nothing is imported here, because engines use these modules, too, where other packages are missing.
"""
