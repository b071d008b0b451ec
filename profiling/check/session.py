"""Commands with time limits, stages with verdicts, and the archive that is renewed after each stage."""

import datetime
import json
import os
import pathlib
import shutil
import signal
import statistics
import subprocess
import tarfile
import tempfile
import threading
import time
import traceback

LARGEST_LOG = 2 << 20  # of a log the end is kept
KILL_SECONDS = 2       # from SIGTERM to SIGKILL, and from there to giving up: a process may hang in the driver


class Skip(Exception):
    """A stage that cannot run here; the text says why."""


class Call:
    """A finished command; `code` is None if it ran out of time."""

    def __init__(self, code, output, errors, seconds):
        self.code, self.output, self.errors, self.seconds = code, output, errors, seconds

    def json(self):
        """The object that the command printed, or {}."""
        try:
            found = json.loads(self.output)
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def why(self):
        """Why it failed, in one line."""
        if self.code is None:
            return f"out of time after {self.seconds:.0f} s"
        lines = [line.strip() for line in (self.errors + "\n" + self.output).splitlines() if line.strip()]
        told = [line for line in lines if "rror" in line] or lines[-1:]
        return f"exit code {self.code}: {told[0] if told else 'no output'}"[:200]


def replace(path, text):
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def read(path):
    return path.read_text(errors="replace") if path.exists() else ""


