"""Is a result due to what the model learned? Probes of a base, its controls and plain baselines."""
