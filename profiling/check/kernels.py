"""`vqlab compare` on the GPU: speed at S1 to S5, and the same bits from run to run at odd shapes."""

import itertools

# Shapes N, K, D.
S1, S2, S3 = "262144,512,64", "1048576,1024,64", "1048576,8192,256"
S4, S5, OWN = "262144,16384,8", "65536,262144,256", "6272,256,16"  # OWN: of fmnist-s
SPEED = [("lookup", S1), ("lookup", S2), ("lookup", S3), ("lookup", S5), ("lookup", S4), ("lookup", OWN),
         ("cluster_sums", S1), ("cluster_sums", S2), ("cluster_sums", OWN), ("cluster_sums", S3),
         ("cluster_sums", S4), ("cluster_sums", S5), ("skewed_sums", S1), ("skewed_sums", OWN),
         ("quantize", S1), ("quantize", OWN)]
ODD = [f"{n},{k},{d}" for n, k, d in itertools.product((1, 31, 4097), (1, 3, 1000), (1, 7, 65))]
OPS = ("lookup", "cluster_sums", "quantize")
REPEATS = 4  # calls, each of which runs a variant three times on data of its own


def shape_arguments(shapes):
    return [argument for shape in shapes for argument in ("--shape", shape)]


def variants_of(session, op):
    """Names of the CUDA variants; needs no GPU."""
    call = session.vqlab(f"list-{op}", "compare", "--op", op, "--list", "--json", "--device", "cuda", limit=20)
    return [row["variant"] for row in call.json().get("variants", [])]


def compare_call(session, name, op, *arguments, limit=600):
    """The cases of a comparison, and what was wrong with it in one line or None."""
    call = session.vqlab(name, "compare", "--device", "cuda", "--op", op, *arguments, "--json", "--quiet", limit=limit)
    result = call.json()
    if call.code != 0 or "cases" not in result:
        return result, f"{name}: {call.why()}"
    return result, None


def describe(case):
    shape = ",".join(str(size) for size in case["shape"])
    if case.get("ms_median") is None:
        return f"  {case['op']:13} {case['variant']:16} {shape:18} {case['status']}"
    return (f"  {case['op']:13} {case['variant']:16} {shape:18} wrong {case['wrong']} of {case['rows_checked']}  "
            f"{case['ms_median']:9.3f} ms {case['tflop_s']:7.1f} TFLOP/s {case['gb_s']:6.0f} GB/s "
            f"{100 * case['share_of_ceiling']:4.0f} %  {case['status']}")


def speed(session, data):
    data["runs"], problems, best = [], [], {}
    for op, shape in SPEED:
        if session.left() < 5:
            problems.append(f"{op} {shape}: no time left")
            continue
        result, problem = compare_call(session, f"{op}-{shape.replace(',', '-')}", op, "--shape", shape,
                                       "--seconds", "1", limit=25)
        if problem:
            problems.append(problem)
        if "cases" in result:
            data["runs"].append(result)
            print("\n".join(describe(case) for case in result["cases"]), flush=True)
            timed = [case for case in result["cases"] if case.get("ms_median")]
            if op == "lookup" and timed:
                best[shape] = min(timed, key=lambda case: case["ms_median"])
    wrong = sum(case["status"] == "WRONG" for run in data["runs"] for case in run["cases"])
    remarks = [f"{wrong} wrong cases of {sum(len(run['cases']) for run in data['runs'])}"]
    remarks += [f"{shape}: {case['variant']} {case['ms_median']:.3f} ms" for shape, case in best.items()]
    return ("FAIL" if problems or wrong else "PASS"), "; ".join(remarks + problems[:4])


def determinism(session, data):
    """Variants that call themselves exact must repeat; of the others it is noted whether they did."""
    problems, verdicts = [], {}
    for repeat in range(REPEATS):
        for op in OPS:
            if session.left() < 3:
                problems.append(f"{op}, call {repeat}: no time left")
                continue
            result, problem = compare_call(session, f"{op}-{repeat}", op, "--verify", *shape_arguments(ODD), limit=20)
            if problem:
                problems.append(problem)
            for case in result.get("cases", []):
                entry = verdicts.setdefault(f"{op} {case['variant']}",
                                            {"exact": case["exact"], "cases": 0, "other_bits": [], "wrong": []})
                entry["cases"] += 1
                shape = ",".join(str(size) for size in case["shape"])
                if case["deterministic"] is False:
                    entry["other_bits"].append(shape)
                if case["status"] == "WRONG":
                    entry["wrong"].append(shape)
    data.update({"shapes": ODD, "calls": REPEATS, "variants": verdicts})
    remarks = []
    for name, entry in verdicts.items():
        unlike = sorted(set(entry["other_bits"]))
        if unlike and entry["exact"]:
            problems.append(f"{name}: other bits from run to run at {', '.join(unlike[:3])}")
        if entry["wrong"]:
            problems.append(f"{name}: wrong at {', '.join(sorted(set(entry['wrong']))[:3])}")
        remarks.append(f"{name} {'repeats' if not unlike else 'does not repeat'}")
    if not verdicts and not problems:
        problems.append("no case")
    return ("FAIL" if problems else "PASS"), "; ".join(remarks + problems[:6])
