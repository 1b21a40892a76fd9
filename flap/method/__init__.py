"""The method, stage by stage: calibration, importance, allocation, search, compression, recovery, vocabulary."""
