"""compute-sanitizer over every variant at odd shapes, and over the device tests that are fast enough."""

import re

from . import kernels, suites

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
ERROR_CODE = 99
SLOWDOWN = 25  # of a test under memcheck, about
# Most kernels of these are NVIDIA's: a report about them says nothing about ours.
OF_LIBRARIES = r"cudnn|conv|trainer|cublas|gemm"


def chosen(durations, seconds):
    """Tests, the fastest first, that take `seconds` when each takes SLOWDOWN times as long and 0.2 s."""
    names, total = [], 0.0
    for name, duration in sorted(durations.items(), key=lambda item: item[1]):
        total += 0.2 + SLOWDOWN * duration
        if total > seconds:
            break
        if not re.search(OF_LIBRARIES, name, re.IGNORECASE):
            names.append(name)
    return names


def sanitize(session, data, tool, name, command, limit):
    """One program under one tool; a problem in one line, or None."""
    leaks = ["--leak-check", "no"] if tool == "memcheck" else []
    call = session.call(f"{tool}-{name}", [session.bundle / "run", "compute-sanitizer", "--tool", tool, *leaks,
                                           "--report-api-errors", "no", "--print-limit", "50", "--error-exitcode",
                                           ERROR_CODE, *command], limit)
    text = call.output + call.errors
    report = [line for line in text.splitlines() if line.startswith("=========")]
    found = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: (.*)", text)
    bad = call.code == ERROR_CODE or re.search(r"^========= (Invalid|Error: Race|Uninit|Barrier)", text, re.M)
    data.setdefault(tool, {})[name] = {"summary": found, "exit_code": call.code, "seconds": round(call.seconds, 1),
                                       "report": report[:60] if bad else []}
    if "Device not supported" in text:
        return f"{tool} {name}: Device not supported"
    if bad:
        session.note("\n".join(report[:20]))
        return f"{tool} {name}: {found[-1] if found else 'errors'}"
    if call.code != 0 or not found:  # no summary: the tool did not watch
        return f"{tool} {name}: {call.why() if call.code != 0 else 'no summary'}"
    return None


def sanitizer(session, data):
    session.need("compute-sanitizer")
    program = session.bundle / "bin/vqlab"
    problems, remarks = [], []
    for op in kernels.OPS:
        data[f"variants of {op}"] = kernels.variants_of(session, op)
    clean = 0

    def one(tool, name, command, limit):
        nonlocal clean
        if session.left() < 4:
            remarks.append(f"{tool} {name}: no time left")
            return
        problem = sanitize(session, data, tool, name, command, limit)
        if problem:
            problems.append(problem)
        else:
            clean += 1

    # What the kernels write outside their arrays would spoil everything else: memcheck first.
    for tool in TOOLS:
        for op in kernels.OPS:
            ours = [v for v in data[f"variants of {op}"] if not re.search(OF_LIBRARIES, v)]
            if ours:
                one(tool, op, [program, "compare", "--device", "cuda", "--op", op, "--verify", "--variant",
                               ",".join(ours), "--json", "--quiet", *kernels.shape_arguments(kernels.ODD)], 25)
    theirs = [v for v in data["variants of lookup"] if re.search(OF_LIBRARIES, v)]
    if theirs:
        one("memcheck", "lookup of libraries",
            [program, "compare", "--device", "cuda", "--verify", "--variant", ",".join(theirs), "--json", "--quiet",
             *kernels.shape_arguments(kernels.ODD)], 25)
    for tool in TOOLS:  # the other ops: what the tests call
        names = chosen(session.durations, max(5, session.left() / 6))
        if names:
            data.setdefault(tool, {})["names of tests"] = names
            one(tool, "tests", [session.bundle / "bin/vqlab_gpu_tests", suites.quoted(names)], 30)
    if problems and all("Device not supported" in problem for problem in problems):
        return "SKIPPED", "compute-sanitizer: Device not supported"
    return ("FAIL" if problems or not clean else "PASS"), "; ".join([f"{clean} runs clean"] + problems[:6] + remarks)
