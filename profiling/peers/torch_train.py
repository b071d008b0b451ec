#!/usr/bin/env python3
"""Training speed of vqlab's net, quantizer, data and precision (fp32) in PyTorch on the CPU, in images per second.

torch_train.py                            every setting: wait policy, compiled or not, 1 and 2 threads
torch_train.py --against build/cpu/vqlab  the best setting against vqlab, runs interleaved: A B A B ...

Neither side pays for data loading. PyTorch also gets its batches as ready floats in channels_last, its
compilation and warm-up are off the clock, and it runs in the best of its settings. Each setting runs in a
process of its own, because OMP_WAIT_POLICY is read when a process starts.
"""

import argparse
import gzip
import json
import os
import pathlib
import platform
import statistics
import subprocess
import sys
import tempfile
import time

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:
    print("SKIPPED: PyTorch is missing; python3 -m venv V && V/bin/pip install torch, then V/bin/python", sys.argv[0])
    sys.exit(0)

SIZES = {  # hidden, D, K
    "fmnist-s": (32, 16, 256),
    "h64": (64, 64, 512),
}
BATCH = 128
RESIDUAL_HIDDEN = 32
DECAY, SMALLEST_SIZE = 0.99, 1e-3  # of the EMA; a smaller count leaves the code where it is
RESTART_EVERY, RESTART_THRESHOLD = 5, 0.1
COMMITMENT_WEIGHT, LEARNING_RATE = 0.25, 1e-3
KMEANS_ROUNDS = 8


class Residual(nn.Module):
    def __init__(self, hidden):
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, RESIDUAL_HIDDEN, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(RESIDUAL_HIDDEN, hidden, 1, bias=False)

    def forward(self, x):
        x = F.relu(x, inplace=True)
        return x + self.conv2(F.relu(self.conv1(x), inplace=True))


