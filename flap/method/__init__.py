"""The pruning method, from calibration to recovery (training of the pruned model).

The subpackages, in order, are calibration, importance, allocation, compression, search, vocabulary
and recovery. A subpackage may import from subpackages that come before it in this list, but not
from subpackages that come after it.
"""
