"""What torch_train.py --device cuda does: a process for each setting, which compiles once and then serves."""

import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import torch

from torch_net import (BATCH, LEARNING_RATE, RESTART_EVERY, RESTART_THRESHOLD, SIZES, Net, Quantizer, fashion_mnist,
                       make_losses, summary)

CUDA_SETTINGS = {  # mode of torch.compile, the whole step captured in CUDA graphs
    "eager": (None, False),
    "compile": ("default", False),
    "graphs": ("reduce-overhead", False),
    "step": ("default", True),
}


class DeviceTraining:
    """Training on a GPU in one of CUDA_SETTINGS; made ready, k-means included, by its constructor."""

    def __init__(self, size, setting, folder, device="cuda"):
        torch.manual_seed(0)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True
        mode, self.captured = CUDA_SETTINGS[setting]
        self.marks_steps = mode == "reduce-overhead"
        hidden, dim, K = SIZES[size]
        images, variance = fashion_mnist(64 * BATCH, folder)
        self.device, self.steps = device, 0
        self.batches = [b.to(device, memory_format=torch.channels_last) for b in images.split(BATCH)]
        self.net = Net(hidden, dim).to(device, memory_format=torch.channels_last)
        self.quantizer = Quantizer(dim, K, device)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=LEARNING_RATE, fused=True,
                                          capturable=device == "cuda")
        self.first_loss, self.loss = make_losses(self.net, dim, variance)
        self.move = self.quantizer.move
        if mode:
            self.loss = torch.compile(self.loss, dynamic=False, mode=mode)
            self.move = torch.compile(self.move, dynamic=False)  # in-place: nothing for graphs of PyTorch
        while not self.quantizer.ready:
            self.first_step(self.next_batch())
        for _ in range(12):  # restarts included
            self.step()
        if self.captured:
            self.static = self.batches[0].clone(memory_format=torch.preserve_format)
            self.graphs = [self.capture(restarts) for restarts in (False, True)]

    def next_batch(self):
        self.steps += 1
        return self.batches[self.steps % len(self.batches)]

    def first_step(self, x):
        self.optimizer.zero_grad(set_to_none=True)
        loss, rows = self.first_loss(x)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.quantizer.collect(rows)

    def body(self, x, restarts):
        self.optimizer.zero_grad(set_to_none=True)
        loss, rows, codes, error = self.loss(x, self.quantizer.codebook)
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            self.move(rows, codes)
            if restarts:
                self.quantizer.restart_without_waiting(rows)
        return error

    def capture(self, restarts):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
            error = self.body(self.static, restarts)
        return graph, error

    def step(self):
        x, restarts = self.next_batch(), self.steps % RESTART_EVERY == 0
        if hasattr(self, "graphs"):
            self.static.copy_(x)
            graph, error = self.graphs[restarts]
            graph.replay()
            return error
        if self.marks_steps:
            torch.compiler.cudagraph_mark_step_begin()
        return self.body(x, restarts)

    def synchronize(self):
        if self.device == "cuda":
            torch.cuda.synchronize()

    def measure(self, steps, warm_up=50, parts=10):
        """The numbers of `steps` timed steps; the device is waited for only between `parts` of them."""
        for _ in range(warm_up):
            self.step()
        seconds, each = [], max(steps // parts, 1)
        for _ in range(parts):
            self.synchronize()
            start = time.perf_counter()
            for _ in range(each):
                error = self.step()
            self.synchronize()
            seconds.append(time.perf_counter() - start)
        alive = self.quantizer.size >= RESTART_THRESHOLD * self.quantizer.size.mean()
        return {
            "images_per_second": BATCH * each * parts / sum(seconds),
            "images_per_second_median_part": BATCH * each / statistics.median(seconds),
            "images_per_second_best_part": BATCH * each / min(seconds),
            "ms_per_step": 1000 * sum(seconds) / (each * parts),
            "timed_steps": each * parts,
            "last_batch_mse": float(error),
            "codes_alive": int(alive.sum()),
        }


def serve(size, setting, folder):
    """The worker process of a setting: a line of JSON when ready, then one for each number of steps it reads."""
    captured = CUDA_SETTINGS[setting][1]  # for which all steps lie on one stream that is not the default one
    with torch.cuda.stream(torch.cuda.Stream()) if captured else contextlib.nullcontext():
        start = time.perf_counter()
        training = DeviceTraining(size, setting, folder)
        print(json.dumps({"seconds_to_ready": time.perf_counter() - start}), flush=True)
        for line in sys.stdin:
            print(json.dumps(training.measure(int(line))), flush=True)


class Worker:
    """A process that serves a setting; ask() gives None, and the process ends, if it fails or is late."""

    def __init__(self, size, setting, folder):
        self.setting, self.errors = setting, tempfile.TemporaryFile("w+")
        self.process = subprocess.Popen([sys.executable, __file__, json.dumps([size, setting, folder])],
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.errors, text=True)

    def answer(self, limit):
        timer = threading.Timer(max(limit, 1), self.process.kill)
        timer.start()
        line = self.process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.close()
        self.errors.seek(0)
        print(f"  {self.setting}: failed, or no answer within {limit:.0f} s:", "".join(self.errors.readlines()[-5:]))
        return None

    def ask(self, steps, limit=60):
        with contextlib.suppress(BrokenPipeError):  # then there is no answer either
            self.process.stdin.write(f"{steps}\n")
            self.process.stdin.flush()
        return self.answer(limit)

    def close(self):
        self.process.kill()
        self.process.wait()


def scan(workers, steps, repeats):
    """Every setting that answers, in turns; the best of its runs counts."""
    runs = {worker.setting: [] for worker in workers}
    for _ in range(repeats):
        for worker in list(workers):
            numbers = worker.ask(steps)
            if numbers is None:
                workers.remove(worker)
            else:
                runs[worker.setting].append(numbers)
    results = []
    for setting, numbers in runs.items():
        if numbers:
            best = max(numbers, key=lambda n: n["images_per_second"])
            results.append({"setting": setting} | best | {"runs": [n["images_per_second"] for n in numbers]})
            print(f"  {setting:8} {best['images_per_second']:9.0f} images/s  {best['ms_per_step']:.3f} ms a step"
                  f"  mse {best['last_batch_mse']:.4f}  codes {best['codes_alive']}", flush=True)
    return results


def run_on_cuda(arguments, result, run_vqlab):
    """Measures; the numbers go into `result`. run_vqlab is that of torch_train.py."""
    size, steps = arguments.size, arguments.steps
    workers = [Worker(size, setting, arguments.data) for setting in arguments.settings]  # compile side by side
    try:
        deadline = time.monotonic() + arguments.compile_limit
        ready = {worker.setting: worker.answer(deadline - time.monotonic()) for worker in workers}
        workers = [worker for worker in workers if ready[worker.setting]]
        result["settings"] = scan(workers, steps, arguments.repeats)
        for row in result["settings"]:
            row |= ready[row["setting"]]
        if not arguments.against or not result["settings"]:
            return
        best = max(result["settings"], key=lambda row: row["images_per_second"])["setting"]
        worker = next(worker for worker in workers if worker.setting == best)
        print(f"{size}: PyTorch at {best}; {steps} steps of {BATCH} images a run")
        pairs = []
        for number in range(arguments.rounds):
            ours = run_vqlab(arguments.against, arguments.config, size, 0, steps, "cuda", arguments.data)
            theirs = worker.ask(steps)
            if theirs is None:
                break
            theirs = theirs["images_per_second"]
            pairs.append((ours, theirs))
            print(f"  round {number + 1}: vqlab {ours:9.0f}  torch {theirs:9.0f}  ratio {ours / theirs:.2f}",
                  flush=True)
        if pairs:
            result["against"] = [{"setting": best} | summary(pairs)]
    finally:
        for worker in workers:
            worker.close()


if __name__ == "__main__":
    serve(*json.loads(sys.argv[1]))