class Net(nn.Module):
    """Encoder and decoder of DeepMind's VQ-VAE notebook; 72337 parameters at hidden 32, D 16."""

    def __init__(self, hidden, dim):
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, hidden // 2, 4, 2, 1), nn.ReLU(True),
            nn.Conv2d(hidden // 2, hidden, 4, 2, 1), nn.ReLU(True),
            nn.Conv2d(hidden, hidden, 3, padding=1), Residual(hidden), Residual(hidden), nn.ReLU(True),
            nn.Conv2d(hidden, dim, 1))
        self.decoder = nn.Sequential(
            nn.Conv2d(dim, hidden, 3, padding=1), Residual(hidden), Residual(hidden), nn.ReLU(True),
            nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1), nn.ReLU(True),
            nn.ConvTranspose2d(hidden // 2, 1, 4, 2, 1))


def nearest(latents, codebook):
    """Codes by the expanded distance; the N x K matrix is one of distances, never one-hot."""
    return torch.addmm(codebook.square().sum(1), latents, codebook.t(), alpha=-2).argmin(1)


def sums_by_code(latents, codes, K):
    counts = torch.bincount(codes, minlength=K).to(latents.dtype)
    return counts, torch.zeros(K, latents.shape[1]).index_add_(0, codes, latents)


class Quantizer:
    """EMA codebook, k-means on the first latents, dead codes replaced by the relative rule."""

    def __init__(self, dim, K):
        self.K, self.ready, self.step, self.pool = K, False, 0, []
        self.codebook = torch.randn(K, dim)
        self.size, self.sum = torch.ones(K), self.codebook.clone()

    def collect(self, latents):
        """Until enough latents for k-means are there, the net trains without a quantizer."""
        self.pool.append(latents)
        points = torch.cat(self.pool)
        if len(points) < max(40960, 10 * self.K):
            return
        self.codebook.copy_(points[torch.randperm(len(points))[:self.K]])
        for _ in range(KMEANS_ROUNDS):
            counts, sums = sums_by_code(points, nearest(points, self.codebook), self.K)
            means = sums / counts.clamp(min=1)[:, None]
            self.codebook.copy_(torch.where(counts[:, None] > 0, means, self.codebook))
        self.size.copy_(counts)
        self.sum.copy_(self.codebook * counts[:, None])
        self.ready, self.pool = True, []

    def update(self, latents, codes):
        counts, sums = sums_by_code(latents, codes, self.K)
        self.size.lerp_(counts, 1 - DECAY)
        self.sum.lerp_(sums, 1 - DECAY)
        means = self.sum / self.size.clamp(min=SMALLEST_SIZE)[:, None]
        self.codebook.copy_(torch.where((self.size >= SMALLEST_SIZE)[:, None], means, self.codebook))
        self.step += 1
        if self.step % RESTART_EVERY == 0:
            self.restart(latents)

    def restart(self, latents):
        mean = self.size.mean()
        dead = (self.size < RESTART_THRESHOLD * mean).nonzero()[:, 0][:len(latents)]
        rows = latents[torch.randperm(len(latents))[:len(dead)]]
        self.codebook[dead], self.size[dead], self.sum[dead] = rows, mean, rows * mean


def fashion_mnist(count):
    """`count` training images as floats in [-0.5, 0.5], (count, 1, 28, 28), and their pixels' variance."""
    path = pathlib.Path("/usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz")
    with gzip.open(path) as file:
        pixels = torch.frombuffer(bytearray(file.read(16 + count * 784)[16:]), dtype=torch.uint8)
    images = pixels.view(count, 1, 28, 28).float() / 255 - 0.5
    return images, float(images.var())


def measure_torch(size, threads, compiled, steps, warm_up):
    """Trains in this process; the numbers of its timed steps."""
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    hidden, dim, K = SIZES[size]
    images, variance = fashion_mnist(64 * BATCH)
    batches = [b.contiguous(memory_format=torch.channels_last) for b in images.split(BATCH)]
    net = Net(hidden, dim).to(memory_format=torch.channels_last)
    quantizer = Quantizer(dim, K)
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE, fused=True)

    def loss_without_quantizer(x):
        z = net.encoder(x)
        return F.mse_loss(net.decoder(z), x) / variance, z.permute(0, 2, 3, 1).reshape(-1, dim).detach()

    def loss_with_quantizer(x, codebook):
        z = net.encoder(x)
        latents = z.permute(0, 2, 3, 1)
        rows = latents.detach().reshape(-1, dim)
        codes = nearest(rows, codebook)
        quantized = codebook[codes].view(latents.shape)
        passed = (latents + (quantized - latents).detach()).permute(0, 3, 1, 2)
        error = F.mse_loss(net.decoder(passed), x)
        loss = error / variance + COMMITMENT_WEIGHT * F.mse_loss(latents, quantized)
        return loss, rows, codes, error.detach()

    if compiled:
        loss_with_quantizer = torch.compile(loss_with_quantizer, dynamic=False)

    def step(x):
        optimizer.zero_grad(set_to_none=True)
        if not quantizer.ready:
            loss, rows = loss_without_quantizer(x)
        else:
            loss, rows, codes, error = loss_with_quantizer(x, quantizer.codebook)
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            if not quantizer.ready:
                quantizer.collect(rows)
                return float("nan")
            quantizer.update(rows, codes)
        return error

    number = 0
    while number < warm_up or not quantizer.ready:
        step(batches[number % len(batches)])
        number += 1
    seconds, cpu = [], time.process_time()
    for i in range(number, number + steps):
        start = time.perf_counter()
        error = step(batches[i % len(batches)])
        seconds.append(time.perf_counter() - start)
    cpu = time.process_time() - cpu
    return {
        "images_per_second": BATCH * steps / sum(seconds),
        "images_per_second_median_step": BATCH / statistics.median(seconds),
        "images_per_second_best_step": BATCH / min(seconds),
        "cpu_seconds_per_1000_images": cpu * 1000 / (BATCH * steps),
        "last_batch_mse": float(error),
        "codes_alive": int((quantizer.size >= RESTART_THRESHOLD * quantizer.size.mean()).sum()),
    }


def run_torch(size, setting, steps):
    """measure_torch in a fresh process under the setting's wait policy."""
    environment = os.environ | {"OMP_WAIT_POLICY": setting["wait_policy"], "OMP_NUM_THREADS": str(setting["threads"])}
    command = [sys.executable, __file__, "--worker", json.dumps([size, setting, steps])]
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output.splitlines()[-1])


def run_vqlab(binary, config, size, threads, steps):
    """Images per second of `vqlab train` of the same net for as many steps; only training steps are counted."""
    hidden, dim, K = SIZES[size]
    keys = {"model.hidden": hidden, "model.residual_hidden": RESIDUAL_HIDDEN, "quantizer.dim": dim,
            "quantizer.codebook_size": K, "train.batch_size": BATCH}
    with tempfile.TemporaryDirectory() as folder:
        command = [binary, "train", config, "--run", f"{folder}/run", "--device", "cpu",
                   "--threads", str(threads), "--max-steps", str(steps), "--json", "--quiet"]
        for key, value in keys.items():
            command += ["--set", f"{key}={value}"]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(output)["images_per_second"]


