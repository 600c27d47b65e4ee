"""Settings that PyTorch and OpenMP read from the environment when they are first loaded; yours come first.

They do nothing where torch was imported before saeforest, and processes that this one starts inherit them.
"""

import os

# Memory in pages of 2 MB where the system gives them: fresh tensors of hundreds of MB cost a third.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
# A thread that waits for another should sleep: spinning takes the core that something else needs.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
