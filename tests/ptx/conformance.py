"""Case files that tests/device/test_device_conformance.cpp writes, and what the interpreter makes of them."""
import json
from pathlib import Path

from interpreter import Array, Module, PtxError, TensorMap


def load_cases(folder: Path) -> list:
    cases = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    if not cases:
        raise SystemExit(f"error: {folder} holds no case files\nhint: run the conformance test of a device with "
                         "VQLAB_DUMP_GOLDEN set to a folder")
    return cases


def problem_of(module: Module, case: dict, seed: int) -> str:
    """How the interpreter's result differs from the device's; "" if no bit does."""
    expected = bytes.fromhex(case["output"])
    out, data = Array(bytearray(b"\xff" * len(expected))), bytearray.fromhex(case["input"])
    if "map" in case:
        second = TensorMap(bytes(data), **case["map"])
    else:
        second = Array(data)
    try:
        module.run(case["kernel"], (1, 1, 1), (case["block"], 1, 1), case["shared"], [out, second], seed)
    except PtxError as error:
        return str(error)
    wrong = [i for i in range(0, len(expected), 4) if out.data[i:i + 4] != expected[i:i + 4]]
    if not wrong:
        return ""
    at = wrong[0]
    return (f"wrong result: {len(wrong)} of {len(expected) // 4} words, the first is word {at // 4}: "
            f"{out.data[at:at + 4][::-1].hex()} instead of {expected[at:at + 4][::-1].hex()}")


def run_cases(module: Module, cases: list, seeds) -> dict:
    """The first problem of each kernel, or ""."""
    return {case["kernel"]: next(filter(None, (problem_of(module, case, seed) for seed in seeds)), "")
            for case in cases}