def name_of(setting):
    mode = "compiled" if setting["compiled"] else "eager"
    return f"threads {setting['threads']}, wait {setting['wait_policy']}, {mode}"


def scan(size, threads, steps, repeats):
    """Every setting for each number of threads, in turns; the best of its runs counts."""
    results = []
    for count in threads:
        settings = [{"threads": count, "wait_policy": policy, "compiled": compiled}
                    for policy in ("active", "passive") for compiled in (False, True)]
        runs = [[run_torch(size, setting, steps) for setting in settings] for _ in range(repeats)]
        for setting, *numbers in zip(settings, *runs):
            best = max(numbers, key=lambda n: n["images_per_second_median_step"])
            results.append(setting | best)
            print(f"{size:9} {name_of(setting):34}"
                  f"  {best['images_per_second_median_step']:7.0f} images/s (median step)"
                  f"  {best['images_per_second_best_step']:7.0f} (best step)"
                  f"  {best['cpu_seconds_per_1000_images']:.3f} CPU-s per 1000 images"
                  f"  mse {best['last_batch_mse']:.4f}  codes {best['codes_alive']}", flush=True)
    return results


def compare(binary, config, size, settings, steps, rounds):
    """Interleaved runs of PyTorch in its best setting and vqlab, for each number of threads."""
    results = []
    for setting in settings:
        print(f"{size}: PyTorch at {name_of(setting)}; {steps} steps of {BATCH} images a run")
        pairs = []
        for number in range(rounds):
            ours = run_vqlab(binary, config, size, setting["threads"], steps)
            theirs = run_torch(size, setting, steps)["images_per_second"]
            pairs.append((ours, theirs))
            print(f"  round {number + 1}: vqlab {ours:7.0f}  torch {theirs:7.0f}  ratio {ours / theirs:.2f}",
                  flush=True)
        ratios = [ours / theirs for ours, theirs in pairs]
        row = setting | {
            "vqlab_images_per_second": statistics.median(p[0] for p in pairs),
            "torch_images_per_second": statistics.median(p[1] for p in pairs),
            "ratio_min": min(ratios), "ratio_median": statistics.median(ratios), "ratio_max": max(ratios),
            "pairs": pairs,
        }
        results.append(row)
        print(f"  median: vqlab {row['vqlab_images_per_second']:7.0f}  "
              f"torch {row['torch_images_per_second']:7.0f}  ratio {row['ratio_median']:.2f} "
              f"(min {row['ratio_min']:.2f}, max {row['ratio_max']:.2f})")
    return results


def processor():
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def parse_arguments():
    config = pathlib.Path(__file__).parents[2] / "apps/configs/fmnist-s.toml"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", metavar="VQLAB", help="the vqlab binary to compare with")
    parser.add_argument("--config", default=str(config),
                        help="what vqlab trains, with the sizes of --size (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="fmnist-s", help="default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--steps", type=int, default=100, help="timed steps a run (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs, at least 5 (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.rounds < 5:
        parser.error("--rounds must be at least 5: fewer pairs do not show the noise")
    return arguments


def main():
    arguments = parse_arguments()
    if arguments.worker:
        size, setting, steps = json.loads(arguments.worker)
        print(json.dumps(measure_torch(size, setting["threads"], setting["compiled"], steps, warm_up=30)))
        return
    size, steps = arguments.size, arguments.steps
    machine = {"torch": torch.__version__, "processor": processor(), "cores": os.cpu_count(),
               "load_average": os.getloadavg(), "size": size, "batch": BATCH, "steps": steps}
    print(f"PyTorch {machine['torch']}, {machine['cores']} cores {machine['processor']}, "
          f"load average {machine['load_average'][0]:.1f}; fp32, channels_last, fused Adam, batch {BATCH}")
    result = machine | {"settings": scan(size, arguments.threads, steps, arguments.repeats)}
    if arguments.against:
        best = [max((s for s in result["settings"] if s["threads"] == count),
                    key=lambda s: s["images_per_second_median_step"]) for count in arguments.threads]
        settings = [{key: s[key] for key in ("threads", "wait_policy", "compiled")} for s in best]
        result["against"] = compare(arguments.against, arguments.config, size, settings, steps, arguments.rounds)
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
