# SPDX-License-Identifier: GPL-2.0-or-later
"""Commands as gdb sees them, where there is no dump: help, completion, errors."""

from __future__ import annotations

import gdb
import pytest

from gdbkdump.commands import all_commands, command_names, find_command


@pytest.mark.parametrize("name", command_names())
def test_help_is_the_registrys(name: str) -> None:
    command = next(item for item in all_commands() if item.name == name)
    shown = gdb.execute(f"help {name}", to_string=True)
    assert shown.strip() == command.help_text().strip()


def test_apropos_finds_commands() -> None:
    summary = find_command("kps").summary
    found = gdb.execute(f"apropos {summary.split()[-1]}", to_string=True)
    assert f"kps -- {summary}" in found


def test_help_needs_no_dump() -> None:
    shown = gdb.execute("khelp", to_string=True)
    assert [name for name in command_names() if f"\n{name} " not in shown] == []


@pytest.mark.parametrize("name", sorted(set(command_names()) - {"khelp"}))
def test_without_a_dump_each_command_says_so_in_one_line(name: str) -> None:
    with pytest.raises(gdb.error) as caught:
        gdb.execute(name, to_string=True)
    message = str(caught.value)
    assert message.startswith("gdbkdump: ")
    assert "\n" not in message


def test_wrong_option_is_one_line() -> None:
    with pytest.raises(gdb.error, match=r"^gdbkdump: kps: .*--nonsense"):
        gdb.execute("kps --nonsense", to_string=True)


def test_unbalanced_quotes_are_one_line() -> None:
    with pytest.raises(gdb.error) as caught:
        gdb.execute("kps 'init", to_string=True)
    assert "\n" not in str(caught.value)


def test_functions_without_a_dump() -> None:
    with pytest.raises(gdb.error, match="no dump is open"):
        gdb.execute("p $ktask(1)", to_string=True)


def test_parameters() -> None:
    assert gdb.execute("show kdump strict", to_string=True) == "auto\n"
    for name, value in (("format", "json"), ("colour", "off"), ("traceback", "on")):
        before = gdb.execute(f"show kdump {name}", to_string=True).strip()
        assert gdb.execute(f"set kdump {name} {value}", to_string=True) == ""
        assert gdb.execute(f"show kdump {name}", to_string=True) == f"{value}\n"
        gdb.execute(f"set kdump {name} {before}")
    with pytest.raises(gdb.error, match="Undefined item"):
        gdb.execute("set kdump format xml")
