"""A pickle read as data: what it says is recorded; nothing is imported, nothing is called.

A pickle is a program for a small stack machine. Two of its instructions name any function of any module and call it, so
whoever unpickles a file runs what its author liked. Here the instructions come from the standard library's disassembler
(`pickletools.genops`, which only decodes), and this machine knows values, containers and *records*: a class or function
is its name (`Global`), an object of a class is a record of what the file says about it (`Foreign`). A call is carried out
only for the few names for which the reader of the file has a function of its own, and refused for names it does not know.
"""

from __future__ import annotations

import dataclasses
import pickletools
from collections.abc import Callable, Mapping
from typing import Any


class PickleError(ValueError):
    """The pickle is damaged, or says something that is not read; the message goes on after "the pickle"."""


@dataclasses.dataclass(frozen=True)
class Global:
    """A class or function that a pickle names, such as "torch.float32". Never imported."""

    name: str


@dataclasses.dataclass(eq=False)
class Foreign:
    """An object of a class that is not read: what the file says about it, as data.

    Attributes:
      class_name: the class or function that would have made it, such as "argparse.Namespace".
      arguments: what that would have been given.
      state: what the object's `__setstate__` or `__dict__` would have been given; None if nothing.
      contents: what would have been appended to it, or set in it, as (key, value).
    """

    class_name: str
    arguments: tuple = dataclasses.field(default=(), repr=False)
    state: Any = dataclasses.field(default=None, repr=False)
    contents: list = dataclasses.field(default_factory=list, repr=False)


def show(name: str) -> str:
    """A name from a file, for a message: one line of bounded length, whatever it holds."""
    return repr(name if len(name) <= 200 else f"{name[:200]}…")[1:-1]


def read_pickle(
    data: bytes,
    *,
    calls: Mapping[str, Callable[[tuple], Any]],
    is_recorded: Callable[[str], bool],
    persistent: Callable[[Any], Any],
    name_item: Callable[[str, Any], Any],
) -> Any:
    """The value that a pickle describes.

    Args:
      data: the pickle, of protocol 2 to 5.
      calls: what stands in for the functions of these names; each takes the tuple of arguments.
      is_recorded: whether a call of the function or class of this name becomes a `Foreign`; any other is an error.
      persistent: makes a value from the persistent id of something kept outside the pickle.
      name_item: what is put into a dict in place of a value under this (string) key.

    Raises:
      PickleError: the pickle is cut short or inconsistent, has an instruction that is not needed to hold data, or calls
        something unknown.
    """
    machine = _Machine(calls, is_recorded, persistent, name_item)
    try:
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name == "STOP":
                break
            machine.step(instruction.name, argument)
        return machine.pop()
    except PickleError as error:
        # Inside a dict, the last text on the stack is the key whose value was being made.
        key = next((value for value in reversed(machine.stack) if isinstance(value, str)), None)
        raise error if key is None else PickleError(f"{error} (at '{show(key)}')") from error
    except (ValueError, OverflowError) as error:  # of the disassembler: cut short, no such instruction, bad text
        raise PickleError(f"is damaged ({show(str(error))})") from error


