"""The pruning method, from calibration to recovery.

Of these subpackages, each imports only from subpackages before it: calibration, importance,
allocation, compression, search, vocabulary, recovery.
"""
