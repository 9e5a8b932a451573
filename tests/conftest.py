"""Settings of all tests: reproducible examples, no deadlines, one thread a worker."""

import torch
from hypothesis import settings

settings.register_profile("steady", deadline=None, derandomize=True, database=None, print_blob=False)
settings.load_profile("steady")
torch.set_num_threads(1)
