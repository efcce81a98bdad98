"""Publishing: what belongs in a repository, what is asked of it before, and how it gets there."""
