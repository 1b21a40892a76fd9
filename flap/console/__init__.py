"""The console output of a run: progress bars and log lines."""
