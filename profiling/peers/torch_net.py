"""vqlab's net, quantizer and losses in PyTorch, as torch_train.py measures them on the CPU and on a GPU."""

import gzip
import pathlib
import statistics

import torch
from torch import nn
from torch.nn import functional as F

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
DATA = "/usr/share/datasets/fashion-mnist"


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
    zeros = torch.zeros(K, latents.shape[1], device=latents.device)
    if latents.is_cuda:  # where bincount would wait for the device
        counts = zeros.new_zeros(K).index_add_(0, codes, torch.ones_like(codes, dtype=latents.dtype))
    else:
        counts = torch.bincount(codes, minlength=K).to(latents.dtype)
    return counts, zeros.index_add_(0, codes, latents)


class Quantizer:
    """EMA codebook, k-means on the first latents, dead codes replaced by the relative rule."""

    def __init__(self, dim, K, device="cpu"):
        self.K, self.ready, self.step, self.pool = K, False, 0, []
        self.codebook = torch.randn(K, dim, device=device)
        self.size, self.sum = torch.ones(K, device=device), self.codebook.clone()

    def collect(self, latents):
        """Until enough latents for k-means are there, the net trains without a quantizer."""
        self.pool.append(latents)
        points = torch.cat(self.pool)
        if len(points) < max(40960, 10 * self.K):
            return
        self.codebook.copy_(points[torch.randperm(len(points), device=points.device)[:self.K]])
        for _ in range(KMEANS_ROUNDS):
            counts, sums = sums_by_code(points, nearest(points, self.codebook), self.K)
            means = sums / counts.clamp(min=1)[:, None]
            self.codebook.copy_(torch.where(counts[:, None] > 0, means, self.codebook))
        self.size.copy_(counts)
        self.sum.copy_(self.codebook * counts[:, None])
        self.ready, self.pool = True, []

    def update(self, latents, codes):
        self.move(latents, codes)
        self.step += 1
        if self.step % RESTART_EVERY == 0:
            self.restart(latents)

    def move(self, latents, codes):
        counts, sums = sums_by_code(latents, codes, self.K)
        self.size.lerp_(counts, 1 - DECAY)
        self.sum.lerp_(sums, 1 - DECAY)
        means = self.sum / self.size.clamp(min=SMALLEST_SIZE)[:, None]
        self.codebook.copy_(torch.where((self.size >= SMALLEST_SIZE)[:, None], means, self.codebook))

    def restart(self, latents):
        mean = self.size.mean()
        dead = (self.size < RESTART_THRESHOLD * mean).nonzero()[:, 0][:len(latents)]
        rows = latents[torch.randperm(len(latents))[:len(dead)]]
        self.codebook[dead], self.size[dead], self.sum[dead] = rows, mean, rows * mean

    def restart_without_waiting(self, latents):
        """The rule of restart() for a GPU: a row for every code, used where the code is dead."""
        mean = self.size.mean()
        dead = self.size < RESTART_THRESHOLD * mean
        rows = latents[torch.randint(len(latents), (self.K,), device=latents.device)]
        self.codebook.copy_(torch.where(dead[:, None], rows, self.codebook))
        self.size.copy_(torch.where(dead, mean, self.size))
        self.sum.copy_(torch.where(dead[:, None], rows * mean, self.sum))


def fashion_mnist(count, folder=DATA):
    """`count` training images as floats in [-0.5, 0.5], (count, 1, 28, 28), and their pixels' variance."""
    with gzip.open(pathlib.Path(folder) / "train-images-idx3-ubyte.gz") as file:
        pixels = torch.frombuffer(bytearray(file.read(16 + count * 784)[16:]), dtype=torch.uint8)
    images = pixels.view(count, 1, 28, 28).float() / 255 - 0.5
    return images, float(images.var())


def make_losses(net, dim, variance):
    """The losses of a batch, until k-means has started the codebook and after that."""

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

    return loss_without_quantizer, loss_with_quantizer


def summary(pairs):
    """Medians of both sides, and the ratio of each pair; printed too."""
    ratios = [ours / theirs for ours, theirs in pairs]
    row = {
        "vqlab_images_per_second": statistics.median(p[0] for p in pairs),
        "torch_images_per_second": statistics.median(p[1] for p in pairs),
        "ratio_min": min(ratios), "ratio_median": statistics.median(ratios), "ratio_max": max(ratios),
        "pairs": pairs,
    }
    print(f"  median: vqlab {row['vqlab_images_per_second']:7.0f}  "
          f"torch {row['torch_images_per_second']:7.0f}  ratio {row['ratio_median']:.2f} "
          f"(min {row['ratio_min']:.2f}, max {row['ratio_max']:.2f})")
    return row
