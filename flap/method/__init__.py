"""The pruning method, from calibration to recovery.

Each subpackage imports only from the subpackages before it: calibration, importance, allocation,
compression, search, vocabulary, recovery.
"""
