"""What machine this is, whether vqlab can use its GPU, and what `doctor` says of each variant."""

import importlib.util
import os
import shutil
import subprocess

FIELDS = ["name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem",
          "power.limit", "temperature.gpu", "ecc.mode.current", "mig.mode.current", "vbios_version"]
PACKAGES = ["torch", "triton", "nvidia-cudnn-cu13", "nvidia-cublas"]


def package_versions():
    try:
        from importlib import metadata
    except ImportError:
        return {}
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def find_gpu(session):
    """Fills session.gpu, and session.no_gpu with the reason where there is none. nvidia-smi is asked first: vqlab
    might fail on a GPU that is there, and then the stages shall show how."""
    if shutil.which("nvidia-smi") is None:
        session.no_gpu = "no CUDA device: nvidia-smi is not installed"
        return
    call = session.call("nvidia-smi", ["nvidia-smi", f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader"], 20)
    first = call.output.splitlines()[:1]
    if call.code != 0 or not first:
        session.no_gpu = f"no CUDA device: nvidia-smi: {call.why()}"
        return
    session.gpu = dict(zip((field.replace(".", "_") for field in FIELDS), (p.strip() for p in first[0].split(","))))
    session.no_gpu = ""


def facts(session, data):
    find_gpu(session)
    data.update(session.gpu)
    data["kernel"], data["cores"] = os.uname().release, os.cpu_count()
    data["packages"], data["torch_found"] = package_versions(), importlib.util.find_spec("torch") is not None
    session.call("lscpu", ["lscpu"], 5)
    # On the CPU nothing of the GPU is touched, so that a self-test that hangs cannot take this away.
    doctor = session.vqlab("doctor-cpu", "doctor", "--json", "--device", "cpu", limit=20)
    data["doctor"] = doctor.json()
    if doctor.code != 0 or not data["doctor"]:
        return "FAIL", f"the bundle does not run here: {doctor.why()}"
    problem = data["doctor"].get("cuda_problem", "")
    if session.no_gpu:
        if not problem:  # nvidia-smi missing or broken, but a device that vqlab can use
            session.no_gpu = ""
            session.gpu["name"] = next(iter(data["doctor"].get("cuda_devices", [])), "unknown GPU")
            return "PASS", f"{session.gpu['name']}; nvidia-smi gave nothing"
        session.no_gpu = f"no CUDA device: {problem}"
        return "SKIPPED", session.no_gpu
    session.call("nvidia-smi-q", ["nvidia-smi", "-q"], 20)
    told = f"{data['name']}, driver {data.get('driver_version')}"
    return ("FAIL", f"{told}: {problem}") if problem else ("PASS", told)


def trust(session, data):
    """Self-tests of the variants on this card: the first time, and once more, when verdicts may be remembered."""
    problems = []
    for name in ("first", "again"):
        call = session.vqlab(f"doctor-{name}", "doctor", "--json", "--device", "cuda", limit=max(5, session.left() / 2))
        data[name] = {"seconds": round(call.seconds, 2), "exit_code": call.code, "doctor": call.json()}
        if call.code != 0:
            problems.append(f"doctor, {name}: {call.why()}")
    variants = [v for v in data["first"]["doctor"].get("variants", []) if v.get("device") == "cuda"]
    distrusted = [f"{v.get('name')}: {v.get('why', '')}" for v in variants if not v.get("trusted")]
    if not variants and not problems:
        problems.append("doctor lists no CUDA variant")
    remark = f"{len(variants) - len(distrusted)} of {len(variants)} CUDA variants trusted, " \
             f"{data['first']['seconds']} s, then {data['again']['seconds']} s"
    return ("FAIL" if problems or distrusted else "PASS"), "; ".join([remark] + distrusted + problems)


def start_monitor(session):
    """nvidia-smi writes the clocks twice a second; it changes nothing. None without it."""
    fields = "timestamp,utilization.gpu,clocks.sm,power.draw,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits", "-lms", "500"]
    try:
        with (session.work / "clocks.csv").open("wb") as output:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.DEVNULL,
                                    start_new_session=True)
    except OSError:
        return None
