"""A case: one concrete problem, as plain data, and its JSON form.

A case file is data and never code: it is checked field by field before anything is allocated, and every fault is one
`CaseError` line that says what is wrong, where, and what would be right.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import math
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from json.encoder import encode_basestring_ascii as _quoted
from typing import Any

import numpy as np

from opconform.harness.model import blocks
from opconform.harness.model.dtypes import DTYPES, Mask
from opconform.harness.model.layouts import MARKED, Layout, blocks_of
from opconform.harness.model.lazy import lazy
from opconform.harness.model.text import printable

FORMAT = "opconform-case/1"
MAX_RANK = 4
DEFAULT_MAX_BYTES = 64 << 20

Param = bool | int | float | str


class CaseError(ValueError):
    """A case that cannot be: one line that says what is wrong, where, and what would be right.

    What stands in a file is not printed as it is: the line is made printable, and cut after `LONGEST` characters.
    """

    LONGEST = 400

    def __init__(self, message: str) -> None:
        super().__init__(printable(message, self.LONGEST))


class NoBlocksError(CaseError):
    """A case with a quantised type, where the package that decodes them is not installed."""


@dataclass(frozen=True)
class Case:
    """One concrete problem.

    `inputs` and `outputs` give each argument's layout, in the op's order. `inplace` names the input whose memory the
    first output takes over, or is None. Values come from `recipe` and `seed`, or, where `data` is given, from the
    exact bytes of each input's elements in C order. `keep` names the one batch slice whose values stay: all other
    slices of every input are NaN, and must not reach it. `shares` names inputs that lie in the memory of another one,
    from which their offsets count: parts of one tensor, as models hold q, k and v. `before` is a case of the same op
    that runs right before, in the same process: some backends keep what they should not.
    """

    op: str
    params: Mapping[str, Param]
    inputs: Mapping[str, Layout]
    outputs: Mapping[str, Layout]
    recipe: str = "small_int"
    seed: int = 0
    keep: int | None = None
    inplace: str | None = None
    shares: Mapping[str, str] = field(default_factory=dict)
    data: Mapping[str, bytes] | None = field(default=None, compare=False)
    before: Case | None = None

    @lazy
    def layouts(self) -> Mapping[str, Layout]:
        """Every argument's layout: inputs, then outputs."""
        return {**self.inputs, **self.outputs}

    @property
    def aligned(self) -> bool:
        """Whether every argument starts at a multiple of 256 bytes, the most that a Vulkan device may want of a storage
        buffer (minStorageBufferOffsetAlignment)."""
        return all(layout.offset % 256 == 0 for layout in self.layouts.values())

    @property
    def dtype(self) -> str:
        """The element type of the first output."""
        return next(iter(self.outputs.values())).dtype

    @lazy
    def nbytes(self) -> int:
        """The memory that the arguments take, without guards."""
        own = self.inputs[self.inplace].end if self.inplace else 0
        if not self.shares:
            return sum([layout.end for layout in self.layouts.values()]) - own
        ends = {name: layout.end for name, layout in self.layouts.items()}
        for name, owner in self.shares.items():
            ends[owner] = max(ends[owner], ends.pop(name))
        return sum(ends.values()) - own

    @lazy
    def key(self) -> str:
        """What tells this case from any other (its exact bytes left out): canonical JSON."""
        return _canonical(self)

    @lazy
    def id(self) -> str:
        """A short name that any version gives to this case: the op and ten hex digits."""
        return f"{self.op}-{hashlib.sha1(self.key.encode(), usedforsecurity=False).hexdigest()[:10]}"

    def packed(self) -> Case:
        """The contiguous twin: the same values, every argument packed at offset 0."""
        return replace(
            self,
            inputs={name: layout.packed() for name, layout in self.inputs.items()},
            outputs={name: layout.packed() for name, layout in self.outputs.items()},
            shares={},
            before=None,
        )

    def with_data(self, data: Mapping[str, bytes]) -> Case:
        """The same case with the exact bytes of its inputs."""
        return replace(self, data=dict(data))

    def __str__(self) -> str:
        """The case as a ggml user reads it, innermost dimension first."""
        parts = [f"type={self.dtype}"]
        for name, layout in self.layouts.items():
            if layout.dtype != self.dtype:
                parts.append(f"type_{name}={layout.dtype}")
        parts += [f"ne_{name}={_list(layout.ne)}" for name, layout in self.inputs.items()]
        parts += [f"{name}={_text(value)}" for name, value in self.params.items()]
        for name, layout in (self.inputs if self.inplace else self.layouts).items():
            if not layout.is_contiguous:
                parts.append(f"nb_{name}={_list(layout.nb)}")
            if layout.offset:
                parts.append(f"offset_{name}={layout.offset}")
            if name in self.shares:
                parts.append(f"in_{name}={self.shares[name]}")
        after = "" if self.before is None else f" after {self.before}"
        return f"{self.op.upper()}({','.join(parts)}){after}"

    def to_json(self) -> dict[str, Any]:
        """The case as JSON data; exact bytes, where it has them, as base64 of zlib."""
        plain = {"format": FORMAT, "id": self.id, **_plain(self)}
        if self.data is not None:
            plain["data"] = {name: base64.b64encode(zlib.compress(raw)).decode() for name, raw in self.data.items()}
        return plain

    @classmethod
    def from_json(cls, plain: object, max_bytes: int = DEFAULT_MAX_BYTES) -> Case:
        """The case that `plain` describes.

        Raises `CaseError` for anything that is not a case of at most `max_bytes`. What only the op can judge (its
        argument names, shapes that fit together) is checked by `Op.check`.
        """
        fields = _Fields(plain, "case")
        form = fields.take("format", str)
        if form != FORMAT:
            raise CaseError(f"case.format is {form!r}; this version reads {FORMAT!r}")
        inputs = _layouts(fields.take("inputs", dict), "case.inputs", max_bytes)
        outputs = _layouts(fields.take("outputs", dict), "case.outputs", max_bytes)
        for name, layout in outputs.items():
            if layout.overlaps:
                raise CaseError(f"case.outputs.{name}: two elements share a byte; strides must keep them apart")
        case = cls(
            op=fields.take("op", str),
            params=_params(fields.take("params", dict)),
            inputs=inputs,
            outputs=outputs,
            recipe=fields.take("recipe", str),
            seed=_natural(fields.take("seed", int), "case.seed"),
            keep=fields.take_optional("keep", int),
            inplace=fields.take_optional("inplace", str),
            shares=fields.take_optional("shares", dict) or {},
            before=_before(fields.take_optional("before", dict), max_bytes),
        )
        _check_inplace(case)
        _check_shares(case)
        if case.before is not None and case.before.op != case.op:
            raise CaseError(f"case.before is of op {case.before.op!r}; it must be of {case.op!r}")
        if case.nbytes > max_bytes:
            raise CaseError(f"the case takes {case.nbytes} bytes; --max-bytes allows {max_bytes}")
        data = fields.take_optional("data", dict)
        fields.take_optional("id", str)
        fields.nothing_left()
        return case if data is None else case.with_data(_data(data, inputs))


