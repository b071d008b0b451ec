#!/usr/bin/env python3
"""Loads the weights of a run into torch modules, as they are, and compares torch's test MSE with vqlab's.

torch_loads_run.py RUN VQLAB    (RUN trained on Fashion-MNIST with default downsampling; needs PyTorch, optional)
"""

import gzip
import json
import struct
import subprocess
import sys

try:
    import torch
    from torch import nn
    from torch.nn import functional as F
except ImportError:
    print("SKIPPED: PyTorch is missing")
    sys.exit(0)


def read_safetensors(path):
    data = open(path, "rb").read()
    (length,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        tensors[name] = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(entry["shape"])
    return tensors


class Residual(nn.Module):
    def __init__(self, channels, hidden):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, hidden, 3, padding=1)
        self.conv2 = nn.Conv2d(hidden, channels, 1)

    def forward(self, x):
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class Half(nn.Module):
    def __init__(self, layers):
        super().__init__()
        for name, layer in layers:
            self.add_module(name, layer)


class Net(nn.Module):
    def __init__(self, weights):
        super().__init__()
        hidden, dim = weights["quant_conv.weight"].shape[1], weights["quant_conv.weight"].shape[0]
        inner = weights["encoder.residual1.conv1.weight"].shape[0]
        codes = weights["quantize.embedding.weight"].shape[0]
        self.encoder = Half([("conv1", nn.Conv2d(1, hidden // 2, 4, 2, 1)), ("conv2", nn.Conv2d(hidden // 2, hidden, 4, 2, 1)),
                             ("conv3", nn.Conv2d(hidden, hidden, 3, padding=1)), ("residual1", Residual(hidden, inner)),
                             ("residual2", Residual(hidden, inner))])
        self.quant_conv = nn.Conv2d(hidden, dim, 1)
        self.quantize = Half([("embedding", nn.Embedding(codes, dim))])
        self.decoder = Half([("conv1", nn.Conv2d(dim, hidden, 3, padding=1)), ("residual1", Residual(hidden, inner)),
                             ("residual2", Residual(hidden, inner)), ("up1", nn.ConvTranspose2d(hidden, hidden // 2, 4, 2, 1)),
                             ("up2", nn.ConvTranspose2d(hidden // 2, 1, 4, 2, 1))])

    def forward(self, x):
        e, d = self.encoder, self.decoder
        h = F.relu(e.conv3(F.relu(e.conv2(F.relu(e.conv1(x))))))
        z = self.quant_conv(F.relu(e.residual2(e.residual1(h))))
        book = self.quantize.embedding.weight
        flat = z.permute(0, 2, 3, 1).reshape(-1, book.shape[1])
        codes = torch.cdist(flat, book).argmin(1)
        q = book[codes].reshape(z.shape[0], z.shape[2], z.shape[3], -1).permute(0, 3, 1, 2)
        h = F.relu(d.residual2(d.residual1(d.conv1(q))))
        return d.up2(F.relu(d.up1(h)))


def main():
    run, vqlab = sys.argv[1:3]
    weights = read_safetensors(f"{run}/ckpt/last/model.safetensors")
    net = Net(weights)
    net.load_state_dict(weights, strict=True)
    raw = gzip.open("/usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz").read()[16:]
    images = torch.frombuffer(bytearray(raw), dtype=torch.uint8).reshape(-1, 1, 28, 28).float() / 255 - 0.5
    with torch.no_grad():
        error = sum(((net(batch) - batch) ** 2).sum().item() for batch in images.split(500)) / images.numel()
    ours = json.loads(subprocess.check_output([vqlab, "eval", run, "--split", "test", "--json"]))["mse"]
    print(f"test mse: torch {error:.8f}, vqlab {ours:.8f}")
    # Latents differ by rounding, so a few of 490000 codes may: far less than a thousandth of the error.
    sys.exit(0 if abs(error - ours) <= 1e-3 * ours else 1)


main()
