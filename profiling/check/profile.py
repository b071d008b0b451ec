"""Nsight Compute: time, throughput, traffic, registers and occupancy of each kernel, in one table."""

import csv

from . import kernels, training
from .session import Skip, read

METRICS = {
    "gpu__time_duration.sum": "ns",
    "sm__throughput.avg.pct_of_peak_sustained_elapsed": "sm_pct",
    "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed": "memory_pct",
    "dram__throughput.avg.pct_of_peak_sustained_elapsed": "dram_pct",
    "dram__bytes_read.sum": "dram_read_bytes",
    "dram__bytes_write.sum": "dram_written_bytes",
    "sm__warps_active.avg.pct_of_peak_sustained_active": "occupancy_pct",
    "launch__registers_per_thread": "registers",
    "launch__shared_mem_per_block": "shared_bytes",
    "launch__grid_size": "grid",
    "launch__block_size": "block",
}


def number(text):
    try:
        return float((text or "").replace(",", ""))
    except ValueError:
        return None


def kernel_rows(text):
    """The rows of ncu's CSV, without the one of units."""
    lines = [line for line in text.splitlines() if not line.startswith("==")]
    return [row for row in csv.DictReader(lines) if (row.get("ID") or "").isdigit()]


def add_rows(found, profile, rows):
    """Sums by kernel; the other figures are those of its longest launch."""
    for row in rows:
        figures = {short: number(row.get(metric)) for metric, short in METRICS.items()}
        figures = {short: value for short, value in figures.items() if value is not None}
        name = row.get("Kernel Name", "").split("(")[0]
        kernel = found.setdefault((profile, name), {"launches": 0, "total_ns": 0.0})
        kernel["launches"] += 1
        kernel["total_ns"] += figures.get("ns", 0.0)
        if figures.get("ns", 0.0) >= kernel.get("ns", 0.0):
            kernel.update(figures)


def write_table(path, rows):
    columns = ["profile", "kernel", "launches", "total_ns", *METRICS.values()]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)


def profiles(session):
    """Name: (command of vqlab, launches to skip and to profile)."""
    compare = ["compare", "--device", "cuda", "--verify", "--shape", kernels.S1, "--op"]
    found = {"lookup": (compare + ["lookup"], 0, 90), "cluster_sums": (compare + ["cluster_sums"], 0, 90)}
    try:
        path = session.data()
    except Skip:
        return found
    found["train"] = (["train", training.CONFIG, "--device", "cuda", "--quiet", "--run", session.work / "runs/ncu",
                       "--max-steps", "12", "--set", f"data.path={path}", "--set", "data.validation=0", "--set",
                       "quantizer.initialisation=uniform"], 300, 180)
    return found


def ncu(session, data):
    session.need("ncu")
    found, problems, ran = {}, [], 0
    for name, (command, skip, count) in profiles(session).items():
        if session.left() < 6:
            problems.append(f"{name}: no time left")
            continue
        log = session.work / "logs" / f"ncu-{name}.csv"
        # Not every version knows every metric; the basic set is always there. Clocks are left as they are.
        for what in (["--metrics", ",".join(METRICS)], ["--set", "basic"]):
            call = session.call(name, [session.bundle / "run", "ncu", "--clock-control", "none", "--target-processes",
                                       "application-only", *what, "--launch-skip", skip, "--launch-count", count,
                                       "--csv", "--page", "raw", "--print-units", "base", "--log-file", log,
                                       session.bundle / "bin/vqlab", *command], 30)
            rows = kernel_rows(read(log))
            if rows or call.code is None:
                break
        if not rows:
            said = read(log).strip().splitlines()
            problems.append(f"{name}: {said[-1][:120] if said else call.why()}")
        add_rows(found, name, rows)
        ran += bool(rows)
    rows = [{"profile": profile, "kernel": kernel, **figures} for (profile, kernel), figures in found.items()]
    rows.sort(key=lambda row: (row["profile"], -row["total_ns"]))
    data["kernels"] = rows
    write_table(session.work / "ncu.csv", rows)
    for row in rows[:40]:
        session.note(f"{row['profile']:12} {row['kernel'][:44]:44} x{row['launches']:<3} {row.get('ns', 0) / 1e3:9.1f}"
                     f" us sm {row.get('sm_pct', 0):4.0f} % dram {row.get('dram_pct', 0):4.0f} % occupancy "
                     f"{row.get('occupancy_pct', 0):4.0f} % registers {row.get('registers', 0):.0f}")
    return ("PASS" if ran and not problems else "FAIL"), "; ".join([f"{len(rows)} kernels"] + problems)