def _before(plain: dict[str, Any] | None, max_bytes: int) -> Case | None:
    """The case that runs before; it has none before itself."""
    if plain is None:
        return None
    if plain.get("before") is not None:
        raise CaseError("case.before.before: only one case runs before")
    return Case.from_json(plain, max_bytes)


def _canonical(case: Case) -> str:
    """`_plain(case)` as `json.dumps` writes it with sorted keys and no blanks, in half the time: every case of a run
    is written down."""
    return (
        f'{{"inplace":{_or_null(case.inplace)},"inputs":{{{_canonical_layouts(case.inputs)}}},'
        f'"keep":{"null" if case.keep is None else case.keep},"op":{_quoted(case.op)},'
        f'"outputs":{{{_canonical_layouts(case.outputs)}}},"params":{{{_canonical_params(case.params)}}},'
        f'"recipe":{_quoted(case.recipe)},"seed":{case.seed}{_canonical_shares(case.shares)}'
        f"{_canonical_before(case.before)}}}"
    )


def _canonical_shares(shares: Mapping[str, str]) -> str:
    """Nothing where no argument shares its memory: the ids of such cases do not depend on this field."""
    if not shares:
        return ""
    return ',"shares":{' + ",".join([f"{_quoted(name)}:{_quoted(shares[name])}" for name in sorted(shares)]) + "}"


def _or_null(text: str | None) -> str:
    return "null" if text is None else _quoted(text)


def _canonical_before(before: Case | None) -> str:
    return "" if before is None else f',"before":{_canonical(before)}'


def _canonical_layouts(layouts: Mapping[str, Layout]) -> str:
    return ",".join([f"{_quoted(name)}:{_canonical_layout(layouts[name])}" for name in sorted(layouts)])


