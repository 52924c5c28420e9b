"""Faults to put into the kernels' sources, one at a time: systematic ones, and those of documented bugs of backends.

A rule looks at one line of a kernel and yields the line with a fault, once for every place where the fault fits. What
the compiler would not see (another API's branch, a function that no kernel of the op calls) is left alone. A mutant is
known by what stays when lines move: its file, the line's text, and what the line becomes.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from opconform.backends.kernels.own_buffers import Source
from opconform.harness.model.buffers import GUARD

#: Functions that rounding faults call: 10 and 7 bits behind the point, as float16, TF32 and bfloat16 have them, and an
#: exponential that is off by 1e-4.
HELPERS = """
DEVICE float to_10_bits(float value) {
    const uint bits = as_uint(value);
    return (bits & 0x7F800000u) == 0x7F800000u ? value : as_float((bits + 0xFFFu + ((bits >> 13) & 1u)) & 0xFFFFE000u);
}

DEVICE float rough_exp(float x) {
    return exp(x) * 1.0001f;
}
"""

#: Files that no fault is put into: what makes one source of two APIs is no kernel.
LEFT_ALONE = ("api.h",)


@dataclass(frozen=True)
class Mutant:
    """A fault in one line of a file that an op's kernels are made from.

    line: its text without indentation and comment. nth: which of the file's lines of that text, from 0. becomes: the
    line with the fault. fault: the class of faults. number: of the line in the file. A fault of the host's has no file:
    `becomes` says what it does (`mutated.py`).
    """

    op: str
    file: str
    line: str
    becomes: str
    fault: str
    nth: int = 0
    number: int = 0

    @property
    def key(self) -> str:
        """What tells this mutant from all others, and stays while its line does."""
        return "|".join((self.op, self.file, self.line, str(self.nth), self.becomes))

    def text(self, file: str) -> str:
        """The text of the file with the fault, and with the helpers that it may call."""
        lines = file.splitlines()
        assert _code(lines[self.number]).strip() == self.line
        lines[self.number] = self.becomes
        if any(f"{name}(" in self.becomes for name in ("to_10_bits", "rough_exp")):
            lines.insert(_after_includes(lines), HELPERS)
        return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Line:
    """A line as a rule sees it: its code, the file's text, and the struct's arguments that have strides or sizes."""

    code: str
    file: str
    floats: frozenset[str]
    strided: Sequence[str]
    sized: Sequence[str]


Rule = Callable[[Line], Iterator[str]]


def each(pattern: str, becomes: str | Callable[[re.Match[str]], str]) -> Rule:
    """A rule that replaces one match of a pattern at a time."""
    compiled = re.compile(pattern)

    def rule(line: Line) -> Iterator[str]:
        for match in compiled.finditer(line.code):
            new = match.expand(becomes) if isinstance(becomes, str) else becomes(match)
            yield line.code[: match.start()] + new + line.code[match.end() :]

    return rule


# ---- the systematic ones ---------------------------------------------------------------------------------------------

_COMPARED = {"<": "<=", "<=": "<", ">": ">=", ">=": ">", "==": "!=", "!=": "=="}
_comparison = each(r"(?<=\s)(<=|>=|==|!=|<|>)(?=\s)", lambda match: _COMPARED[match[1]])
_logic = each(r"&&|\|\|", lambda match: "||" if match[0] == "&&" else "&&")
_SIGNS = {" + ": " - ", " - ": " + ", " += ": " -= ", " -= ": " += "}
_sign = each(r"(?<=[\w\])]) (\+|-|\+=|-=) (?=[\w(])", lambda match: _SIGNS[match[0]])
_unary_sign = each(r"(?<=[(=?:] )-(?=\w)|(?<=\()-(?=\w)|(?<=return )-(?=\w)", "")


def _packed_strides(line: Line) -> Iterator[str]:
    """A stride is taken for that of a packed tensor."""
    for match in re.finditer(r"(p(?:\.|->))(\w+)_nb\[(\d)\]", line.code):
        where, name, axis = match[1], match[2], int(match[3])
        if axis:
            step = f"{where}{name}_nb[{axis - 1}]"
            new = f"({step} * {where}{name}_ne[{axis - 1}])" if name in line.sized else step
        else:
            new = "4"
        yield line.code[: match.start()] + new + line.code[match.end() :]


_offset = each(r"p(?:\.|->)\w+_start\b", str(GUARD))
_INDEX = re.compile(r"const (?:ulong|size_t) (?!id\b)(\w+) = ([^;]*[%/][^;]*);")


def _index_is_zero(line: Line) -> Iterator[str]:
    """An index is taken as 0."""
    for match in _INDEX.finditer(line.code):
        yield line.code[: match.start(2)] + "0" + line.code[match.end(2) :]


_term = each(r" \+ (?:\w+|\(\w+ [*+] [\w.>-]+ \+ \w+\)) \* p(?:\.|->)\w+_nb\[\w+\]", "")
_factor = each(r"(?<=\bif \(id >= )[^{]+(?=\) \{)", lambda match: " * ".join(match[0].split(" * ")[:-1]) or "1")
_neighbour = each(r"(_nb|_ne)\[(\d)\]", lambda match: f"{match[1]}[{int(match[2]) ^ 1}]")


def _other_tensor(line: Line) -> Iterator[str]:
    """The stride or the size of another argument is used."""
    for match in re.finditer(r"(p(?:\.|->))(\w+)_(nb|ne)\[", line.code):
        among = line.strided if match[3] == "nb" else line.sized
        if match[2] in among and len(among) > 1:
            other = among[(among.index(match[2]) + 1) % len(among)]
            yield line.code[: match.start(2)] + other + line.code[match.end(2) :]


def _swapped(line: Line) -> Iterator[str]:
    """Neighbouring arguments of a call change places; not those of a kernel's or a function's own head."""
    if re.match(r"(DEVICE|__kernel|extern|static)\b.*\{$", line.code) or "(void)" in line.code:
        return
    for call in re.finditer(r"\b(?!if\b|for\b|while\b|min\b|fmax\b)\w+\(", line.code):
        arguments = _arguments(line.code, call.end())
        for (start, middle), (second, end) in itertools.pairwise(arguments):
            one, two = line.code[start:middle], line.code[second:end]
            yield f"{line.code[:start]}{two}{line.code[middle:second]}{one}{line.code[end:]}"


def _arguments(code: str, start: int) -> list[tuple[int, int]]:
    """Where the arguments of a call stand; none where the call does not end in this line."""
    found: list[tuple[int, int]] = []
    depth, begin = 0, start
    for place in range(start, len(code)):
        if code[place] in "([":
            depth += 1
        elif code[place] in ")]" and depth:
            depth -= 1
        elif code[place] == ")":
            return [*found, (begin, place)] if found else []
        elif code[place] == "," and not depth:
            found.append((begin, place))
            begin = place + 2
    return []


_OPERAND = r"[\w.\[\]>-]+"
_operands = each(rf"(?<!- )({_OPERAND}) ([-/%]) ({_OPERAND})(?=[);,])(?<!/ 4)", r"\3 \2 \1")
_plus_one = each(r" [-+] 1\b", "")
_first = each(r"(?<=for \()((?:ulong|size_t|int|unsigned int) \w+ = )0;", r"\g<1>1;")
_last = each(r"(?<=for \()([^;]*; [^;]* < )([^;]*);", r"\g<1>\g<2> - 1;")
_subscript = each(r" / 4\]", " / 4 + 1]")
_element = each(r"\[(i|j|n|x|y|thread)\](?! =)", r"[\1 + 1]")
_never = each(r"(?<=\bif \().*(?=\) \{)", "false")
_always = each(r"(?<=\bif \().*(?=\) \{)", "true")
_not_first = each(r" \? ", " && false ? ")
_not_second = each(r" \? ", " || true ? ")
_no_barrier = each(r"__syncthreads\(\);", ";")
_narrow_index = each(r"\b(?:ulong|size_t)(?= \w+ = )", lambda match: "unsigned short")


def _rounded(line: Line) -> Iterator[str]:
    """What a float variable gets, what is added to it, or what is stored, has no more than 10 bits behind the point."""
    adds = re.search(r"^\s*([\w.\[\]*+ ()]+?) ([-+])= ([^;]+);", line.code)
    if adds and _is_float(adds[1].strip(), line):
        name, sign, value = adds.groups()
        indent = line.code[: len(line.code) - len(line.code.lstrip())]
        yield f"{indent}{name.strip()} {sign}= to_10_bits({value});"
        yield f"{indent}{name.strip()} = to_10_bits({name.strip()} {sign} ({value}));"
    gets = re.search(r"(?:\bfloat (?:\w+)|^\s*\w+\[.*\]|\*?\b\w+) (?<![<>=!+*/-] )= ([^;=]+);$", line.code)
    if gets and not adds and _is_float(line.code[: gets.start(1)], line) and not gets[1].startswith(("0.0f", "-INF")):
        yield line.code[: gets.start(1)] + f"to_10_bits({gets[1]})" + line.code[gets.end(1) :]
    for formula in re.finditer(r"(?<=return )([^;]+)(?=; \}$)", line.code):
        if line.code.startswith("DEVICE float"):
            yield line.code[: formula.start()] + f"to_10_bits({formula[0]})" + line.code[formula.end() :]


def _is_float(left: str, line: Line) -> bool:
    """Whether what stands left of an assignment is a float."""
    if re.search(r"\bfloat\b", left):
        return True
    name = re.match(r"\s*\*?(\w+)", left)
    return name is not None and name[1] in line.floats


_rough = each(r"\bexp\(", "rough_exp(")

#: The systematic faults by class.
SYSTEMATIC: Mapping[str, tuple[Rule, ...]] = {
    "comparison": (_comparison, _logic),
    "sign": (_sign, _unary_sign),
    "dropped stride": (_packed_strides, _offset, _term),
    "dimension taken as 0": (_index_is_zero, _factor),
    "swapped arguments": (_neighbour, _other_tensor, _swapped, _operands),
    "off by one": (_plus_one, _first, _last, _subscript, _element),
    "missing guard": (_never, _always, _not_first, _not_second),
    "missing barrier": (_no_barrier,),
    "narrow index": (_narrow_index,),
    "narrow precision": (_rounded, _rough),
}

# ---- those of documented bugs ----------------------------------------------------------------------------------------

_tail = each(r"(?<=for \()([^;]*; \w+ < )([^;&\d][^;&]*);", r"\1(\2) / 4 * 4;")
_long = each(r"(?<=for \()([^;]* (\w+) = [^;]*; \w+ <=? [^;\d][^;]*);", r"\1 && \2 < 65535;")
_GUARD = r"(?<=\bif \()(id|line|blockIdx\.x) >= [^{]*(?=\) \{)"
_dispatch = each(_GUARD, r"\g<0> || \1 >= 65535")
_groups = each(_GUARD, r"\g<0> || \1 >= 65535 * 64")
_split_exp = each(r"\bexp\(([^()]+?|\w+\[[^()]*?\]) - ([^()]+)\)", r"exp(\1) * exp(-(\2))")
_no_shift = each(r"\bexp\(([^()]+?) - ([^()]+)\)", r"exp(\1)")
_finite = each(r"-INFINITY", "-1e30f")
_not_written = each(r"^\s*(?:\w+\[[^=]*\]|\*\w+) = [^;]*;$|^\s*(?:store|move|clear)\(.*\);$", ";")
_added_to = each(r"^(\s*)(\w+\[[^=]*\]) = ([^;]*);$", r"\1\2 += \3;")
_no_repeat = each(r" % p(?:\.|->)y_ne\[\d\]", "")
_grouped = each(r"head / \(([^()]*heads) / [^()]*\)", r"head & (\1 - 1)")
_eps = each(r" \+ eps\b", "")
_no_eps = each(r"> eps \?", "> 0.0f ?")
_under_root = each(r"sqrt\((\w+) \+ eps\)|sqrt\((\w+ / n) \+ eps\)", lambda m: f"(sqrt({m[1] or m[2]}) + eps)")
_scale = each(r"p(\.|->)(v_scale|scale)\b", lambda m: f"p{m[1]}{'scale' if m[2] == 'v_scale' else 'v_scale'}")
_no_scale = each(r"as_float\(\(uint\)p(?:\.|->)\w+\)", "1.0f")
_parameters = each(r"\bfirst, second\b", "second, first")

#: The faults of documented bugs, by the class that the bug was filed under.
DOCUMENTED: Mapping[str, tuple[Rule, ...]] = {
    "tile/boundary tail": (_tail,),
    "workgroup/dispatch limit or large size overflow": (_long, _dispatch, _groups),
    "float overflow/underflow/NaN/inf": (_split_exp, _no_shift, _finite),
    "uninitialised/output gap overwritten": (_not_written, _added_to),
    "wrong broadcast": (_no_repeat, _grouped),
    "scale/argument mix-up": (_eps, _no_eps, _under_root, _scale, _no_scale, _parameters),
}

#: Which faults of the systematic classes are those of a documented class, and why the others have none in a kernel.
COVERED_BY: Mapping[str, str] = {
    "batch/outer-dim indexing": "dimension taken as 0",
    "stride/view offset": "dropped stride",
    "non-contiguous input": "dropped stride",
    "integer overflow": "narrow index",
    "precision/accumulator type": "narrow precision",
    "race/missing barrier": "missing barrier",
    "state layout transposed": "swapped arguments",
    "sequence mix-up": "dimension taken as 0",
    "mask/causal off by one": "comparison",
    "aliasing/in-place": "writes its input",
    "stale cache/pipeline": "stale arguments",
}
NOT_IN_A_KERNEL: Mapping[str, str] = {
    "supports_op lies": "what a backend says of a case is no part of a kernel; tests/attack has backends that lie",
    "fusion reorder": "it takes a graph of several nodes; `opconform watch` finds it",
}

# ---- putting them in -------------------------------------------------------------------------------------------------

#: Faults of the host: what it keeps of the struct of an earlier launch, all else of which was the same.
STALE = ("strides", "offsets", "parameters")


def mutants_of(op: str, source: Source, opencl: bool) -> list[Mutant]:
    """Every mutant of the kernels of an op, in the order of their files and lines."""
    found: dict[str, Mutant] = {}
    texts = dict(source.files)
    active = {file: _active(text, _macros(texts, opencl)) for file, text in texts.items()}
    reached = _reached(active)
    head = source.struct.fields
    strided = [field.name[:-3] for field in head if field.what == "nb"]
    sized = [field.name[:-3] for field in head if field.what == "ne"]
    for file, lines in active.items():
        if file in LEFT_ALONE:
            continue
        seen: Counter[str] = Counter()
        floats = frozenset(re.findall(r"\bfloat \*?(\w+)", texts[file]))
        everywhere = _functions(lines)
        for number, code in enumerate(lines):
            text = code.strip()
            nth = seen[text]
            seen[text] += 1
            function = everywhere[number]
            if not text or function is None or function not in reached:
                continue
            line = Line(code, file, floats, strided, sized)
            for fault, rules in (*SYSTEMATIC.items(), *DOCUMENTED.items()):
                for becomes in (it for rule in rules for it in rule(line)):
                    if becomes.strip() != text:
                        mutant = Mutant(op, file, text, becomes.strip(), fault, nth, number)
                        found.setdefault(mutant.key, mutant)
            for mutant in _writes_input(op, file, lines, number, nth):
                found.setdefault(mutant.key, mutant)
    stale = [Mutant(op, "", "the fields of the struct", f"stale {what}", "stale arguments") for what in STALE]
    return [*found.values(), *stale]


def _writes_input(op: str, file: str, lines: Sequence[str], number: int, nth: int) -> Iterator[Mutant]:
    """The first statement of a kernel after its guard also writes into the memory of its first input."""
    if lines[number].strip() != "}" or number < 2 or lines[number - 1].strip() != "return;":
        return
    start = max((at for at in range(number) if re.match(r"(__kernel|extern)", lines[at])), default=None)
    if start is None or any(lines[at].rstrip() == "}" for at in range(start, number)):
        return
    head = " ".join(lines[start:number])
    argument = re.search(r"const (?:uchar|float|uint) \*(\w+)", head)
    if argument:
        wide = "__global " if "__kernel" in head else ""
        becomes = f"}} {{ (({wide}uint *){argument[1]})[{GUARD // 4}] = 1u; }}"
        yield Mutant(op, file, "}", becomes, "writes its input", nth, number)


def _code(line: str) -> str:
    """A line without its comment."""
    return line.split("//")[0].rstrip()


def _after_includes(lines: Sequence[str]) -> int:
    """The line after the last include, or that of the first code."""
    return max((number + 1 for number, line in enumerate(lines) if line.startswith("#include")), default=0)


def _macros(files: Mapping[str, str], opencl: bool) -> dict[str, str]:
    """What is defined when the compiler comes to a kernel."""
    found = {"__OPENCL_VERSION__": "300"} if opencl else {}
    for text in files.values():
        found |= dict(re.findall(r"^#define (\w+) (\w+)$", text, re.MULTILINE))
    return found


def _active(text: str, macros: Mapping[str, str]) -> list[str]:
    """The code of every line, "" where the preprocessor leaves it out."""
    stack: list[bool] = []
    found = []
    for raw in text.splitlines():
        line = _code(raw)
        if line.startswith("#if"):
            stack.append(_holds(line, macros))
        elif line.startswith("#else"):
            stack[-1] = not stack[-1]
        elif line.startswith("#endif"):
            stack.pop()
        found.append("" if line.startswith("#") or not all(stack) else line)
    return found


def _holds(line: str, macros: Mapping[str, str]) -> bool:
    """Whether an #ifdef, an #ifndef or an #if NAME == VALUE holds."""
    word, *rest = line.split()
    if word == "#if":
        return macros.get(rest[0]) == rest[2]
    return (rest[0] in macros) == (word == "#ifdef")


_HEAD = re.compile(
    r'^(?:extern "C" |__global__ |__kernel |DEVICE |static )*(?:void|float|bool|ulong|uint|ushort|struct \w+) (\w+)\('
)


def _functions(lines: Sequence[str]) -> list[str | None]:
    """The function that each line stands in; None outside."""
    found: list[str | None] = []
    now: str | None = None
    for line in lines:
        head = _HEAD.match(line)
        if head:
            now = head[1]
        found.append(now)
        if now and (line == "}" or line.endswith("; }")):
            now = None
    return found


def _reached(active: Mapping[str, Sequence[str]]) -> set[str]:
    """The functions that a kernel calls, and the kernels."""
    bodies: dict[str, str] = {}
    kernels = set()
    for lines in active.values():
        for line, function in zip(lines, _functions(lines)):
            if function:
                bodies[function] = bodies.get(function, "") + line + "\n"
                if re.match(r"__kernel|extern", line):
                    kernels.add(function)
    found: set[str] = set()
    left = list(kernels)
    while left:
        name = left.pop()
        if name not in found:
            found.add(name)
            left += [other for other in bodies if re.search(rf"\b{other}\(", bodies[name])]
    return found
