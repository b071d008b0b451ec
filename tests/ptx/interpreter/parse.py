"""From the text of a kernel to a list of instructions whose operands are resolved.

An operand is a Reg, an Imm, a Special, a Mem, a list ({a, b}) or a tuple (a|b)."""
import re
from dataclasses import dataclass, field

from .errors import PtxError

WIDTH = {"pred": 1}  # of a type in bits: the digits of its name, but
SPECIAL = ("tid", "ntid", "ctaid", "nctaid", "laneid", "warpid", "clock", "clock64", "smid", "lanemask_lt",
           "lanemask_le", "lanemask_eq", "lanemask_ge", "lanemask_gt", "dynamic_smem_size")


def width_of(kind: str) -> int:
    if kind in WIDTH:
        return WIDTH[kind]
    digits = re.match(r"b?[a-z](\d+)(x2)?$", kind)
    if not digits:
        raise PtxError(f"no type: {kind}")
    return int(digits[1]) * (2 if digits[2] else 1)


@dataclass(frozen=True)
class Reg:
    index: int


@dataclass(frozen=True)
class Imm:
    bits: int


@dataclass(frozen=True)
class Special:
    name: str


@dataclass(frozen=True)
class Mem:
    base: object  # Reg or Imm
    offset: int
    extra: object = None  # the coordinates of a tensor: [map, {x, y}]


@dataclass
class Instruction:
    parts: list  # of the opcode, cut at its dots
    operands: list
    guard: object = None  # (Reg, negated)
    text: str = ""
    target: str = ""  # label of a branch
    registers: frozenset = field(default_factory=frozenset)  # that it reads or writes

    @property
    def kind(self) -> str:
        return self.parts[-1]


def split(text: str) -> list:
    """At commas outside of brackets."""
    parts, depth, current = [], 0, ""
    for c in text:
        depth += (c in "[{(") - (c in "]})")
        if c == "," and depth == 0:
            parts.append(current.strip())
            current = ""
        else:
            current += c
    return parts + [current.strip()] if current.strip() else parts


class Kernel:
    """Parameters and shared arrays have addresses; instructions[i] for i in labels[name] ..."""

    def __init__(self, name: str, parameters: str, body: str, shared: list, dynamic: set):
        self.name, self.instructions, self.labels = name, [], {}
        self.registers = {}  # index by name
        self.parameters = {}  # (address, bytes) by name
        end = 0
        for text in filter(None, map(str.strip, parameters.split(","))):
            found = re.search(r"\.param\s+(?:\.align (\d+)\s+)?\.(\w+)\s+(?:\.ptr\b[^,]*?)?(\S+?)(?:\[(\d+)\])?$", text)
            if not found:
                raise PtxError(f"{name}: parameter {text}")
            size = width_of(found[2]) // 8 * int(found[4] or 1)
            align = int(found[1] or width_of(found[2]) // 8)
            end = -(-end // align) * align
            self.parameters[found[3]] = (end, size)
            end += size
        self.parameter_bytes = end
        self.symbols, self.local_bytes = {}, 0
        end = 0
        for align, symbol, size in shared:
            end = -(-end // int(align)) * int(align)
            self.symbols[symbol] = end
            end += int(size)
        self.dynamic_begin = -(-end // 1024) * 1024
        for symbol in dynamic:
            self.symbols[symbol] = self.dynamic_begin
        for align, symbol, size in re.findall(r"\.local\s+\.align (\d+)\s+\.b8\s+(\S+?)\[(\d+)\];", body):
            self.symbols[symbol] = self.local_bytes
            self.local_bytes += int(size)
        self._parse(body)

    def fail(self, text: str, problem: str):
        raise PtxError(f"{self.name}: `{text}`: {problem}")

    def _parse(self, body: str):
        """Names that a { } declares are made unique first."""
        token = re.compile(r"\s*([{}]|[\w$]+:(?!:)|[^;{}][^;]*;)")
        statements, scopes, position = [], [{}], 0
        number = 0
        while match := token.match(body, position):
            position, text = match.end(), match[1].rstrip(";").strip()
            if text == "{":
                number += 1
                scopes.append({})
            elif text == "}":
                scopes.pop()
            else:
                statements.append((text, list(scopes), number))
                inner = len(scopes) > 1
                declared = re.match(r"\.reg\s+\.\w+\s+(.*)", text, re.S)
                if inner and text.endswith(":"):
                    scopes[-1][text[:-1]] = f"{text[:-1]}${number}"
                elif inner and declared:
                    scopes[-1].update({name: f"{name}${number}" for name in split(declared[1])})
        if body[position:].strip():
            self.fail(body[position:position + 60].strip(), "cannot be parsed")
        for text, around, _ in statements:
            names = {name: unique for scope in around for name, unique in scope.items()}
            if names:
                text = re.sub(r"(?<![\w.$%:])[A-Za-z_%][\w$]*", lambda m: names.get(m[0], m[0]), text)
            if text.endswith(":"):
                self.labels[text[:-1]] = len(self.instructions)
            elif not text.startswith("."):
                self.instructions.append(self._instruction(text, set(names.values())))

    def _instruction(self, text: str, local_names: set) -> Instruction:
        match = re.match(r"(?:@(!?)(\S+)\s+)?([a-z_][\w.:]*)\s*(.*)$", text, re.S)
        if not match:
            self.fail(text, "cannot be parsed")
        negated, guard, opcode, rest = match.groups()
        made = Instruction(opcode.split("."), [], text=" ".join(text.split()))
        seen = set()
        if guard:
            made.guard = (self._operand(guard, seen, local_names, text), bool(negated))
        if made.parts[0] == "bra":
            made.target = rest.strip()
        else:
            made.operands = [self._operand(part, seen, local_names, text) for part in split(rest)]
        made.registers = frozenset(seen)
        return made

    def _operand(self, text: str, seen: set, local_names: set, whole: str):
        again = lambda part: self._operand(part, seen, local_names, whole)
        if text == "_":
            return None
        if text[0] == "{":
            return [again(part) for part in split(text[1:-1])]
        if text[0] == "[":
            parts = split(text[1:-1])
            base = re.match(r"(.+?)\s*(?:\+\s*(-?\w+))?$", parts[0])
            return Mem(again(base[1]), int(base[2] or "0", 0), again(parts[1]) if len(parts) > 1 else None)
        if "|" in text:
            return tuple(again(part) for part in text.split("|"))
        if re.fullmatch(r"0[fF][0-9a-fA-F]{8}|0[dD][0-9a-fA-F]{16}", text):
            return Imm(int(text[2:], 16))
        if re.fullmatch(r"-?(0x[0-9a-fA-F]+|\d+)U?", text):
            return Imm(int(text.rstrip("U"), 0))
        if text in self.symbols:
            return Imm(self.symbols[text])
        if text in self.parameters:
            return Imm(self.parameters[text][0])
        name = text.lstrip("%").split(".")[0]
        if text[0] == "%" and name in SPECIAL:
            return Special(text[1:])
        if text[0] == "%" or text in local_names:
            seen.add(index := self.registers.setdefault(text, len(self.registers)))
            return Reg(index)
        self.fail(whole, f"operand {text}")
