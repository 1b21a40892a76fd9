"""The stages: calibration, importance, allocation, search, compression, recovery, vocabulary."""
