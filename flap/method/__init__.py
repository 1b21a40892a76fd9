"""The stages of pruning: calibration, importance, allocation, search, compression, recovery."""
