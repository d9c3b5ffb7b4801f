"""Every command that the documents and the systemd units show is one that the program takes, with these options."""

from __future__ import annotations

import importlib.util
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import typer

from adaptsplit.cli import app

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
UNITS = sorted((ROOT / "contrib" / "systemd").glob("*.service"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(adaptsplit [^`]+)`")
ENDS = {"&", "&&", "||", "|", ";", ">", "2>", ">>", "<"}
CLI: Any = typer.main.get_command(app)


@dataclass(frozen=True)
class Shown:
    """A command of a page: where it stands, its words, and whether it is whole (in a block) or only mentioned."""

    where: str
    words: tuple[str, ...]
    whole: bool

    def __str__(self) -> str:
        return f"{self.where}: {' '.join(self.words)}"


def lines_of(block: str) -> Iterator[str]:
    for line in re.sub(r"\\\n\s*", " ", block).splitlines():
        yield re.sub(r"(^\$ |(^|\s)#.*$)", "", line.strip())


def words_of(line: str) -> Iterator[tuple[str, ...]]:
    """Split a shell line into its commands; what a shell would not split is no command of ours."""
    try:
        words = shlex.split(line)
    except ValueError:
        return
    one: list[str] = []
    for word in [*words, ";"]:
        if word in ENDS:
            if one:
                yield tuple(one)
            one = []
        else:
            one.append(word)


def commands_of(path: Path) -> Iterator[Shown]:
    text = path.read_text(encoding="utf-8")
    where = str(path.relative_to(ROOT))
    for language, block in FENCE.findall(text):
        if language in ("", "bash", "sh", "console", "text"):
            for line in lines_of(block):
                yield from (Shown(where, words, True) for words in words_of(line))
    for said in INLINE.findall(FENCE.sub("", text)):
        yield from (Shown(where, words, False) for words in words_of(said))


def unit_commands(path: Path) -> Iterator[Shown]:
    text = re.sub(r"\\\n\s*", " ", path.read_text(encoding="utf-8"))
    for line in re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE):
        given = re.sub(r"\$\{METRICS\}", "9400", re.sub(r"\$\{THREADS\}", "1", line.replace("$EXTRA", "")))
        yield Shown(path.name, tuple(shlex.split(given)), True)


def program_words(shown: Shown) -> tuple[str, ...] | None:
    """Return what follows ``adaptsplit``, or None for another program (variables and sudo before it are left out)."""
    words = list(shown.words)
    while words and (re.fullmatch(r"\w+=\S*", words[0]) or words[0] in ("sudo", "nice", "time")):
        words.pop(0)
    return tuple(words[1:]) if words and words[0].rpartition("/")[2] == "adaptsplit" else None


SHOWN = [one for path in PAGES for one in commands_of(path)] + [one for path in UNITS for one in unit_commands(path)]
OURS = [one for one in SHOWN if program_words(one) is not None]


def find(words: tuple[str, ...]) -> tuple[Any, tuple[str, ...]] | None:
    """Return the command that the first words name, and the rest; None where they name none."""
    command = CLI
    while hasattr(command, "commands"):
        if not words or words[0] not in command.commands:
            return (command, words) if words and words[0].startswith("--") else None
        command, words = command.commands[words[0]], words[1:]
    return command, words


def fault(shown: Shown) -> str:
    """Return what is wrong with a command of ours, '' for nothing."""
    words = program_words(shown)
    assert words is not None
    if not words or not re.fullmatch(r"[a-z][a-z-]*|--[a-z-]+", words[0]):
        return ""  # "adaptsplit COMMAND", a path, a sentence
    found = find(words)
    if found is None:
        group = CLI.commands.get(words[0])
        alone = group is not None and len(words) == 1 and not shown.whole  # "`adaptsplit fleet`": a group is meant
        return "" if alone else "no such command"
    command, rest = found
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)} | {"--help"}
    strange = [word for word in rest if word.startswith("--") and word.partition("=")[0] not in known]
    if strange or not shown.whole or "--help" in rest or "..." in rest:
        return f"no option {', '.join(strange)}" if strange else ""
    try:
        command.make_context(" ".join(words), list(rest))
    except Exception as error:
        return getattr(error, "message", None) or repr(error)
    return ""


def test_the_pages_show_commands_at_all() -> None:
    assert len(OURS) > 100
    assert {"README.md", "docs/devices-install.md", "adaptsplit-edge.service"} <= {one.where for one in OURS}


@pytest.mark.parametrize("where", sorted({one.where for one in OURS}))
def test_every_command_that_is_shown_is_one_that_is_taken(where: str) -> None:
    faults = [f"{one}: {fault(one)}" for one in OURS if one.where == where and fault(one)]
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("device --bundle b --speed 3", "no option --speed"),
        ("fleet send x", "no such command"),
        ("keys issue drone-7", "Missing"),
        ("device --bundle b --count x", "valid integer"),
        ("edge --bundle b extra", "unexpected"),
    ],
)
def test_the_check_finds_what_is_wrong(words: str, said: str) -> None:
    assert said in fault(Shown("here", ("adaptsplit", *words.split()), True))


def modules() -> list[tuple[str, str, tuple[str, ...]]]:
    """Return (where, module or script, its words) of every ``python -m adaptsplit...`` and ``python FOLDER/X.py``."""
    found = []
    for one in SHOWN:
        words = [word for word in one.words if "=" not in word or word.startswith("-")]
        if one.whole and len(words) > 1 and words[0].startswith("python"):
            named = words[2] if words[1] == "-m" and len(words) > 2 else words[1]
            if named.startswith("adaptsplit.") or named.endswith(".py"):
                found.append((one.where, named, tuple(words)))
    return found


@pytest.mark.parametrize(("where", "named", "words"), modules(), ids=lambda value: str(value)[:60])
def test_every_module_and_script_that_is_shown_is_there_with_its_options(
    where: str, named: str, words: tuple[str, ...]
) -> None:
    spec = importlib.util.find_spec(named) if named.startswith("adaptsplit.") else None
    path = Path(spec.origin) if spec is not None and spec.origin else ROOT / named
    assert path.is_file(), f"{where}: {named} is not there"
    source = path.read_text(encoding="utf-8")
    for word in words:
        if word.startswith("--"):
            assert f'"{word.partition("=")[0]}"' in source, f"{where}: {named} has no option {word}"


def test_the_targets_of_make_are_there() -> None:
    made = {word for one in SHOWN if one.whole and one.words[0] == "make" for word in one.words[1:]}
    targets = set(re.findall(r"^([a-z][\w-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert made
    assert made <= targets
