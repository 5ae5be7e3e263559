"""What works with a model: bases, roles, generation, training, run folders."""

import logging

# said at every import on CPUs that multiply bf16: a kernel is not there that pit does not use (see keep_unpacked)
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
