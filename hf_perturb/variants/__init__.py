"""Variants on disk: built, verified, listed, and what they are made of."""
