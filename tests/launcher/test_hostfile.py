"""The hostfile: what is read, and that every kind of mistake is one line that names the place."""

from __future__ import annotations

import string
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from egmf_dist.errors import EgmfError
from egmf_launcher.hostfile import Host, parse_hostfile

ROOT = Path(__file__).resolve().parents[2]


def write(folder: Path, content: str) -> Path:
    path = folder / "hosts"
    path.write_bytes(content.encode())
    return path


def test_comments_blank_lines_and_addresses(tmp_path: Path) -> None:
    content = (
        "\ufeff# cluster\n\n  node-1.example.org   slots=8 # the first\r\n"
        "10.0.0.2 slots=4\nfe80::1 slots=1\nme@node_3\tslots=2\n"
    )
    assert parse_hostfile(write(tmp_path, content)) == [
        Host("node-1.example.org", 8),
        Host("10.0.0.2", 4),
        Host("fe80::1", 1),
        Host("me@node_3", 2),
    ]


def test_the_example_is_valid() -> None:
    assert parse_hostfile(ROOT / "hostfile.example") == [Host("localhost", 2)]


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("localhost", "is not a name and a number of slots"),
        ("localhost slots=2 max_slots=4", "is not a name and a number of slots"),
        ("localhost slots = 2", "is not a name and a number of slots"),
        ("localhost 2", "instead of slots=N"),
        ("localhost slots=", "instead of slots=N"),
        ("localhost slots=two", "instead of slots=N"),
        ("localhost slots=1.5", "instead of slots=N"),
        ("localhost slots=-1", "instead of slots=N"),
        ("localhost slots=٣", "instead of slots=N"),
        ("localhost slots=99999999", "instead of slots=N"),
        ("localhost slots=0", "slots must be 1 or more"),
        ("-oProxyCommand=touch${IFS}x slots=1", "no host name or address"),
        ("--help slots=1", "no host name or address"),
        ("a;reboot slots=1", "no host name or address"),
        ("$(reboot) slots=1", "no host name or address"),
        ("`reboot` slots=1", "no host name or address"),
        ("a|b slots=1", "no host name or address"),
        ("a&b slots=1", "no host name or address"),
        ("a>b slots=1", "no host name or address"),
        ("a'b slots=1", "no host name or address"),
        ('a"b slots=1', "no host name or address"),
        ("../a slots=1", "no host name or address"),
        ("@a slots=1", "no host name or address"),
        ("me@-oX slots=1", "no host name or address"),
        ("-me@a slots=1", "no host name or address"),
        ("höst slots=1", "no host name or address"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, says: str) -> None:
    path = write(tmp_path, f"# first\ngood slots=1\n{line}\n")
    with pytest.raises(EgmfError) as caught:
        parse_hostfile(path)
    message = str(caught.value)
    assert says in message
    assert f"hostfile {path}, line 3: {line!r}" in message
    assert "\n" not in message


def test_missing_empty_duplicate_and_binary(tmp_path: Path) -> None:
    with pytest.raises(EgmfError, match=r"nowhere: no such file; write one line a machine such as 'localhost slots=2'"):
        parse_hostfile(tmp_path / "nowhere")
    with pytest.raises(EgmfError, match="no such file"):
        parse_hostfile(tmp_path)
    with pytest.raises(EgmfError, match="names no machine"):
        parse_hostfile(write(tmp_path, "# nothing\n\n"))
    with pytest.raises(EgmfError, match=r"line 3: 'a slots=4' repeats a of line 1"):
        parse_hostfile(write(tmp_path, "a slots=2\nb slots=2\na slots=4\n"))
    (tmp_path / "hosts").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EgmfError, match="cannot be read"):
        parse_hostfile(tmp_path / "hosts")


@given(st.text(alphabet=string.printable + "é٣", max_size=30))
def test_no_name_that_a_shell_or_ssh_would_read_otherwise(tmp_path_factory: pytest.TempPathFactory, name: str) -> None:
    path = write(tmp_path_factory.mktemp("hosts"), f"{name} slots=1\n")
    try:
        hosts = parse_hostfile(path)
    except EgmfError:
        return
    for host in hosts:
        assert set(host.name) <= set(string.ascii_letters + string.digits + "._-:@")
        assert not host.name.startswith("-")
        assert not host.name.rpartition("@")[2].startswith("-")
