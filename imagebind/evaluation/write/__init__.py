"""Figures -> files: tables, report, page."""
