"""Triton's PTX, read into basic blocks of instructions. :mod:`benchmarks.ptx_machine` runs them."""

import re
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Register:
    """A virtual register, or a special one such as ``%tid.x``."""

    name: str


@dataclass(frozen=True)
class Constant:
    """A number, or a symbol: a label, a parameter, the block's shared memory."""

    text: str


@dataclass(frozen=True)
class Address:
    """``[base + offset]``, in bytes."""

    base: Register | Constant
    offset: int


Operand = Register | Constant | Address | tuple[Register | Constant, ...]


def names_in(operand: Operand) -> tuple[str, ...]:
    """Registers that an operand names."""
    if isinstance(operand, Address):
        return names_in(operand.base)
    if isinstance(operand, tuple):
        return tuple(name for part in operand for name in names_in(part))
    return (operand.name,) if isinstance(operand, Register) else ()


@dataclass(frozen=True)
class Instruction:
    """One instruction; a guard is the predicate on which it depends."""

    opcode: str
    operands: tuple[Operand, ...]
    guard: Register | None = None
    negated: bool = False

    @property
    def ends_block(self) -> bool:
        return self.opcode.split(".")[0] in ("bra", "ret")


@dataclass(frozen=True)
class BasicBlock:
    """Instructions that run one after another; the last may branch."""

    label: str
    instructions: tuple[Instruction, ...]


@dataclass(frozen=True)
class PtxFunction:
    """One kernel."""

    name: str
    parameter_types: tuple[str, ...]
    blocks: tuple[BasicBlock, ...]


def _scalar(text: str) -> Register | Constant:
    return Register(text) if text.startswith("%") else Constant(text)


def _operand(text: str) -> Operand:
    if text.startswith("{"):
        return tuple(_scalar(part.strip()) for part in text.strip("{}").split(","))
    if text.startswith("["):
        match = re.fullmatch(r"\[\s*([%$\w.]+)\s*(?:\+\s*(-?\d+)\s*)?\]", text)
        if match is None:
            raise ValueError(f"not an address: {text}")
        return Address(_scalar(match[1]), int(match[2] or 0))
    return _scalar(text)


def _instruction(line: str) -> Instruction:
    match = re.fullmatch(r"(?:@(!?)(%p\d+)\s+)?([a-z][\w.:]*)\s*(.*);", line)
    if match is None:
        raise ValueError(f"not an instruction: {line}")
    operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", match[4])
    guard = None if match[2] is None else Register(match[2])
    return Instruction(match[3], tuple(map(_operand, operands)), guard, match[1] == "!")


def _statements(body: str) -> Iterator[str]:
    """Labels of basic blocks, and instructions; no comments, directives, or places in the source."""
    for line in body.splitlines():
        statement = line.partition("//")[0].strip()
        if statement and not statement.startswith((".", "$L__tmp", "$L__func_begin")):
            yield statement


def parse(text: str) -> PtxFunction:
    """The one kernel of a module.

    Raises:
        ValueError: something is not understood.
    """
    match = re.search(r"\.entry (\w+)\((.*?)\)(.*?)^\{(.*?)^(?:\$L__func_end|\})", text, re.DOTALL | re.MULTILINE)
    if match is None:
        raise ValueError("there is no kernel")
    blocks: list[tuple[str, list[Instruction]]] = [("", [])]
    for statement in _statements(match[4]):
        if statement == "}":
            break
        if statement.endswith(":"):
            blocks.append((statement[:-1], []))
            continue
        instruction = _instruction(statement)
        blocks[-1][1].append(instruction)
        if instruction.ends_block:
            blocks.append(("", []))
    return PtxFunction(
        match[1],
        tuple(re.findall(r"\.param \.(\w+)", match[2])),
        tuple(BasicBlock(label, tuple(instructions)) for label, instructions in blocks if label or instructions),
    )
