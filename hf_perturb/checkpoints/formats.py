"""Names that options take, for who parses them before anything heavy is imported."""

# types of weights, that of a base first
DTYPES = ("float32", "float16", "bfloat16", "float64")
# other packages' formats, that `convert` writes
FORMATS = ("transformers", "fair-esm", "sequence-models")
# what `push` publishes in
OURS = "hf-perturb"
PUSH_FORMATS = (OURS, "transformers")
