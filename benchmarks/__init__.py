"""Measurements of amorsize_executor beside other executors; see ``docs/benchmarks``."""
