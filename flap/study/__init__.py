"""The study of a sweep: a table, plots and a page made from the files of its runs; `python -m flap.study`."""
