"""What had never run on a GPU when this was written: first, and each reported by itself. A new CUDA path that could
not be tried adds its line here; what a card has seen leaves (profiling/README.md, Not yet run on a GPU)."""

import re

from . import kernels, suites, training
from .session import Skip

TESTS = {  # what: a regular expression of test names
    "weight gradient": r"weight gradient",
    "tensor-core lookups and wrappers": r"mma|wgmma|hopper|ptx|conformance",
    "captured graphs": r"graph|captured",
    "resident images": r"start of a step|image input|resident",
    "cluster sums": r"cluster sums|fixed point|one hot|both gradients",
    "precisions": r"bf16|tf32|precision",
    "self-tests": r"self-test|trust",
    "profile": r"profile",
    "registers of variants": r"lists the kernels|logs of launches",
}


def device_tests(pattern):
    def item(session, data):
        names = [name for name in suites.names_of(session) if re.search(pattern, name, re.IGNORECASE)]
        if not names:
            raise Skip("no such test")
        results = suites.run_tests(session, "owed", names, min(20, session.left()))
        return suites.verdict_of(session, data, names, results)

    return item


def lookup(variant, shape):
    def item(session, data):
        result, problem = kernels.compare_call(session, f"{variant}-{shape.replace(',', '-')}", "lookup", "--variant",
                                               variant, "--shape", shape, "--seconds", "1", limit=25)
        data.update(result)
        cases = result.get("cases", [])
        if problem or not cases:
            return "FAIL", problem or "no case"
        right = cases[0]["verified"] and cases[0].get("ms_median") is not None
        return ("PASS" if right else "FAIL"), kernels.describe(cases[0]).strip()

    return item


def run(name, bounds, *arguments):
    def item(session, data):
        problems = training.learned(session, data, name, bounds, *arguments, "--seed", "0", limit=25)
        return ("FAIL" if problems else "PASS"), "; ".join([training.told(data, name)] + problems)

    return item


ITEMS = {
    "weight gradient": device_tests(TESTS["weight gradient"]),
    "plain autoencoder": run("autoencoder", {"mse": (0.0036, 0.0048)}, *training.ALL, "--set", "train.epochs=3",
                             "--set", "quantizer.kind=none"),
    "K = 4096": run("k4096", {"mse": (0.007, 0.0105), "codes_used": (3800, 4096)}, "--set", "data.validation=20000",
                    "--set", "train.epochs=2", "--set", "quantizer.codebook_size=4096", "--set", "quantizer.dim=64"),
    "mma_sync at S2": lookup("mma_sync", kernels.S2),
    "wgmma_plain at S2": lookup("wgmma_plain", kernels.S2),
    "simt_fp32 at S2": lookup("simt_fp32", kernels.S2),
    "cb_resident at S1": lookup("cb_resident", kernels.S1),
    "tiny_d at S4": lookup("tiny_d", kernels.S4),
    "simt_tiled at S3": lookup("simt_tiled", kernels.S3),
    "simt_tiled at S5": lookup("simt_tiled", kernels.S5),
    **{name: device_tests(pattern) for name, pattern in TESTS.items() if name != "weight gradient"},
}


def owed(session, data):
    verdicts = {}
    for name, item in ITEMS.items():
        entry = data[name] = {"data": {}}
        try:
            if session.left() < 3:
                raise Skip("no time left")
            entry["verdict"], entry["remark"] = item(session, entry["data"])
        except Skip as reason:
            entry["verdict"], entry["remark"] = "SKIPPED", str(reason)
        except Exception as error:  # the other items must get their turn
            entry["verdict"], entry["remark"] = "FAIL", f"{type(error).__name__}: {error}"
        verdicts.setdefault(entry["verdict"], []).append(name)
        session.note(f"{entry['verdict']:8} {name}: {entry['remark']}")
    remark = "; ".join(f"{verdict} {', '.join(names)}" for verdict, names in sorted(verdicts.items()))
    if "FAIL" in verdicts:
        return "FAIL", remark
    return ("PASS" if "PASS" in verdicts else "SKIPPED"), remark
