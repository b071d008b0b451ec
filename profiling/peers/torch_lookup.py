#!/usr/bin/env python3
"""Nearest code and sums by code in PyTorch on the GPU, at given shapes: the peers of `vqlab compare`.

torch_lookup.py --shape 262144,512,64 --op all --json FILE

Inputs lie on the device. Each sample is timed with CUDA events after the L2 cache was overwritten, the variants
of a case in turns; the median counts. fp32 without TF32, unless a variant is named after another precision.
`wrong` counts, of 1000 rows, those whose code is not that of the smallest distance in fp64: none of these
variants is exact. Of the sums it is `error`, the largest difference from fp64 relative to the largest sum.
"""

import argparse
import functools
import json
import pathlib
import statistics
import sys
import time

try:
    import torch
    from torch.nn import functional as F
except ImportError:
    print("SKIPPED: PyTorch is missing; python3 -m venv V && V/bin/pip install torch, then V/bin/python", sys.argv[0])
    sys.exit(0)

SHAPES = [(262144, 512, 64), (1048576, 1024, 64), (6272, 256, 16), (262144, 16384, 8), (1048576, 8192, 256),
          (65536, 262144, 256)]
BLOCK_BYTES = {"L2": 32 << 20, "1GiB": 1 << 30}  # of a block's distances: of the L2's size, and large
CHECKED_ROWS = 1000
FLUSHED_BYTES = 256 << 20  # larger than the L2 of any GPU
LEAST_SAMPLES, MOST_SAMPLES = 5, 200


class Unsuitable(Exception):
    """A variant that cannot solve a case, with the reason."""


def set_tf32(allowed):
    torch.backends.cuda.matmul.allow_tf32 = allowed


