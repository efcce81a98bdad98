"""Where networks and checkpoints meet: loading, wrapping, and the Auto classes."""
