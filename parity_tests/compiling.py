"""How tests compile: cheaply, because compiling is most of what they cost, or as users do."""

# four times cheaper than XLA's defaults; products and sums are rounded otherwise, so tests that
# claim something of rounding in float32 have the fixture `optimised`
CHEAP_FLAGS = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
# XLA's defaults
AS_USERS = {
    "xla_backend_optimization_level": 3,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}
