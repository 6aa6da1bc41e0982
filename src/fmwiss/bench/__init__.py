"""Suites: a matrix of experiments and seeds, run and put into tables."""
