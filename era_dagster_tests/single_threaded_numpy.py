"""Imports numpy without the threads that it starts for large matrices: a process with threads must not be forked."""

import os

os.environ["OPENBLAS_NUM_THREADS"] = "1"

import numpy  # noqa: F401
