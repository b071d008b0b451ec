"""Turns the instructions of a kernel into Python functions, one for each stretch without a jump.

A function takes a thread and its registers and returns the number of the next one, EXIT, or SUSPEND: then
thread.at is an instruction that threads do together or wait in (machine.py, tensor.py)."""
import re
from dataclasses import dataclass

from . import numbers
from .errors import PtxError
from .parse import Imm, Instruction, Kernel, Mem, Reg, Special, width_of

EXIT, SUSPEND = -1, -2
# Where shared, param and local memory begin among generic addresses; global addresses are below.
WINDOW = {"global": 0, "shared": 1 << 48, "param": 1 << 49, "local": 1 << 50}
SPACES = ("global", "shared", "param", "local", "const")
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "ls": "<=", "hi": ">",
           "hs": ">="}


def suspends(i: Instruction) -> bool:
    return (i.parts[0] in ("bar", "shfl", "vote", "match", "redux", "ldmatrix", "stmatrix", "mma", "wgmma", "setmaxnreg",
                           "elect", "activemask") or i.parts[:2] in (["barrier", "sync"], ["mbarrier", "try_wait"],
                                                                     ["mbarrier", "test_wait"]))


@dataclass
class Compiled:
    kernel: Kernel
    functions: list
    registers: list  # of each function: the registers that it touches
    after: dict  # of a suspending instruction, by its index: the function that follows
    accumulators: frozenset  # registers of products of warpgroups


def value(operand, width: int = 64) -> str:
    """As a Python expression of an unsigned int."""
    if isinstance(operand, Reg):
        return f"r[{operand.index}]"
    if isinstance(operand, Imm):
        return str(operand.bits & ((1 << width) - 1))
    if isinstance(operand, Special):
        return f"t.special({operand.name!r})"
    raise PtxError(f"operand {operand}")


def address(operand: Mem) -> str:
    return f"({value(operand.base)} + {operand.offset})" if operand.offset else value(operand.base)


def space_of(parts: list) -> str:
    return next((p.split(":")[0] for p in parts if p.split(":")[0] in SPACES), "generic")


