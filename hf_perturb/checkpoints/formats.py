"""Names that `convert` takes, for who parses them before anything heavy is imported."""

DTYPES = ("float32", "float16", "bfloat16", "float64")
FORMATS = ("transformers", "fair-esm", "sequence-models")