class _Machine:
    """Stack, marks into it, and memo, as `pickletools` describes them."""

    def __init__(
        self,
        calls: Mapping[str, Callable[[tuple], Any]],
        is_recorded: Callable[[str], bool],
        persistent: Callable[[Any], Any],
        name_item: Callable[[str, Any], Any],
    ):
        self.calls, self.is_recorded, self.persistent, self.name_item = calls, is_recorded, persistent, name_item
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def step(self, instruction: str, argument: Any) -> None:
        """Carries out one instruction, with the argument that is written behind it."""
        stack = self.stack
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(argument)
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINBYTES" | "SHORT_BINBYTES" | "BINBYTES8":
                stack.append(argument)
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[instruction])
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.top()
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.top()
            case "BINGET" | "LONG_BINGET":
                if argument not in self.memo:
                    raise PickleError("is damaged (it refers to a value that it does not hold)")
                stack.append(self.memo[argument])
            case "MARK":
                self.marks.append(len(stack))
            case "EMPTY_TUPLE" | "TUPLE1" | "TUPLE2" | "TUPLE3":
                size = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}[instruction]
                stack.append(tuple(reversed([self.pop() for _ in range(size)])))
            case "TUPLE":
                stack.append(tuple(self.pop_to_mark()))
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_SET":
                stack.append(Foreign("builtins.set"))
            case "FROZENSET":
                stack.append(Foreign("builtins.frozenset", (self.pop_to_mark(),)))
            case "APPEND":
                self.extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self.extend(self.pop_to_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self.set_items([key, value])
            case "SETITEMS":
                self.set_items(self.pop_to_mark())
            case "GLOBAL":
                stack.append(Global(argument.replace(" ", ".")))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                if not (isinstance(name, str) and isinstance(module, str)):
                    raise PickleError("is damaged (the name of a class is no text)")
                stack.append(Global(f"{module}.{name}"))
            case "REDUCE":
                arguments, function = self.pop(), self.pop()
                stack.append(self.call(function, arguments))
            case "NEWOBJ":
                arguments, cls = self.pop(), self.pop()
                stack.append(_new_object(cls, arguments))
            case "NEWOBJ_EX":
                keywords, arguments, cls = self.pop(), self.pop(), self.pop()
                stack.append(_new_object(cls, (arguments, keywords)))
            case "BUILD":
                self.set_state(self.pop())
            case "BINPERSID":
                stack.append(self.persistent(self.pop()))
            case _:
                raise PickleError(f"has the instruction {instruction}, which torch.save does not write")

    def top(self) -> Any:
        """The value on top of the stack."""
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise PickleError("is damaged (an instruction finds no value)")
        return self.stack[-1]

    def pop(self) -> Any:
        """Takes the value on top of the stack."""
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        """Takes the values above the last mark, and the mark."""
        if not self.marks:
            raise PickleError("is damaged (an instruction finds no mark)")
        mark = self.marks.pop()
        values = self.stack[mark:]
        del self.stack[mark:]
        return values

    def extend(self, values: list[Any]) -> None:
        """Appends to the list (or record) on top of the stack."""
        target = self.top()
        if isinstance(target, list):
            target.extend(values)
        elif isinstance(target, Foreign):
            target.contents.extend(values)
        else:
            raise PickleError(f"is damaged (it appends to a {type(target).__name__})")

    def set_items(self, keys_and_values: list[Any]) -> None:
        """Sets items of the dict (or record) on top of the stack."""
        target = self.top()
        for key, value in zip(keys_and_values[::2], keys_and_values[1::2], strict=True):
            if isinstance(key, str):
                value = self.name_item(key, value)
            if isinstance(target, dict):
                target[_checked_key(key)] = value
            elif isinstance(target, Foreign):
                target.contents.append((key, value))
            else:
                raise PickleError(f"is damaged (it sets an item of a {type(target).__name__})")

    def set_state(self, state: Any) -> None:
        """Gives the record on top of the stack its state. Attributes of an OrderedDict are dropped."""
        target = self.top()
        if isinstance(target, Foreign):
            target.state = state
        elif not (isinstance(target, dict) and isinstance(state, dict)):
            raise PickleError(f"is damaged (it sets the state of a {type(target).__name__})")

    def call(self, function: Any, arguments: Any) -> Any:
        """The value of a call: by the stand-in for the function, else a record, else refused."""
        if not isinstance(function, Global):
            raise PickleError(f"calls a {type(function).__name__}, which is refused; nothing was executed")
        if not isinstance(arguments, tuple):
            raise PickleError(f"is damaged (it calls {show(function.name)} with a {type(arguments).__name__})")
        if function.name in self.calls:
            return self.calls[function.name](arguments)
        if self.is_recorded(function.name):
            return Foreign(function.name, arguments)
        raise PickleError(f"calls {show(function.name)}, which is refused; nothing was executed")


def _new_object(cls: Any, arguments: Any) -> Foreign:
    if not isinstance(cls, Global) or not isinstance(arguments, tuple):
        raise PickleError("is damaged (an object without a class)")
    return Foreign(cls.name, arguments)


def _checked_key(key: Any) -> Any:
    # The hash of nested tuples that hold one another twice takes for ever, so tuples are admitted one level deep.
    plain = (str, bytes, int, float, type(None), Global, Foreign)
    if isinstance(key, plain) or (isinstance(key, tuple) and all(isinstance(part, plain) for part in key)):
        return key
    raise PickleError(f"has a {type(key).__name__} for the key of a dict")
