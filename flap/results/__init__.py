"""Results of runs: one sweep or several as a study, runs side by side as a comparison; files, pages and a server."""
