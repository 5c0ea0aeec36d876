"""torch.compile, ready to compile: what every process that compiles would do again.

Imported by a process that others are forked from. It imports inductor, and finds out which vector
instructions the C++ compiler has, for which inductor starts processes that import torch.
"""

from __future__ import annotations

import torch._dynamo.backends.inductor
import torch._inductor.compile_fx  # noqa: F401
from torch._inductor.cpu_vec_isa import valid_vec_isa_list

valid_vec_isa_list()  # is kept
