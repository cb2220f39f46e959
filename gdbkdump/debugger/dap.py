# SPDX-License-Identifier: GPL-2.0-or-later
"""gdb's own DAP server (``gdb -i=dap``, gdb/python/lib/gdb/dap/) taught to open dumps.

An attach request that names a dump opens it as the command line would. The server has
no way to be extended, so three of its functions are replaced; a gdb that lacks one of
them stays as it is. Requests that name no dump go to gdb's own functions.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import gdb

from gdbkdump.debugger import console
from gdbkdump.errors import KdumpError
from gdbkdump.formats import is_process_core
from gdbkdump.kernel.percpu import is_per_cpu, per_cpu_ptr
from gdbkdump.kernel.sched import panic_cpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from gdbkdump.debugger.adapter import Debugger

    Arguments = dict[str, Any]
    Open = Callable[[list[Path], Path | None], object]

# What gdb tells the client while a dump replaces what was open: that the process has
# exited, which ends the client's session, and where the new one stands, too early.
_WHILE_OPENING = (
    ("exited", "_on_exit"),
    ("stop", "_on_stop"),
    ("corefile_changed", "_on_corefile_changed"),
)
# And of each of 12,000 threads that it came or went, as they all do at once: a client
# asks for them anyway when it hears of the stop.
_FOR_GOOD = (("new_thread", "_new_thread"), ("thread_exited", "_thread_exited"))


# More than a screen has, and than a function is long: bounds what is read for it.
_MAX_INSTRUCTIONS = 1 << 12
_MAX_FUNCTION = 1 << 16


class _Server(NamedTuple):
    # What is used of gdb.dap; none of it is documented.
    commands: dict[str, Callable[..., object]]
    deferred: Callable[[Callable[[], object]], object]
    run_in_gdb: Callable[[Callable[[], object]], object]
    error: type[Exception]
    events: Any
    variables: Any
    global_variables: Any
    printing: Any


def teach(debugger: Debugger, open_dump: Open) -> None:
    """Let requests of the client open dumps.

    :param open_dump: takes the paths of the dump and that of the vmlinux or None
    """
    try:
        server = _find_server()
    except (ImportError, AttributeError, KeyError) as error:
        console.write_error(
            f"the DAP server of gdb {gdb.VERSION} cannot be taught to open dumps:"
            f" {error}"
        )
        return
    debugger.while_opening = _Silence(server.events).while_opening
    for name in ("attach", "launch"):
        server.commands[name] = _opening_request(name, server, debugger, open_dump)
    server.commands["disassemble"] = _disassemble(server, debugger)
    _show_unreadable(server.variables, server.printing)
    _show_anonymous(server.printing.NoOpStructPrinter)
    _show_globals(server.global_variables, debugger)


def _find_server() -> _Server:
    part = {
        name: importlib.import_module(f"gdb.dap.{name}")
        for name in ("server", "launch", "startup", "events", "varref", "globalvars")
    }
    found = _Server(
        part["server"]._commands,
        part["launch"]._LaunchOrAttachDeferredRequest,
        part["server"].send_gdb_with_response,
        part["startup"].DAPException,
        part["events"],
        part["varref"],
        part["globalvars"]._Globals,
        importlib.import_module("gdb.printing"),
    )
    # All that is replaced or called has to be there before anything is.
    for name in ("attach", "launch", "disassemble"):
        found.commands[name]
    for owner, name in (
        (found.events, "_on_stop"),
        (found.events, "expect_stop"),
        (found.variables.VariableReference, "to_object"),
        (found.variables.BaseReference, "to_object"),
        (found.global_variables, "fetch_one_child"),
        (found.printing, "make_visualizer"),
        (found.printing, "NoOpScalarPrinter"),
        (found.printing.NoOpStructPrinter, "children"),
    ):
        getattr(owner, name)
    return found


def _opening_request(
    name: str, server: _Server, debugger: Debugger, open_dump: Open
) -> Callable[..., object]:
    # The request as gdb's DAP thread calls it; what it returns runs after the client
    # is done with its configuration.
    stock = server.commands[name]

    def open_now(vmcore: Path | None, vmlinux: Path | None) -> None:
        if vmcore:
            try:
                open_dump([vmcore], vmlinux)
            except KdumpError as error:
                debugger.reason = f"no dump is open: {error}"
                raise server.error(f"gdbkdump: {error}") from None
        server.events.expect_stop("attach")
        server.events._on_stop(None)

    def request(**arguments: Any) -> object:
        vmcore = _dump_of(arguments)
        # "gdbkdump VMCORE -i=dap" has opened it already.
        names_nothing = not any(map(arguments.get, ("pid", "target", "program")))
        if vmcore is None and not (names_nothing and debugger.is_open):
            return stock(**arguments)
        program = arguments.get("program")
        vmlinux = _path(program) if isinstance(program, str) and program else None
        return server.deferred(
            lambda: server.run_in_gdb(lambda: open_now(vmcore, vmlinux))
        )

    return request


def _path(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _dump_of(arguments: Arguments) -> Path | None:
    # "coreFile" came with gdb 18. With a file as "target" gdb would take the dump for a
    # serial line and write its packets into it.
    core, target = arguments.get("coreFile"), arguments.get("target")
    if isinstance(core, str) and core:
        path = _path(core)
    elif isinstance(target, str) and target and _path(target).is_file():
        path = _path(target)
    else:
        return None
    return None if is_process_core(path) else path


class _Silence:
    # Keeps gdb from telling the client of what is our doing.
    def __init__(self, events: Any) -> None:
        self._events = events
        self._for_good = list(self._handlers(_FOR_GOOD))

    def _handlers(self, names: Iterable[tuple[str, str]]) -> Iterator[tuple[Any, Any]]:
        for event, name in names:
            if hasattr(gdb.events, event) and hasattr(self._events, name):
                yield getattr(gdb.events, event), getattr(self._events, name)

    @contextlib.contextmanager
    def while_opening(self) -> Iterator[None]:
        while self._for_good:
            registry, handler = self._for_good.pop()
            registry.disconnect(handler)
        handlers = list(self._handlers(_WHILE_OPENING))
        for registry, handler in handlers:
            registry.disconnect(handler)
        try:
            yield
        finally:
            for registry, handler in handlers:
                registry.connect(handler)
            # It may have taken a core on the command line for a process that runs.
            self._events.inferior_running = False


def _disassemble(server: _Server, debugger: Debugger) -> Callable[..., object]:
    # Clients ask for what is before an address too; gdb gives what is behind it.
    stock = server.commands["disassemble"]

    def request(**arguments: Any) -> object:
        wanted = -arguments.get("instructionOffset", 0)
        if not debugger.is_open or not 0 < wanted <= _MAX_INSTRUCTIONS:
            return stock(**arguments)
        address = int(arguments["memoryReference"], 0) + arguments.get("offset", 0)
        found: Any = server.run_in_gdb(
            lambda: _instructions_before(debugger, address, wanted)
        )
        missing = wanted - len(found)
        first = found[0] if found else address
        # The protocol wants as many as it asked for.
        body: Any = {
            "instructions": [
                {
                    "address": hex(first - missing + i),
                    "instruction": "(unknown)",
                    "presentationHint": "invalid",
                }
                for i in range(min(missing, arguments["instructionCount"]))
            ]
        }
        count = arguments["instructionCount"] - missing
        if count > 0:
            rest: Any = stock(
                memoryReference=hex(first), instructionCount=count, instructionOffset=0
            )
            body["instructions"] += rest["instructions"]
        return body

    return request


def _instructions_before(debugger: Debugger, address: int, wanted: int) -> list[int]:
    # Where the last instructions before an address begin. They differ in length, so
    # each function is read from its start.
    debuginfo = debugger.session().kernel.debuginfo
    arch = gdb.selected_inferior().architecture()
    found: list[int] = []
    while len(found) < wanted:
        symbol = debuginfo.symbol_at(address - 1)
        if symbol is None or not 0 <= symbol.offset < _MAX_FUNCTION:
            break
        start = address - 1 - symbol.offset
        try:
            lines = arch.disassemble(start, address - 1)
        except gdb.error:
            break
        if not lines or lines[-1]["addr"] + lines[-1]["length"] != address:
            break
        found = [line["addr"] for line in lines] + found
        address = start
    return found[-wanted:]


def _show_unreadable(variables: Any, printing: Any) -> None:
    # One variable that is not in the dump, or optimized out in part, must not take all
    # others of its scope along.
    reference = variables.VariableReference
    stock = reference.to_object
    stock_visualizer = printing.make_visualizer

    def make_visualizer(value: gdb.Value) -> Any:
        try:
            return stock_visualizer(value)
        except gdb.error:
            return printing.NoOpScalarPrinter(value)

    def to_object(self: Any) -> Arguments:
        try:
            shown: Arguments = stock(self)
        except gdb.error as error:
            if type(self) is not reference:
                raise  # what the user asked for, alone
            shown = variables.BaseReference.to_object(self)
            shown["value"] = f"<error: {error}>"
            shown["variablesReference"] = 0
        return shown

    printing.make_visualizer = make_visualizer
    reference.to_object = to_object


def _show_anonymous(printer: Any) -> None:
    # gdb leaves out what is in an anonymous struct or union: all of struct page.
    def children(self: Any) -> Iterator[tuple[str, gdb.Value]]:
        return _members(self._NoOpStructPrinter__value)

    printer.children = children


def _members(value: gdb.Value) -> Iterator[tuple[str, gdb.Value]]:
    for field in value.type.strip_typedefs().fields():
        if field.name is not None and hasattr(field, "bitpos"):
            yield field.name, value[field]
        elif field.name is None:
            yield from _members(value[field])


def _show_globals(scope: Any, debugger: Debugger) -> None:
    # A per-CPU variable has one value a CPU, and none at its own address; a variable
    # that is a register (current_stack_pointer, in most files) has one a frame.
    stock = scope.fetch_one_child

    def fetch_one_child(self: Any, index: int) -> tuple[str, gdb.Value]:
        try:
            name, value = stock(self, index)
        except gdb.error as error:
            symbols = getattr(self, "_var_list", None) or self.var_list
            return symbols[index].print_name, gdb.Value(f"<error: {error}>")
        if not debugger.is_open or value.address is None:
            return name, value
        return _of_panic_cpu(debugger, name, value, int(value.address))

    scope.fetch_one_child = fetch_one_child


def _of_panic_cpu(
    debugger: Debugger, name: str, value: gdb.Value, address: int
) -> tuple[str, gdb.Value]:
    try:
        kernel = debugger.session().kernel
        cpu = panic_cpu(kernel)
        if cpu is not None and is_per_cpu(kernel, name, address):
            copy = gdb.Value(per_cpu_ptr(kernel, address, cpu))
            pointer = copy.cast(value.type.pointer())
            return f"{name} [CPU {cpu}]", pointer.dereference()
    except KdumpError:
        pass  # then it is shown as unreadable
    return name, value
