"""Everything that runs a model: bases and roles, generation, training, improving."""

import logging

# On CPUs with bf16 instructions every import warns about a missing kernel, which pit does not use (see keep_unpacked).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
