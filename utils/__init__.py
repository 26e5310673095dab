"""Formulas, logs, checkpoints, tables and figures."""