class _Statement:
    """One instruction as Python."""

    def __init__(self, i: Instruction):
        self.i, self.op, self.parts, self.ops = i, i.parts[0], i.parts, i.operands
        self.type = i.kind if re.fullmatch(r"b?[fsub]\d+(x2)?|pred|tf32", i.kind) else "b32"
        self.width = width_of("b32" if self.type == "tf32" else self.type)
        self.mask = (1 << self.width) - 1
        self.signed = self.type[0] == "s"

    def into(self, operand, expression: str) -> str:
        return f"r[{operand.index}] = {expression}" if operand is not None else expression

    def bits(self, n: int, width: int = 0) -> str:
        return value(self.ops[n], width or self.width)

    def integer(self, n: int) -> str:
        return f"signed({self.bits(n)}, {self.width})" if self.signed else self.bits(n)

    def real(self, n: int) -> str:
        return f"{self.type}({self.bits(n)})"

    def code(self) -> str:
        special = getattr(self, "_" + self.op, None)
        if special:
            return special()
        if self.type in ("f16x2", "bf16x2"):
            return self._halves()
        if self.type in numbers.ENCODE:
            return self.into(self.ops[0], f"{self.type}_bits({self._real_result()})")
        return self.into(self.ops[0], f"({self._integer_result()}) & {self._result_mask()}")

    # ---- arithmetic ----

    def _real_result(self) -> str:
        a = lambda n: self.real(n)
        return {"add": lambda: f"{a(1)} + {a(2)}", "sub": lambda: f"{a(1)} - {a(2)}", "mul": lambda: f"{a(1)} * {a(2)}",
                "fma": lambda: f"fma32({a(1)}, {a(2)}, {a(3)})" if self.type == "f32" else f"{a(1)} * {a(2)} + {a(3)}",
                "div": lambda: f"divide({a(1)}, {a(2)})", "rcp": lambda: f"divide(1.0, {a(1)})",
                "sqrt": lambda: f"root({a(1)})", "rsqrt": lambda: f"divide(1.0, root({a(1)}))",
                "neg": lambda: f"-{a(1)}", "abs": lambda: f"abs({a(1)})", "ex2": lambda: f"2.0 ** {a(1)}",
                "min": lambda: f"minimum({a(1)}, {a(2)})", "max": lambda: f"maximum({a(1)}, {a(2)})"}[self.op]()

    def _halves(self) -> str:
        kind = self.type[:-2]
        expression = {"add": "{} + {}", "sub": "{} - {}", "mul": "{} * {}", "fma": "{} * {} + {}", "neg": "-{}",
                      "min": "minimum({}, {})", "max": "maximum({}, {})"}[self.op]
        half = lambda h: expression.format(*(f"{kind}({value(o)} >> {16 * h})" for o in self.ops[1:]))
        return self.into(self.ops[0], f"{kind}_bits({half(0)}) | {kind}_bits({half(1)}) << 16")

    def _result_mask(self) -> int:
        return (1 << 2 * self.width) - 1 if "wide" in self.parts else self.mask

    def _integer_result(self) -> str:
        a, b, x, y = (lambda: self.bits(1)), (lambda: self.bits(2)), (lambda: self.integer(1)), (lambda: self.integer(2))
        product = lambda: f"({x()} * {y()})" + (f" >> {self.width}" if "hi" in self.parts else "")
        amount = lambda: f"min({self.bits(2, 32)}, 64)"
        return {"add": lambda: f"{a()} + {b()}", "sub": lambda: f"{a()} - {b()}", "mul": product,
                "mad": lambda: f"({product()}) + {self.bits(3, 64)}",
                "div": lambda: f"divide_int({x()}, {y()})",
                "rem": lambda: f"{x()} - {y()} * divide_int({x()}, {y()})",
                "min": lambda: f"min({x()}, {y()})", "max": lambda: f"max({x()}, {y()})",
                "abs": lambda: f"abs({x()})", "neg": lambda: f"-{a()}", "not": lambda: f"~{a()}",
                "and": lambda: f"{a()} & {b()}", "or": lambda: f"{a()} | {b()}", "xor": lambda: f"{a()} ^ {b()}",
                "shl": lambda: f"{a()} << {amount()}", "shr": lambda: f"{x()} >> {amount()}",
                "popc": lambda: f"{a()}.bit_count()", "clz": lambda: f"{self.width} - {a()}.bit_length()",
                "brev": lambda: f"reverse({a()}, {self.width})",
                "bfind": lambda: f"find_leading({a()}, {self.width}, {self.signed}, {'shiftamt' in self.parts})",
                "bfe": lambda: f"extract({a()}, {b()}, {self.bits(3)}, {self.width}, {self.signed})",
                "bfi": lambda: f"insert({a()}, {b()}, {self.bits(3)}, {self.bits(4)}, {self.width})",
                "prmt": lambda: f"permute({a()}, {b()}, {self.bits(3)})",
                "lop3": lambda: f"lop3({a()}, {b()}, {self.bits(3)}, {self.bits(4)})",
                "shf": lambda: f"(({b()} << 32 | {a()}) << ({self.bits(3)} & 31)) >> 32" if "l" in self.parts
                else f"({b()} << 32 | {a()}) >> ({self.bits(3)} & 31)"}[self.op]()

    def _setp(self) -> str:
        test = self.parts[1]
        if self.type in numbers.DECODE:
            x, y = self.real(1), self.real(2)
            if test in ("num", "nan"):
                expression = f"({'' if test == 'num' else 'not '}({x} == {x} and {y} == {y}))"
            else:  # a comparison with NaN is false, with the suffix u true
                ordered = "True" if test.endswith("u") else "False"
                expression = f"compare({x}, {y}, {COMPARE[test[:2]]!r}, {ordered})"
        else:
            expression = f"({self.integer(1)} {COMPARE[test]} {self.integer(2)})"
        if self.parts[2] in ("and", "or", "xor"):
            sign = {"and": "&", "or": "|", "xor": "^"}[self.parts[2]]
            expression = f"(int({expression}) {sign} {self.bits(3)})"
        return self.into(self.ops[0], f"int({expression})")

    def _selp(self) -> str:
        return self.into(self.ops[0], f"{self.bits(1)} if {self.bits(3)} else {self.bits(2)}")

    def _mov(self) -> str:
        to, source = self.ops
        if isinstance(to, list):
            part = self.width // len(to)
            return f"x = {value(source)}; " + "; ".join(
                self.into(o, f"x >> {part * n} & {(1 << part) - 1}") for n, o in enumerate(to) if o is not None)
        if isinstance(source, list):
            part = self.width // len(source)
            return self.into(to, " | ".join(f"{value(o)} << {part * n}" for n, o in enumerate(source)))
        return self.into(to, f"{self.bits(1)} & {self.mask}")

    def _cvt(self) -> str:
        kinds = [p for p in self.parts[1:] if re.fullmatch(r"b?[fsub]\d+(x2)?|tf32", p)]
        to, source = kinds[0], kinds[-1]
        if to in ("f16x2", "bf16x2"):  # the first operand becomes the upper half
            half = lambda n: f"{to[:-2]}_bits(f32({self.bits(n, 32)}))"
            return self.into(self.ops[0], f"{half(1)} << 16 | {half(2)}")
        width = width_of(source)
        bits = self.bits(1, width)
        rounding = next((p for p in self.parts if p in numbers.ROUND), None)
        if to == "tf32":
            return self.into(self.ops[0], f"({bits} + 0x1000) & 0xffffe000")
        if source in numbers.DECODE:
            x = f"{source}({bits})"
            if to in numbers.ENCODE:
                x = f"float(ROUND[{rounding!r}]({x}))" if rounding else x
                return self.into(self.ops[0], f"{to}_bits({x})")
            bound = 1 << width_of(to)
            low, high = (-bound // 2, bound // 2 - 1) if to[0] == "s" else (0, bound - 1)
            return self.into(self.ops[0], f"to_int({x}, {rounding!r}, {low}, {high}) & {bound - 1}")
        x = f"({bits} & {(1 << width) - 1})"
        if source[0] == "s":
            x = f"signed({x}, {width})"
        if to in numbers.ENCODE:
            return self.into(self.ops[0], f"{to}_bits({x})")
        return self.into(self.ops[0], f"{x} & {(1 << width_of(to)) - 1}")

    # ---- memory ----

    def _cvta(self) -> str:
        sign = "-" if "to" in self.parts else "+"
        return self.into(self.ops[0], f"{self.bits(1)} {sign} WINDOW[{space_of(self.parts)!r}]")

    def _ld(self) -> str:
        to = self.ops[0] if isinstance(self.ops[0], list) else [self.ops[0]]
        size = self.width // 8
        load = f"x = t.load({space_of(self.parts)!r}, {address(self.ops[1])}, {size}, {len(to)})"
        cut = lambda n: f"signed(x >> {self.width * n} & {self.mask}, {self.width}) & {(1 << 64) - 1}" if self.signed \
            else f"x >> {self.width * n} & {self.mask}"
        return "; ".join([load] + [self.into(o, cut(n)) for n, o in enumerate(to) if o is not None])

    def _st(self) -> str:
        source = self.ops[1] if isinstance(self.ops[1], list) else [self.ops[1]]
        whole = " | ".join(f"({value(o, self.width)} & {self.mask}) << {self.width * n}" for n, o in enumerate(source))
        return f"t.store({space_of(self.parts)!r}, {address(self.ops[0])}, {self.width // 8}, {len(source)}, {whole})"

    def _atom(self, returns: bool = True) -> str:
        change = next(p for p in self.parts if p in ("add", "min", "max", "exch", "cas", "and", "or", "xor", "inc"))
        place, *arguments = self.ops[1:] if returns else self.ops
        call = (f"t.atomic({space_of(self.parts)!r}, {change!r}, {self.type!r}, {address(place)}, "
                f"{', '.join(value(o, self.width) for o in arguments)})")
        return self.into(self.ops[0], call) if returns else call

    def _red(self) -> str:
        return self._atom(False)

    def _isspacep(self) -> str:
        return self.into(self.ops[0], f"int(t.space({self.bits(1)})[0] == {self.parts[1].split(':')[0]!r})")

    def _cp(self) -> str:
        if self.parts[1:3] == ["async", "commit_group"]:
            return "t.commit_copies()"
        if self.parts[1:3] == ["async", "wait_group"]:
            return f"t.wait_for_copies({self.bits(0)})"
        if self.parts[1:3] == ["async", "wait_all"]:
            return "t.commit_copies(); t.wait_for_copies(0)"
        if self.parts[1] == "async" and self.parts[2] in ("ca", "cg"):
            given = self.bits(3, 32) if len(self.ops) > 3 else self.bits(2, 32)
            return f"t.start_copy({address(self.ops[0])}, {address(self.ops[1])}, {self.bits(2, 32)}, {given})"
        if self.parts[1:3] == ["async", "bulk"] and self.parts[3:4] == ["commit_group"]:
            return "t.commit_bulk_stores()"
        if self.parts[1:3] == ["async", "bulk"] and self.parts[3:4] == ["wait_group"]:
            return f"t.wait_for_bulk_stores({self.bits(0)})"
        if self.parts[1:5] == ["async", "bulk", "tensor", "2d"]:
            loads = self.parts[5].startswith("shared")
            tensor, tile = (self.ops[1], self.ops[0]) if loads else (self.ops[0], self.ops[1])
            column, row = (f"signed({value(o, 32)}, 32)" for o in tensor.extra)  # the inner coordinate first
            barrier = address(self.ops[2]) if loads else "None"
            return f"t.block.start_box(t, {address(tile)}, {value(tensor.base)}, {row}, {column}, {barrier})"
        raise KeyError(self.op)

    def _mbarrier(self) -> str:
        if self.parts[1] == "init":
            return f"t.block.init_barrier(t, {address(self.ops[0])}, {self.bits(1, 32)})"
        if self.parts[1] == "inval":
            return f"t.block.forget_barrier(t, {address(self.ops[0])})"
        if self.parts[1] == "expect_tx":
            return f"t.block.arrive(t, {address(self.ops[0])}, 0, {self.bits(1, 32)})"
        if self.parts[1] == "arrive":
            expects = "expect_tx" in self.parts
            count = self.bits(2, 32) if len(self.ops) > 2 else "1"
            arrivals, expected = ("1", count) if expects else (count, "0")
            return f"t.block.arrive(t, {address(self.ops[1])}, {arrivals}, {expected})"
        raise KeyError(self.op)

    def _fence(self) -> str:
        if self.parts[1] == "mbarrier_init":
            return "t.block.fence_barrier_init()"
        return "t.fence_proxy()" if self.parts[1:3] == ["proxy", "async"] else "pass"

    def _membar(self) -> str:
        return "pass"


def compile_kernel(kernel: Kernel) -> Compiled:
    starts = {0} | set(kernel.labels.values())
    for n, i in enumerate(kernel.instructions):
        if i.parts[0] in ("bra", "ret", "exit", "trap") or suspends(i):
            starts.add(n + 1)
    begins = sorted(s for s in starts if s < len(kernel.instructions))
    number = {begin: k for k, begin in enumerate(begins)}
    number[len(kernel.instructions)] = EXIT
    source, touched, after = [], [], {}
    for k, begin in enumerate(begins):
        end = begins[k + 1] if k + 1 < len(begins) else len(kernel.instructions)
        source.append(f"def stretch_{k}(t, r):")
        registers = set()
        for n in range(begin, end):
            i = kernel.instructions[n]
            if i.parts[0] == "bra":
                line = f"return {number[kernel.labels[i.target]]}"
            elif i.parts[0] in ("ret", "exit"):
                line = f"return {EXIT}"
            elif i.parts[0] == "trap":
                line = "t.fail('trap')"
            elif suspends(i):
                after[n] = number[n + 1]
                line = f"t.at = {n}; return {SUSPEND}"
            else:
                try:
                    line = _Statement(i).code()
                except (KeyError, IndexError, ValueError, AttributeError, PtxError) as problem:
                    kernel.fail(i.text, f"not modelled ({problem!r})")
            if not suspends(i):
                registers |= i.registers
            if i.guard:
                reg, negated = i.guard
                line = f"if {'not ' if negated else ''}{value(reg)}:\n    " + line.replace("; ", "\n    ")
            source.append("  " + line.replace("\n", "\n  "))
        source.append(f"  return {number[end]}")
        touched.append(frozenset(registers))
    names = {name: getattr(numbers, name) for name in dir(numbers) if not name.startswith("_")}
    names["WINDOW"] = WINDOW
    exec(compile("\n".join(source), kernel.name, "exec"), names)
    accumulators = frozenset(o.index for i in kernel.instructions if i.parts[:2] == ["wgmma", "mma_async"]
                             for o in i.operands[0])
    return Compiled(kernel, [names[f"stretch_{k}"] for k in range(len(begins))], touched, after, accumulators)
