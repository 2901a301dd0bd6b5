"""One run: options -> files -> pairs -> embeddings -> counts -> metrics -> results -> outputs."""