def _canonical_layout(layout: Layout) -> str:
    return (
        f'{{"dtype":{_quoted(layout.dtype)},"offset":{layout.offset},'
        f'"shape":{_list(layout.shape)},"strides":{_list(layout.strides)}}}'
    )


def _canonical_params(params: Mapping[str, Param]) -> str:
    return ",".join([f"{_quoted(name)}:{_canonical_param(params[name])}" for name in sorted(params)])


def _canonical_param(value: Param) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if type(value) is int else json.dumps(value)


def _plain(case: Case) -> dict[str, Any]:
    return {
        "op": case.op,
        "params": dict(case.params),
        "inputs": {name: _plain_layout(layout) for name, layout in case.inputs.items()},
        "outputs": {name: _plain_layout(layout) for name, layout in case.outputs.items()},
        "recipe": case.recipe,
        "seed": case.seed,
        "keep": case.keep,
        "inplace": case.inplace,
        **({"shares": dict(case.shares)} if case.shares else {}),
        **({} if case.before is None else {"before": {"format": FORMAT, **_plain(case.before)}}),
    }


def _plain_layout(layout: Layout) -> dict[str, Any]:
    return {
        "dtype": layout.dtype,
        "shape": list(layout.shape),
        "strides": list(layout.strides),
        "offset": layout.offset,
    }


class _Fields:
    """The fields of a JSON object, each taken once and checked for its type."""

    def __init__(self, plain: object, where: str) -> None:
        if not isinstance(plain, dict):
            raise CaseError(f"{where} is {_kind(plain)}; it must be a JSON object")
        self._left = dict(plain)
        self._where = where

    def take(self, name: str, wanted: type) -> Any:
        if name not in self._left:
            raise CaseError(f"{self._where} has no field {name!r}")
        value = self._left.pop(name)
        if not isinstance(value, wanted) or (wanted is int and isinstance(value, bool)):
            raise CaseError(f"{self._where}.{name} is {_kind(value)}; it must be {_NAMES[wanted]}")
        return value

    def take_optional(self, name: str, wanted: type) -> Any:
        if self._left.get(name) is None:
            self._left.pop(name, None)
            return None
        return self.take(name, wanted)

    def nothing_left(self) -> None:
        if self._left:
            raise CaseError(f"{self._where} has an unknown field {min(self._left)!r}")


_NAMES = {str: "a string", int: "a whole number", dict: "an object", list: "a list", float: "a number"}


def _kind(value: object) -> str:
    if value is None:
        return "null"
    return "a truth value" if isinstance(value, bool) else _NAMES.get(type(value), type(value).__name__)


def _natural(value: int, where: str, limit: int = 2**63 - 1) -> int:
    if not 0 <= value <= limit:
        raise CaseError(f"{where} is {value}; it must be from 0 to {limit}")
    return value


def _layouts(plain: dict[str, Any], where: str, max_bytes: int) -> dict[str, Layout]:
    return {name: _layout(value, f"{where}.{name}", max_bytes) for name, value in plain.items()}


def _layout(plain: object, where: str, max_bytes: int) -> Layout:
    fields = _Fields(plain, where)
    dtype = fields.take("dtype", str)
    if dtype not in DTYPES:
        raise CaseError(f"{where}.dtype is {dtype!r}; it must be one of {', '.join(DTYPES)}")
    shape = _sizes(fields.take("shape", list), f"{where}.shape")
    strides = _sizes(fields.take("strides", list), f"{where}.strides")
    offset = _natural(fields.take("offset", int), f"{where}.offset")
    fields.nothing_left()
    if len(shape) > MAX_RANK or len(shape) != len(strides):
        raise CaseError(f"{where} has {len(shape)} sizes and {len(strides)} strides; both must be at most {MAX_RANK}")
    its = DTYPES[dtype]
    itemsize = its.itemsize
    if its.block > 1 and not blocks.available():
        raise NoBlocksError(f"{where}.dtype is {dtype}; quantised types need the package gguf: {blocks.REMEDY}")
    if its.block > 1 and (not shape or shape[-1] % its.block):
        raise CaseError(f"{where}: the innermost size must be a multiple of {its.block}, the block of {dtype}")
    if any(step % itemsize for step in (*strides, offset)):
        raise CaseError(f"{where}: strides and offset are bytes and must be multiples of {itemsize} for {dtype}")
    layout = Layout(dtype, shape, strides, offset)
    packed = (
        math.prod(max(size, 1) for size in blocks_of(shape, its.block)) * itemsize
    )  # an empty tensor, too, must be one NumPy can make
    if max(layout.end, packed) > max_bytes:
        raise CaseError(f"{where} takes {max(layout.end, packed)} bytes; --max-bytes allows {max_bytes}")
    return layout


