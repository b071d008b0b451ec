"""The stages of profiling/gpu_check. Python 3.8 or later, standard library only."""
