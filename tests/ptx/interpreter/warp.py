"""What lanes of a warp do together, and barriers of a block."""
from . import numbers
from .compile import EXIT


def partners(block, i, threads: list):
    """Those who perform the instruction now, or None while some are missing. `threads` are those of one warp (or
    warpgroup) that wait in it."""
    first = threads[0]
    width = 128 if i.parts[0] in ("wgmma", "setmaxnreg") else 32
    begin = first.linear // width * width
    if i.parts[0] == "activemask":
        return threads
    if i.parts[0] in ("shfl", "vote", "match", "redux", "elect", "bar"):  # bar.warp.sync
        mask = first.get(i.operands[-1])
        if not mask >> first.lane & 1:
            first.fail("the lane is not in its own mask")
        needed = [begin + lane for lane in range(32) if mask >> lane & 1]
    else:
        needed = list(range(begin, begin + width))
    if needed[-1] >= len(block.threads):
        first.fail("the block has no such threads")
    if any(block.threads[n].next == EXIT for n in needed):
        first.fail("others of its warp have ended")
    here = {t.linear: t for t in threads}
    return [here[n] for n in needed] if all(n in here for n in needed) else None


def pass_barriers(block, waiting: dict) -> bool:
    progress = False
    for number, threads in waiting.items():
        operands = block.kernel.instructions[threads[0].at].operands
        need = threads[0].get(operands[1]) if len(operands) > 1 else len(block.threads)
        if need % 32 or len(threads) + block.arrived[number] > need:
            threads[0].fail(f"barrier {number} of {need} threads")
        coming = [t for t in threads if "arrive" in block.kernel.instructions[t.at].parts]
        if len(threads) + block.arrived[number] == need:
            block.arrived[number] = 0
        else:
            threads = coming
            block.arrived[number] += len(coming)
        for thread in threads:
            block.resume(thread)
        progress = progress or bool(threads)
    return progress


def perform(block, i, threads: list):
    _KINDS[i.parts[0]](i, threads)


def _elect(i, threads):
    for t in threads:
        to, predicate = i.operands[0] if isinstance(i.operands[0], tuple) else (None, i.operands[0])
        if to is not None:
            t.r[to.index] = threads[0].lane
        t.r[predicate.index] = int(t is threads[0])


def _activemask(i, threads):
    for t in threads:
        t.r[i.operands[0].index] = sum(1 << other.lane for other in threads)


def _vote(i, threads):
    said = {t.lane: t.get(i.operands[1]) & 1 for t in threads}
    answer = {"ballot": sum(x << lane for lane, x in said.items()), "any": int(any(said.values())),
              "all": int(all(said.values())), "uni": int(len(set(said.values())) == 1)}[i.parts[2]]
    for t in threads:
        t.r[i.operands[0].index] = answer


def _match(i, threads):
    values = {t.lane: t.get(i.operands[1]) for t in threads}
    everyone = sum(1 << lane for lane in values)
    for t in threads:
        to, predicate = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0], None)
        equal = sum(1 << lane for lane, x in values.items() if x == values[t.lane])
        if i.parts[1] == "all":
            equal = everyone if equal == everyone else 0
        t.r[to.index] = equal
        if predicate is not None:
            t.r[predicate.index] = int(equal == everyone)


def _redux(i, threads):
    values = [t.get(i.operands[1]) for t in threads]
    if i.kind == "s32":
        values = [numbers.signed(x, 32) for x in values]
    result = values[0]
    for x in values[1:]:
        result = {"add": result + x, "min": min(result, x), "max": max(result, x), "and": result & x,
                  "or": result | x, "xor": result ^ x}[i.parts[2]]
    for t in threads:
        t.r[i.operands[0].index] = result & 0xFFFFFFFF


def _shfl(i, threads):
    """PTX ISA, "shfl.sync": c holds a clamp in its low five bits and a mask of segments above bit 8."""
    to, predicate = i.operands[0] if isinstance(i.operands[0], tuple) else (i.operands[0], None)
    values = {t.lane: t.get(i.operands[1]) for t in threads}
    results = []
    for t in threads:
        lane, b, c = t.lane, t.get(i.operands[2]) & 31, t.get(i.operands[3])
        clamp, segment = c & 31, c >> 8 & 31
        highest, lowest = (lane & segment) | (clamp & ~segment & 31), lane & segment
        source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": lowest | (b & ~segment & 31)}[i.parts[2]]
        inside = source >= highest if i.parts[2] == "up" else source <= highest
        source = source if inside else lane
        if source not in values:
            t.fail(f"reads lane {source}, which is not in the mask")
        results.append((values[source], int(inside)))
    for t, (bits, inside) in zip(threads, results):
        t.r[to.index] = bits
        if predicate is not None:
            t.r[predicate.index] = inside


_KINDS = {"elect": _elect, "activemask": _activemask, "vote": _vote, "match": _match, "redux": _redux, "shfl": _shfl,
          "bar": lambda i, threads: None}
