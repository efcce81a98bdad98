"""The formats of other packages, each with its reader and its writer."""
