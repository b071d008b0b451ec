#!/usr/bin/env python3
"""Training speed of vqlab's net, quantizer, data and precision (fp32) in PyTorch, in images per second.

torch_train.py                            every setting: wait policy, compiled or not, 1 and 2 threads
torch_train.py --against build/cpu/vqlab  the best setting against vqlab, runs interleaved: A B A B ...
torch_train.py --device cuda [--against build/cuda/vqlab]
                                          the same on a GPU; its settings: eager, compile, graphs, step

Neither side pays for data loading. PyTorch also gets its batches as ready floats in channels_last, on the
device, its compilation and warm-up are off the clock, and it runs in the best of its settings. Each setting
runs in a process of its own, because OMP_WAIT_POLICY is read when a process starts; on a GPU that process
stays, so that each setting is compiled once. TF32 is off. What PyTorch does on a GPU is not deterministic.
"""

import argparse
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
except ImportError:
    print("SKIPPED: PyTorch is missing; python3 -m venv V && V/bin/pip install torch, then V/bin/python", sys.argv[0])
    sys.exit(0)

from torch_net import (BATCH, DATA, LEARNING_RATE, RESIDUAL_HIDDEN, RESTART_THRESHOLD, SIZES, Net, Quantizer,
                       fashion_mnist, make_losses, summary)
from torch_train_cuda import CUDA_SETTINGS, run_on_cuda


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
    loss_without_quantizer, loss_with_quantizer = make_losses(net, dim, variance)
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


def run_vqlab(binary, config, size, threads, steps, device="cpu", folder=DATA):
    """Images per second of `vqlab train` of the same net for as many steps; only training steps are counted."""
    hidden, dim, K = SIZES[size]
    keys = {"model.hidden": hidden, "model.residual_hidden": RESIDUAL_HIDDEN, "quantizer.dim": dim,
            "quantizer.codebook_size": K, "train.batch_size": BATCH}
    if device == "cuda":  # as many epochs as the steps need, and no checkpoint among them
        keys |= {"data.path": folder, "data.validation": 0, "train.epochs": steps // 400 + 1,
                 "checkpoint.every_steps": steps + 1}
    with tempfile.TemporaryDirectory() as temporary:
        command = [binary, "train", config, "--run", f"{temporary}/run", "--device", device,
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
        results.append(setting | summary(pairs))
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
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--data", default=DATA, help="Fashion-MNIST for --device cuda (default: %(default)s)")
    parser.add_argument("--settings", type=lambda text: text.split(","), default=list(CUDA_SETTINGS),
                        help=f"for --device cuda, some of {','.join(CUDA_SETTINGS)} (default: all)")
    parser.add_argument("--compile-limit", type=int, default=150, metavar="SECONDS",
                        help="for --device cuda: a setting that is not ready then is left out (default: %(default)s)")
    parser.add_argument("--size", choices=SIZES, default="fmnist-s", help="default: %(default)s")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="default: 1 2")
    parser.add_argument("--steps", type=int, help="timed steps a run (default: 100, on a GPU 2000)")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each setting (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, help="pairs of runs, at least 5 (default: %(default)s)")
    parser.add_argument("--json", metavar="FILE", help="write everything measured to FILE")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    arguments.steps = arguments.steps or (100 if arguments.device == "cpu" else 2000)
    if unknown := set(arguments.settings) - set(CUDA_SETTINGS):
        parser.error(f"unknown setting {sorted(unknown)[0]}; the settings are {', '.join(CUDA_SETTINGS)}")
    if arguments.rounds < 5:
        parser.error("--rounds must be at least 5: fewer pairs do not show the noise")
    return arguments


def main():
    arguments = parse_arguments()
    if arguments.worker:
        size, setting, steps = json.loads(arguments.worker)
        print(json.dumps(measure_torch(size, setting["threads"], setting["compiled"], steps, warm_up=30)))
        return
    on_cpu = arguments.device == "cpu"
    if not on_cpu and not torch.cuda.is_available():
        print("SKIPPED: no CUDA device, or this PyTorch has no CUDA")
        return
    size, steps = arguments.size, arguments.steps
    machine = {"torch": torch.__version__, "processor": processor(), "cores": os.cpu_count(),
               "load_average": os.getloadavg(), "size": size, "batch": BATCH, "steps": steps}
    if not on_cpu:
        machine |= {"device": torch.cuda.get_device_name(), "cuda": torch.version.cuda,
                    "cudnn": torch.backends.cudnn.version()}
    print(f"PyTorch {machine['torch']}, {machine['cores']} cores {machine['processor']}, "
          f"load average {machine['load_average'][0]:.1f}; fp32, channels_last, fused Adam, batch {BATCH}"
          + ("" if on_cpu else f"; {machine['device']}, no TF32, {size}"))
    result = machine.copy()
    if on_cpu:
        result["settings"] = scan(size, arguments.threads, steps, arguments.repeats)
        if arguments.against:
            best = [max((s for s in result["settings"] if s["threads"] == count),
                        key=lambda s: s["images_per_second_median_step"]) for count in arguments.threads]
            settings = [{key: s[key] for key in ("threads", "wait_policy", "compiled")} for s in best]
            result["against"] = compare(arguments.against, arguments.config, size, settings, steps,
                                        arguments.rounds)
    else:
        try:
            run_on_cuda(arguments, result, run_vqlab)
        except subprocess.CalledProcessError as error:  # of vqlab: what PyTorch did is kept
            result["error"] = str(error)
            print(f"error: {error}")
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(result, indent=1) + "\n")
    return 1 if "error" in result else 0


if __name__ == "__main__":
    sys.exit(main())
