"""The device tests of vqlab_gpu_tests: all of them, some by name, and the dump of golden vectors."""

import concurrent.futures
import html
import os
import re

from .session import Skip

WORKERS = max(1, min(6, (os.cpu_count() or 2) // 2))
ALONE_SECONDS = 30      # for a test by itself
MOST_ALONE = 12         # failed tests that are run again
CONFORMANCE = ["*conformance*", "[conformance]"]


def quoted(names):
    """Test names as an argument of Catch, which separates by commas."""
    return ",".join(re.sub(r"([\\,\[\]])", r"\\\1", name) for name in names)


def results_of(report):
    """{name: (passed, seconds)} of the tests that ended, and the name of one that did not, of Catch's XML."""
    ended, running = {}, None
    for piece in re.split(r"(?=<TestCase )", report):
        name = re.match(r'<TestCase name="([^"]*)"', piece)
        verdict = re.search(r'<OverallResult success="(true|false)"(?: durationInSeconds="([^"]*)")?', piece)
        if name and verdict:
            ended[html.unescape(name.group(1))] = (verdict.group(1) == "true", float(verdict.group(2) or 0))
        elif name:
            running = html.unescape(name.group(1))
    return ended, running


def names_of(session, *specification):
    call = session.device_tests("list", "--list-test-names-only", *specification, limit=20)
    if "SKIPPED:" in call.output:
        raise Skip(re.search("SKIPPED:.*", call.output).group(0))
    names = [line.strip() for line in call.output.splitlines() if line.strip()]
    if call.code is None or (call.code != 0 and not names):  # Catch's exit code is the number of names
        raise RuntimeError(f"vqlab_gpu_tests: {call.why()}")
    return names


class Results:
    """Of tests by name: those that ended with (passed, seconds), and why others did not."""

    def __init__(self):
        self.ended, self.broken = {}, {}

    def passed(self):
        return {name: seconds for name, (passed, seconds) in self.ended.items() if passed}

    def failed(self):
        return [name for name, (passed, _) in self.ended.items() if not passed]


def run_tests(session, label, names, limit, workers=WORKERS, **environment):
    """Several processes, each with a share of the tests; then those that a crash or a hang kept from their turn, each
    by itself, and last the ones that crashed or hung."""
    results, end = Results(), min(limit, session.left())

    def run(name, share, seconds):
        call = session.device_tests(name, "-r", "xml", "-d", "yes", quoted(share), limit=seconds, **environment)
        ended, running = results_of(call.output)
        results.ended.update(ended)
        for done in ended:
            results.broken.pop(done, None)
        why = "out of time" if call.code is None else f"exit code {call.code}"
        if running:
            results.broken[running] = why
        elif not ended and len(share) == 1:
            results.broken[share[0]] = call.why()

    def alone(work):
        if session.left() > 2:
            run(f"{label}-rest-{work[0]}", [work[1]], min(ALONE_SECONDS, 0.4 * end))

    with concurrent.futures.ThreadPoolExecutor(workers) as pool:
        shares = [share for share in (names[i::workers] for i in range(workers)) if share]
        list(pool.map(lambda work: run(f"{label}-{work[0]}", work[1], 0.55 * end), enumerate(shares)))
        suspects = list(results.broken)
        waiting = [name for name in names if name not in results.ended and name not in suspects]
        list(pool.map(alone, enumerate(waiting)))
        list(pool.map(alone, enumerate(suspects, len(waiting))))
    return results


def failures(session, results, data):
    """The failed tests by themselves: an error of a kernel spoils the tests after it. Names the operation."""
    alone = []
    for number, name in enumerate(results.failed()[:MOST_ALONE]):
        if session.left() < 3:
            break
        call = session.device_tests(f"alone-{number}", quoted([name]), limit=ALONE_SECONDS, VQLAB_SYNC=1)
        if call.code != 0:
            alone.append(f"{name}: {call.why()}")
            session.note(name + "\n" + "\n".join("  " + line for line in call.output.splitlines()[:30]))
    data["failed_alone"] = alone


def verdict_of(session, data, names, results):
    passed, failed = results.passed(), results.failed()
    lost = [name for name in names if name not in results.ended and name not in results.broken]
    session.durations.update(passed)
    data.update({"tests": len(names), "passed": len(passed), "failed": failed, "broken": results.broken,
                 "not_run": lost, "seconds": {name: round(s, 3) for name, (_, s) in results.ended.items()}})
    remark = f"{len(passed)} of {len(names)} tests passed"
    broken = [f"{name} ({why})" for name, why in results.broken.items()]
    for label, some in (("failed", failed), ("broken", broken), ("not run", lost)):
        remark += f"; {label}: {'; '.join(some[:4])}{' ...' if len(some) > 4 else ''}" if some else ""
    return ("PASS" if names and len(passed) == len(names) else "FAIL"), remark


def tests(session, data):
    names = names_of(session)
    results = run_tests(session, "all", names, 0.8 * session.left())
    failures(session, results, data)
    return verdict_of(session, data, names, results)


def golden(session, data):
    """Conformance tests write what the hardware answers into a folder; it goes into the archive."""
    names = sorted({name for specification in CONFORMANCE for name in names_of(session, specification)})
    if not names:
        raise Skip("vqlab_gpu_tests has no conformance tests")
    folder = session.work / "golden"
    results = run_tests(session, "golden", names, 0.8 * session.left(), workers=1, VQLAB_DUMP_GOLDEN=folder)
    data["files"] = {str(file.relative_to(folder)): file.stat().st_size
                     for file in sorted(folder.rglob("*")) if file.is_file()}
    verdict, remark = verdict_of(session, data, names, results)
    return verdict, f"{remark}; {len(data['files'])} dumps, {sum(data['files'].values())} bytes"