def in_blocks(nearest, latents, codebook, codes, block_bytes):
    """nearest(rows) for blocks of rows whose distances take block_bytes."""
    rows = max(block_bytes // (4 * len(codebook)), 128)
    for begin in range(0, len(latents), rows):
        codes[begin:begin + rows] = nearest(latents[begin:begin + rows])


def by_addmm(latents, codebook, squares):
    return torch.addmm(squares, latents, codebook.t(), alpha=-2).argmin(1)


def by_cdist(latents, codebook, squares):
    return torch.cdist(latents, codebook).argmin(1)


def by_bf16(latents, codebook, squares):
    product = torch.mm(latents.bfloat16(), codebook.bfloat16().t(), out_dtype=torch.float32)
    return torch.sub(squares, product, alpha=2).argmin(1)


def lookup_variants(compiled):
    """name: (function of a block, block bytes, TF32)"""
    variants = {}
    for label, block_bytes in BLOCK_BYTES.items():
        variants[f"addmm {label}"] = (by_addmm, block_bytes, False)
        variants[f"cdist {label}"] = (by_cdist, block_bytes, False)
        if compiled:
            variants[f"addmm compiled {label}"] = (torch.compile(by_addmm, dynamic=True), block_bytes, False)
        variants[f"addmm TF32 {label}"] = (by_addmm, block_bytes, True)
        variants[f"bf16 {label}"] = (by_bf16, block_bytes, False)
    return variants


class Lookup:
    """A case of Gaussian latents and codes, and its answers in fp64."""

    def __init__(self, shape, device):
        N, K, D = shape
        self.latents, self.codebook = (torch.randn(n, D, device=device) for n in (N, K))
        self.codes = torch.empty(N, dtype=torch.int64, device=device)
        self.checked = torch.linspace(0, N - 1, min(N, CHECKED_ROWS), device=device, dtype=torch.float64).long()
        codebook = self.codebook.double()
        rows = self.latents[self.checked].double()
        self.answers = torch.cat([torch.addmm(codebook.square().sum(1), block, codebook.t(), alpha=-2).argmin(1)
                                  for block in rows.split(100)])
        self.flop, self.bytes = 2.0 * N * K * D, 4.0 * (N * D + K * D + N)

    def calls(self, compiled):
        calls = {}
        for name, (nearest, block_bytes, tf32) in lookup_variants(compiled).items():
            calls[name] = functools.partial(self.run, nearest, block_bytes, tf32)
        return calls

    def run(self, nearest, block_bytes, tf32):
        set_tf32(tf32)
        squares = self.codebook.square().sum(1)
        in_blocks(lambda rows: nearest(rows, self.codebook, squares), self.latents, self.codebook, self.codes,
                  block_bytes)

    def verdict(self, call):
        self.codes.fill_(-1)
        call()
        wrong = int((self.codes[self.checked] != self.answers).sum())
        return {"exact": False, "wrong": wrong, "rows_checked": len(self.checked)}


class ClusterSums:
    """Counts and sums of latents by code. Codes are uniform, or skewed: the first of K takes 1 / K^(1/4) of all."""

    def __init__(self, shape, device, skewed):
        N, K, D = shape
        self.K = K
        self.latents = torch.randn(N, D, device=device)
        uniform = torch.rand(N, device=device)
        self.codes = ((uniform ** 4 if skewed else uniform) * K).long().clamp(max=K - 1)
        self.answers = torch.zeros(K, D, dtype=torch.float64, device=device)
        for rows, codes in zip(self.latents.split(1 << 18), self.codes.split(1 << 18)):
            self.answers.index_add_(0, codes, rows.double())
        self.counts = torch.bincount(self.codes, minlength=K)
        self.flop, self.bytes = 1.0 * N * D, 4.0 * (N * D + N + K * D + K)

    def calls(self, compiled):
        names = ("index_add", "index_add deterministic", "scatter_add", "sorted", "one-hot")
        return {name: functools.partial(self.run, name) for name in names}

    def run(self, name):
        set_tf32(False)
        latents, codes, zeros = self.latents, self.codes, self.latents.new_zeros(self.K, self.latents.shape[1])
        if name == "index_add":
            counts = zeros.new_zeros(self.K).index_add_(0, codes, torch.ones_like(codes, dtype=zeros.dtype))
            return counts, zeros.index_add_(0, codes, latents)
        if name == "index_add deterministic":
            torch.use_deterministic_algorithms(True)
            try:
                counts = zeros.new_zeros(self.K).index_add_(0, codes, torch.ones_like(codes, dtype=zeros.dtype))
                return counts, zeros.index_add_(0, codes, latents)
            finally:
                torch.use_deterministic_algorithms(False)
        if name == "scatter_add":
            counts = torch.bincount(codes, minlength=self.K)
            return counts, zeros.scatter_add_(0, codes[:, None].expand_as(latents), latents)
        if name == "sorted":
            order = codes.argsort(stable=True)
            counts = torch.bincount(codes, minlength=self.K)
            return counts, torch.segment_reduce(latents[order], "sum", lengths=counts)
        if 4 * self.K * len(codes) > 8 << 30:
            raise Unsuitable("the N x K matrix takes more than 8 GiB")
        one_hot = F.one_hot(codes, self.K).float()
        return one_hot.sum(0), one_hot.t() @ latents

    def verdict(self, call):
        counts, sums = call()
        again = call()[1]
        error = float((sums.double() - self.answers).abs().max() / self.answers.abs().max())
        return {"deterministic": bool(torch.equal(sums, again)), "error": error,
                "wrong": int((counts.long() != self.counts).sum()), "rows_checked": self.K}


class Clock:
    """Samples of calls in milliseconds, each after the L2 was overwritten."""

    def __init__(self, device):
        self.on_gpu = device == "cuda"
        self.flushed = torch.empty(FLUSHED_BYTES if self.on_gpu else 1, dtype=torch.int8, device=device)

    def sample(self, call):
        self.flushed.zero_()
        if not self.on_gpu:
            start = time.perf_counter()
            call()
            return 1000 * (time.perf_counter() - start)
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        end.record()
        torch.cuda.synchronize()
        return start.elapsed_time(end)

    def measure(self, calls, seconds):
        """Takes turns; a call leaves when it has had its seconds, after at least LEAST_SAMPLES."""
        samples = {name: [] for name in calls}
        for call in calls.values():
            self.sample(call)
        waiting = dict(calls)
        while waiting:
            for name, call in list(waiting.items()):
                times = samples[name]
                times.append(self.sample(call))
                enough = len(times) >= LEAST_SAMPLES and sum(times) >= 1000 * seconds
                if enough or len(times) >= MOST_SAMPLES:
                    del waiting[name]
        return samples


def measure_case(op, shape, device, arguments):
    """The rows of all variants at a shape."""
    torch.manual_seed(0)
    case = Lookup(shape, device) if op == "lookup" else ClusterSums(shape, device, op.endswith("skewed"))
    rows, calls = {}, {}
    for name, call in case.calls(arguments.compile).items():
        if arguments.variant and not any(name.startswith(wanted) for wanted in arguments.variant):
            continue
        rows[name] = {"op": op, "variant": f"torch {name}", "shape": shape, "status": "ok"}
        try:
            start = time.perf_counter()
            rows[name] |= case.verdict(call) | {"first_calls_seconds": time.perf_counter() - start}
            calls[name] = call
        except (RuntimeError, TypeError, Unsuitable) as error:  # of memory, too
            rows[name]["status"] = f"{type(error).__name__}: {error}".splitlines()[0][:120]
    for name, times in Clock(device).measure(calls, arguments.seconds).items():
        median = statistics.median(times)
        quarters = statistics.quantiles(times, n=4)
        rows[name] |= {"ms_median": median, "ms_iqr": quarters[2] - quarters[0], "ms_min": min(times),
                       "samples": len(times), "tflop_s": case.flop / median * 1e-9,
                       "gb_s": case.bytes / median * 1e-6}
    for row in rows.values():
        numbers = (f"{row['ms_median']:9.3f} ms  {row['tflop_s']:7.2f} TFLOP/s  {row['gb_s']:7.1f} GB/s  "
                   f"wrong {row['wrong']} of {row['rows_checked']}" if "ms_median" in row else "        -")
        print(f"{op:20} {','.join(map(str, shape)):18} {row['variant']:32} {numbers}  {row['status']}", flush=True)
    return list(rows.values())


def parse_shape(text):
    shape = tuple(int(part) for part in text.split(","))
    if len(shape) != 3 or min(shape) < 1:
        raise argparse.ArgumentTypeError("a shape is N,K,D, for example 262144,512,64")
    return shape


def parse_arguments():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", type=parse_shape, action="append", help="N,K,D; repeatable (default: six shapes)")
    parser.add_argument("--op", choices=("lookup", "cluster_sums", "all"), default="lookup",
                        help="cluster_sums is done with uniform and with skewed codes (default: %(default)s)")
    parser.add_argument("--variant", action="append", help="only those whose name begins so; repeatable")
    parser.add_argument("--compile", action="store_true", help="also torch.compile of addmm and argmin (slow to start)")
    parser.add_argument("--seconds", type=float, default=0.5, help="of samples of a variant (default: %(default)s)")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda", help="default: %(default)s")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, or this PyTorch has no CUDA")
        return
    result = {"torch": torch.__version__, "cuda": torch.version.cuda,
              "device": torch.cuda.get_device_name() if device == "cuda" else "cpu", "cases": []}
    ops = {"lookup": ["lookup"], "cluster_sums": ["cluster_sums", "cluster_sums skewed"]}
    ops["all"] = ops["lookup"] + ops["cluster_sums"]
    print(f"PyTorch {result['torch']}, {result['device']}; fp32, no TF32 unless named")
    for shape in arguments.shape or SHAPES:
        for op in ops[arguments.op]:
            result["cases"] += measure_case(op, shape, device, arguments)
            if arguments.json:  # after each case, for a run that is cut off
                pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
