"""Training runs on Fashion-MNIST: quality in the range of the CPU's, equal runs, with and without a graph, precisions."""

CONFIG = "apps/configs/fmnist-s.toml"
ALL = ("--set", "data.validation=0")  # all 60,000 images
EPOCH = ALL + ("--set", "train.epochs=1")
# Of fmnist-s after one epoch with other seeds on the CPU; a little wider.
ONE_EPOCH = {"mse": (0.008, 0.0125), "codes_used": (250, 256), "perplexity": (140, 256)}


def train_once(session, data, name, *arguments, evaluate=("cuda",), limit=60):
    """Trains and evaluates; problems, one a line. data[name] holds what the commands printed."""
    run = session.work / "runs" / name
    call = session.vqlab(f"{name}-train", "train", CONFIG, "--device", "cuda", "--json", "--quiet", "--run", run,
                         "--set", f"data.path={session.data()}", *arguments, limit=limit)
    entry = {"train": call.json(), "wall_seconds": round(call.seconds, 2)}
    data[name] = entry
    if call.code != 0:
        return [f"{name}: {call.why()}"]
    for where in evaluate:
        call = session.vqlab(f"{name}-eval-{where}", "eval", run, "--split", "test", "--json", "--device", where,
                             limit=30)
        entry[f"eval_{where}"] = call.json()
        if call.code != 0:
            return [f"{name}: {call.why()}"]
    return []


def outside(data, name, bounds):
    """Figures of the test split beyond their bounds. A figure that is missing or NaN is beyond, too."""
    found, wrong = data.get(name, {}).get("eval_cuda", {}), []
    for key, (low, high) in bounds.items():
        value = found.get(key)
        if not (isinstance(value, (int, float)) and low <= value <= high):
            wrong.append(f"{name}: {key} {value} is not in [{low}, {high}]")
    return wrong


def learned(session, data, name, bounds, *arguments, **options):
    problems = train_once(session, data, name, *arguments, **options)
    return problems or outside(data, name, bounds)


def told(data, name):
    """One run in one line."""
    entry = data.get(name, {})
    found, speed = entry.get("eval_cuda", {}), entry.get("train", {}).get("images_per_second")
    if speed is None:
        return f"{name}: failed"
    figures = [f"{speed:.0f} images/s"] + ([f"mse {found['mse']:.5f}"] if "mse" in found else [])
    if found.get("codes_used"):
        figures.append(f"{found['codes_used']} codes")
    return f"{name}: " + ", ".join(figures)


def has_option(session, command, option):
    return option in session.vqlab(f"{command}-help", command, "--help", limit=10).output


def train(session, data):
    session.data()
    has_graph = has_option(session, "train", "--no-graph")
    eager = ("--no-graph",) if has_graph else ()
    problems = learned(session, data, "eager", ONE_EPOCH, *EPOCH, "--seed", "0", *eager, evaluate=("cuda", "cpu"))
    if problems:
        return "FAIL", "; ".join(problems)
    problems += train_once(session, data, "eager-again", *EPOCH, "--seed", "0", *eager, evaluate=())
    pairs = [("eager", "eager-again")]
    if has_graph:
        problems += learned(session, data, "graph", ONE_EPOCH, *EPOCH, "--seed", "0")
        pairs.append(("eager", "graph"))
        if not data["graph"].get("train", {}).get("graph"):
            problems.append("graph: the step was not captured")
    for name, other in pairs:
        hashes = [data[run].get("train", {}).get("weights_sha256") for run in (name, other)]
        if hashes[0] is None or hashes[0] != hashes[1]:
            problems.append(f"{name} and {other} have different weights")
    here, there = (data["eager"].get(f"eval_{where}", {}).get("mse") for where in ("cuda", "cpu"))
    # The same weights; encoder and decoder add in another order, and a latent between two codes may tip over.
    if None in (here, there) or not abs(here - there) <= 1e-4 * there:
        problems.append(f"mse of the same weights: {here} on the GPU, {there} on the CPU")
    for seed in ("1", "2"):
        if session.left() > 8:
            problems += learned(session, data, f"seed-{seed}", ONE_EPOCH, *EPOCH, "--seed", seed)
    if session.left() > 15:
        problems += train_once(session, data, "5-epochs", *ALL, "--seed", "0")
    return ("FAIL" if problems else "PASS"), "; ".join([told(data, name) for name in data] + problems)


def precision(session, data):
    """An epoch in each precision that the configuration offers beside fp32, each as good as fp32 within its range."""
    session.data()
    offered, refused = [], []
    for name in ("tf32", "bf16"):
        call = session.vqlab(f"{name}-dry", "train", CONFIG, "--device", "cuda", "--dry-run", "--set",
                             f"train.precision={name}", "--set", f"data.path={session.data()}",
                             "--run", session.work / "runs" / f"dry-{name}", limit=15)
        (offered if call.code == 0 else refused).append(name)
        data[f"{name}-offered"] = call.code == 0 or call.why()
    if not offered:
        data["refused"] = refused
        return "SKIPPED", f"train.precision is fp32 only: {data['bf16-offered']}"
    problems, runs = [], {}
    for name in offered:
        problems += learned(session, runs, name, ONE_EPOCH, *EPOCH, "--seed", "0", "--set", f"train.precision={name}")
    data["runs"] = runs
    remarks = [told(runs, name) for name in runs] + [f"{name} not offered" for name in refused]
    return ("FAIL" if problems else "PASS"), "; ".join(remarks + problems)