def _sizes(values: list[Any], where: str) -> tuple[int, ...]:
    for value in values:
        if not isinstance(value, int) or isinstance(value, bool):
            raise CaseError(f"{where} holds {_kind(value)}; it must hold whole numbers")
        _natural(value, where)
    return tuple(values)


def _params(plain: dict[str, Any]) -> dict[str, Param]:
    for name, value in plain.items():
        if not isinstance(value, (bool, int, float, str)):
            raise CaseError(f"case.params.{name} is {_kind(value)}; it must be a number, a string or a truth value")
        if isinstance(value, int) and abs(value) >= 2**63:
            raise CaseError(f"case.params.{name} is {value}; whole numbers must fit in 64 bits")
        if isinstance(value, float) and not math.isfinite(value):
            raise CaseError(f"case.params.{name} is not a finite number")
    return plain


def _check_inplace(case: Case) -> None:
    if case.inplace is None:
        return
    if case.inplace not in case.inputs:
        raise CaseError(f"case.inplace is {case.inplace!r}; it must be one of {', '.join(case.inputs)}")
    if not case.outputs or case.inputs[case.inplace] != next(iter(case.outputs.values())):
        raise CaseError(f"case.inplace: the first output's layout must be that of {case.inplace!r}")


def _check_shares(case: Case) -> None:
    """Inputs may lie in the memory of another input, of their type, that has its own, and apart from each other."""
    for name, owner in case.shares.items():
        if name not in case.inputs or not isinstance(owner, str) or owner not in case.inputs:
            raise CaseError(f"case.shares: {name!r} in {owner!r}; both must be of {', '.join(case.inputs)}")
        if owner in case.shares or owner == name or case.inplace in (name, owner):
            raise CaseError(f"case.shares: {name!r} in {owner!r}, which must have memory of its own, not in place")
        if case.inputs[name].dtype != case.inputs[owner].dtype:
            raise CaseError(f"case.shares: {name!r} in {owner!r}; both must have one dtype")
    for owner in sorted(set(case.shares.values())):
        together = [case.inputs[name] for name in (owner, *(n for n, at in case.shares.items() if at == owner))]
        if _any_twice(together):
            raise CaseError(f"case.shares: two arguments in {owner!r} have elements at the same bytes")


def _any_twice(layouts: Sequence[Layout]) -> bool:
    """Whether elements of two of the layouts (of one memory and one type) share an address."""
    size = layouts[0].type.itemsize
    length = max(layout.end for layout in layouts) // size
    if length > MARKED:
        raise CaseError(f"case.shares: {length} elements from end to end; in one memory at most {MARKED}")
    taken = np.zeros(length, dtype=bool)
    for layout in layouts:
        strides = tuple(stride // size for stride in layout.strides)
        mine: Mask = np.ndarray(layout.blocks, bool, taken.data, layout.offset // size, strides)
        if mine.any():
            return True
        mine[...] = True
    return False


def _data(plain: dict[str, Any], inputs: Mapping[str, Layout]) -> dict[str, bytes]:
    if plain.keys() != inputs.keys():
        raise CaseError(f"case.data names {', '.join(plain) or 'nothing'}; it must name {', '.join(inputs)}")
    return {name: _bytes(plain[name], layout, f"case.data.{name}") for name, layout in inputs.items()}


def _bytes(text: object, layout: Layout, where: str) -> bytes:
    wanted = math.prod(layout.blocks) * layout.type.itemsize
    if not isinstance(text, str):
        raise CaseError(f"{where} is {_kind(text)}; it must be base64 text")
    try:
        unpacker = zlib.decompressobj()
        raw = unpacker.decompress(base64.b64decode(text, validate=True), wanted + 1)
    except (binascii.Error, zlib.error, ValueError) as error:
        raise CaseError(f"{where} is not base64 of zlib data: {error}") from None
    if len(raw) != wanted or not (unpacker.eof or wanted == 0):
        raise CaseError(f"{where} does not hold the {wanted} bytes that its layout needs")
    return raw


def _list(values: tuple[int, ...]) -> str:
    return _NUMBERS[len(values)] % values


_NUMBERS = tuple("[" + ",".join(["%d"] * count) + "]" for count in range(65))  #: NumPy has at most 64 axes


def _text(value: Param) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)
