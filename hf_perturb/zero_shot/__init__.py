"""What a network says with no training of ours: effects of substitutions, contacts."""
