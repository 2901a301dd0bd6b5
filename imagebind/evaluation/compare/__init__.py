"""Embeddings -> figures: similarities, ranks, statistics, scores."""
