# %% before: from attention import Attention
import sys

sys.path.insert(0, "examples")  # where the reader's file is
