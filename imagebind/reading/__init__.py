"""Files to model inputs, in processes of their own, and the cache of embeddings."""
