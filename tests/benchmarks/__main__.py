"""Start the benchmark program: ``PYTHONPATH=tests python -m benchmarks``."""

import os

# One thread for every library; XLA reads its flags when jax is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
)

from .run import main, parse, with_allocator  # noqa: E402

if __name__ == "__main__":
    with_allocator(parse(None))
    main()