class Session:
    """One run of gpu_check: the unpacked bundle, the folder for results, the deadline, what was found."""

    def __init__(self, bundle, out, seconds, name="gpu_check"):
        self.bundle, self.out, self.name = bundle.resolve(), out.resolve(), name
        self.start = time.monotonic()
        self.deadline = self.stage_deadline = self.start + seconds
        self.out.mkdir(parents=True, exist_ok=True)
        self.work = pathlib.Path(tempfile.mkdtemp(prefix="gpu_check-"))
        for folder in ("logs", "runs", "golden"):
            (self.work / folder).mkdir()
        # What vqlab remembers between its calls (verdicts of self-tests) stays in this run.
        self.environment = {"XDG_CACHE_HOME": str(self.work / "cache"), "PYTHONDONTWRITEBYTECODE": "1"}
        self.stages, self.commands, self.lines = {}, [], []
        self.stage, self.gpu, self.no_gpu = "", {}, "not looked for"
        self.durations = {}  # seconds of each device test that passed
        self.running = set()
        self.lock = threading.RLock()  # a signal may interrupt the thread that holds it, and ask again
        self.date = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")

    # ---- commands ----

    def left(self):
        """Seconds left for the present stage."""
        return min(self.deadline, self.stage_deadline) - time.monotonic()

    def call(self, name, command, limit=600, **environment):
        """Runs a command in the bundle, as a process group that is killed at the limit. Its output goes to files:
        what a killed command had printed is kept, and nothing waits for a pipe that a grandchild holds."""
        command = [str(part) for part in command]
        limit, begin = max(min(limit, self.left() - KILL_SECONDS), 1), time.monotonic()
        streams = [self.work / "logs" / f"{self.stage}-{name}.{kind}" for kind in ("out", "err")]
        environment = {key: str(value) for key, value in environment.items()}
        try:
            with streams[0].open("wb") as output, streams[1].open("wb") as errors:
                process = subprocess.Popen(command, cwd=str(self.bundle), stdin=subprocess.DEVNULL, stdout=output,
                                           stderr=errors, start_new_session=True,
                                           env={**os.environ, **self.environment, **environment})
            with self.lock:
                self.running.add(process)
            try:
                code = process.wait(limit)
            except subprocess.TimeoutExpired:
                code = None
            end_group(process)  # also what a command that ended left behind
            with self.lock:
                self.running.discard(process)
        except OSError as error:
            code = 127
            streams[1].write_text(f"error: {error}\n")
        call = Call(code, read(streams[0]), read(streams[1]), time.monotonic() - begin)
        with self.lock:
            self.commands.append({"stage": self.stage, "name": name, "command": " ".join(command),
                                  "exit_code": code, "seconds": round(call.seconds, 2), **environment})
        return call

    def vqlab(self, name, *arguments, limit=600, **environment):
        return self.call(name, [self.bundle / "run", self.bundle / "bin/vqlab", *arguments], limit, **environment)

    def device_tests(self, name, *arguments, limit=600, before=(), **environment):
        program = self.bundle / "bin/vqlab_gpu_tests"
        return self.call(name, [self.bundle / "run", *before, program, *arguments], limit, **environment)

    def data(self):
        """The folder of Fashion-MNIST; Skip without one."""
        for folder in (self.bundle / "data", pathlib.Path("/usr/share/datasets/fashion-mnist")):
            if any(folder.glob("train-images*")):
                return folder
        raise Skip("no data set: pack one with profiling/bundle --data DIR")

    def need(self, program):
        if shutil.which(program) is None:
            raise Skip(f"{program} is not installed")

    def note(self, text):
        """Lines below the verdicts, for those who watch."""
        print("\n".join("  " + line for line in text.splitlines()), flush=True)

    # ---- stages ----

    def run_stage(self, name, function, limit, needs_gpu=True):
        """A stage: its verdict in one line, and what it measured."""
        self.stage, begin, clock = name, time.monotonic(), datetime.datetime.now()
        self.stage_deadline = begin + limit
        entry = {"verdict": "FAIL", "remark": "", "limit_seconds": limit, "data": {}}
        try:
            if needs_gpu and self.no_gpu:
                raise Skip(self.no_gpu)
            if self.left() < min(5, limit / 2):
                raise Skip("no time left")
            entry["verdict"], entry["remark"] = function(self, entry["data"])
        except Skip as reason:
            entry["verdict"], entry["remark"] = "SKIPPED", str(reason)
        except Exception as error:  # a defect of a stage must not stop the others
            entry["remark"] = f"{type(error).__name__}: {error}"
            (self.work / "logs" / f"{name}-traceback.err").write_text(traceback.format_exc())
        entry["seconds"] = round(time.monotonic() - begin, 1)
        entry["clocks"] = self.clocks(clock)
        self.stages[name] = entry
        line = f"{entry['verdict']:8} {name:12} {entry['remark']} ({entry['seconds']:.0f} of {limit:.0f} s)"
        self.lines.append(line)
        print(line, flush=True)
        self.write()

    def clocks(self, begin):
        """Of the time since `begin` in which the GPU was busy: clock of its SMs, power, temperature."""
        busy = []
        for line in read(self.work / "clocks.csv").splitlines():
            parts = [part.strip() for part in line.split(",")]
            try:
                at = datetime.datetime.strptime(parts[0], "%Y/%m/%d %H:%M:%S.%f")
                numbers = [float(part) for part in parts[1:5]]
            except (ValueError, IndexError):
                continue
            if at >= begin and len(numbers) == 4 and numbers[0] > 0:
                busy.append(numbers)
        if not busy:
            return {}
        return {"samples": len(busy), "sm_mhz_median": statistics.median(b[1] for b in busy),
                "sm_mhz_max": max(b[1] for b in busy), "watts_max": max(b[2] for b in busy),
                "celsius_max": max(b[3] for b in busy)}

    # ---- results ----

    def result(self):
        try:
            build = json.loads(read(self.bundle / "BUILD"))
        except ValueError:
            build = {}
        return {"what": f"profiling/{self.name}", "device": self.gpu.get("name"),
                "driver": self.gpu.get("driver_version"), "date": self.date, "build": build,
                "seconds": round(time.monotonic() - self.start, 1), "stages": self.stages, "commands": self.commands}

    def write(self):
        """gpu_check.tgz: gpu.json, summary.txt, ncu.csv, golden/, logs/. The first two also lie beside it."""
        replace(self.out / "gpu.json", json.dumps(self.result(), indent=1) + "\n")
        replace(self.out / "summary.txt", "".join(line + "\n" for line in self.lines))
        part = self.out / "gpu_check.tgz.part"
        with tarfile.open(str(part), "w:gz", compresslevel=6) as archive:
            for file in (self.out / "gpu.json", self.out / "summary.txt", self.work / "ncu.csv"):
                if file.exists():
                    archive.add(str(file), file.name)
            for file in sorted((self.work / "golden").rglob("*")):
                if file.is_file() and file.stat().st_size <= LARGEST_LOG:
                    archive.add(str(file), str(file.relative_to(self.work)))
            for file in sorted((self.work / "logs").iterdir()):
                add_end(archive, file)
        part.replace(self.out / "gpu_check.tgz")

    def cut_off(self, number):
        """Keeps what there is when somebody ends the run."""
        with self.lock:
            processes = list(self.running)
        for process in processes:
            end_group(process, patience=0.2)
        self.lines.append(f"cut off by signal {number} in stage {self.stage}")
        self.write()
        self.close()

    def close(self):
        shutil.rmtree(str(self.work), ignore_errors=True)


def add_end(archive, file):
    size = file.stat().st_size
    if size == 0:
        return
    with file.open("rb") as log:
        info = archive.gettarinfo(str(file), f"logs/{file.name}", log)
        if size > LARGEST_LOG:
            log.seek(size - LARGEST_LOG)
            info.size, info.name = LARGEST_LOG, f"logs/end-of-{file.name}"
        archive.addfile(info, log)


def end_group(process, patience=KILL_SECONDS):
    """Ends a process and those that it started, politely first."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except (ProcessLookupError, PermissionError):
            break
        try:
            process.wait(patience if number == signal.SIGTERM else KILL_SECONDS)
        except subprocess.TimeoutExpired:
            continue
