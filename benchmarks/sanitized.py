"""Each compiled backend of this GPU, forward and backward at sizes that no tile divides: for compute-sanitizer."""

import torch

from scp_kernels import scp
from tests.support.cases import Case
from tests.support.problems import evaluate

SANITIZED_CASES = [Case(40, 5, 2, (37, 51)), Case(40, 5, 2, (37, 51), torch.bfloat16), Case(24, 3, 1, (9, 13, 11))]

if __name__ == "__main__":
    for case in SANITIZED_CASES:
        for name in case.backends("cuda"):
            evaluate(scp, case.inputs("cuda"), backend=name)
            torch.cuda.synchronize()
            print(name, case, "ran")
