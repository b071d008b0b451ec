"""PyTorch on the same card, interleaved with vqlab. Takes the time that is left."""

import importlib.util
import json
import sys

from . import kernels
from .session import Skip, read

LEAST_SECONDS = 60  # a training in PyTorch with compilation is not worth starting with less


def torch(session, data):
    if importlib.util.find_spec("torch") is None:
        raise Skip("PyTorch is not installed")
    if session.left() < LEAST_SECONDS:
        raise Skip(f"{session.left():.0f} s left, {LEAST_SECONDS} are needed")
    folder, problems, remarks = session.bundle / "profiling/peers", [], []

    def peer(name, script, *arguments, limit):
        file = session.work / "runs" / f"{name}.json"
        call = session.call(name, [sys.executable, folder / script, "--device", "cuda", "--json", file, *arguments],
                            limit, PYTHONUNBUFFERED=1)
        try:
            data[name] = json.loads(read(file))
        except ValueError:
            data[name] = {}
        session.note(call.output)
        if call.code != 0 or not data[name] or "error" in data[name]:
            problems.append(f"{name}: {call.why()}")
        return data[name]

    few = kernels.shape_arguments([kernels.S1, kernels.S2, kernels.OWN])
    peer("lookup", "torch_lookup.py", "--op", "all", *few, "--seconds", "0.2", limit=40)
    found = peer("train", "torch_train.py", "--size", "fmnist-s", "--against", session.bundle / "vqlab", "--data",
                 session.data(), "--config", session.bundle / "apps/configs/fmnist-s.toml", "--settings", "eager,step",
                 "--compile-limit", "75", "--steps", "600", "--repeats", "1", limit=130)
    for row in found.get("against", []):
        remarks.append(f"vqlab {row['vqlab_images_per_second']:.0f}, torch ({row['setting']}) "
                       f"{row['torch_images_per_second']:.0f} images/s, ratio {row['ratio_median']:.2f}")
    return ("FAIL" if problems else "PASS"), "; ".join(remarks + problems) or "nothing measured"
