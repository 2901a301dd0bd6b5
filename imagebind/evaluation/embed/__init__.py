"""What is compared -> embeddings, each tied to its file."""
