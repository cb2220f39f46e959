# SPDX-License-Identifier: GPL-2.0-or-later
"""klog against /dev/kmsg of the guest."""

from __future__ import annotations

import re


def raw(text):
    """Return a text of the truth as klog's JSON has it."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def test_every_record_that_the_guest_read(run, truth):
    rows = {row["seq"]: row for row in run("klog") if "seq" in row}
    assert truth["kmsg"]
    for record in truth["kmsg"]:
        row = rows[record["seq"]]
        assert row["level"] == record["level"]
        assert row["facility"] == record["facility"]
        assert row["time_ns"] // 1000 == record["ts_us"]
        assert row["text"] == raw(record["text"])


def test_dictionaries(run, truth):
    rows = {row["seq"]: row for row in run("klog") if "seq" in row}
    with_dict = [record for record in truth["kmsg"] if record["dict"]]
    assert with_dict
    for record in with_dict:
        wanted = {key.lower(): value for key, value in record["dict"].items()}
        assert rows[record["seq"]]["dict"] == wanted


def test_it_goes_on_to_the_panic(run):
    rows = [row for row in run("klog") if "seq" in row]
    seqs = [row["seq"] for row in rows]
    assert seqs == sorted(set(seqs))
    assert any("sysrq triggered crash" in row["text"] for row in rows[-60:])


def test_level_filter(run):
    assert {row["level"] for row in run("klog", "-l", "err") if "seq" in row} <= {
        0,
        1,
        2,
        3,
    }
    everything = [row for row in run("klog") if "seq" in row]
    few = [row for row in run("klog", "-l", "4") if "seq" in row]
    assert [row for row in everything if row["level"] <= 4] == few


def test_text_forms(run_text):
    plain = run_text("klog")
    assert re.fullmatch(r"\[ {4}0\.000000\] Linux version .*", plain[0])
    assert run_text("klog", "-t")[0] == plain[0].partition("] ")[2]
    assert re.match(r"\[ {4}0\.000000\] <5>Linux version ", run_text("klog", "-m")[0])
    assert all(line.isprintable() for line in plain)


def test_wall_clock(run, run_text, session):
    crash_time = int(session.kernel.vmcoreinfo.get("CRASHTIME"))
    rows = [row for row in run("klog", "-T") if "seq" in row]
    panic = next(row for row in rows if row["text"].startswith("Kernel panic"))
    assert abs(panic["wall_time_ns"] // 10**9 - crash_time) <= 1
    assert re.match(
        r"\[\w{3} \w{3} [ \d]\d \d\d:\d\d:\d\d UTC \d{4}\] ", run_text("klog", "-T")[0]
    )
