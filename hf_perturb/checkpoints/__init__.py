"""Files in, files out: the documented checkpoints as data, and variants on disk."""
