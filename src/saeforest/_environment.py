"""Settings that PyTorch and OpenMP read from the environment when they are first loaded. They do not replace yours.

They have no effect if torch was imported before saeforest. Processes started by this one inherit them.
"""

import os

# Allocate memory in pages of 2 MB if possible: new tensors of hundreds of MB then take a third of the time.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# Let waiting threads sleep: spinning would occupy a core that other work needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
