"""FASTA in, embeddings out."""
