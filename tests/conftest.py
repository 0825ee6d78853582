"""One thread a process, since the tests themselves run side by side; the threading tests set their own number."""

import os

import torch

os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
torch.set_num_threads(1)
