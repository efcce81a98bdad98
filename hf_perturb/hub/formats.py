"""Names that `push` takes, for who parses them before anything heavy is imported."""

OURS = "hf-perturb"
FORMATS = (OURS, "transformers")
