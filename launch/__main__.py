"""The command `senet`: `senet train ...` is `python -m launch.train ...`, and so are all the others.

senet completion > ~/.local/share/bash-completion/completions/senet     # what bash then completes
eval "$(senet completion)"                                              # zsh, in ~/.zshrc, after compinit
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import sys
from pathlib import Path
from typing import NoReturn

from launch import guard
from launch.flags import Parser
from senet.config.files import CONFIGS

HERE = Path(__file__).parent

COMPLETION = """\
# Completion of the command senet for bash and zsh. Made by: senet completion
[ -n "$ZSH_VERSION" ] && autoload -U +X bashcompinit && bashcompinit
_senet() {
    local word="${COMP_WORDS[COMP_CWORD]}" words
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="%(commands)s"
    else
        case "${COMP_WORDS[1]}" in
%(cases)s
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$word"))
}
complete -o default -F _senet senet
"""


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    programs = _programs()
    listed = "\n".join(f"    {name:12}{text}" for name, text in programs.items())
    parser = Parser("senet", f"{__doc__}\ncommands:\n{listed}\n\nsenet COMMAND --help says more of each.")
    parser.add_argument("command", choices=[*programs, "completion"], metavar="COMMAND")
    command = parser.parse_args(words[:1]).command
    if command == "completion":
        print(completion(list(programs)), end="")
        return 0
    return _main(command, words[1:])


def completion(programs: list[str]) -> str:
    """Return a script that completes commands, their flags and, if one is taken, names of configs."""
    configs = [str(file.relative_to(CONFIGS).with_suffix("")) for file in sorted(CONFIGS.rglob("*.yaml"))]
    cases = [f'            {name}) words="{" ".join(_words(name, configs))}" ;;' for name in programs]
    return COMPLETION % {"commands": " ".join([*programs, "completion"]), "cases": "\n".join(cases)}


def _programs() -> dict[str, str]:
    """Return the modules here that are programs, with the first sentence of what they say of themselves."""
    found = {}
    for file in sorted(HERE.glob("*.py")):
        text = file.read_text()
        if not file.stem.startswith("_") and "guard(main)" in text:
            found[file.stem] = re.split(r"[.:]\s", ast.get_docstring(ast.parse(text)) or "")[0].replace("\n", " ")
    return found


def _main(program: str, words: list[str]) -> int:
    code: int = importlib.import_module(f"launch.{program}").main(words)
    return code


def _words(program: str, configs: list[str]) -> list[str]:
    """Return the sub-commands and the flags of a program, as its help lists them, and `configs` if it takes one."""
    commands = next(iter(re.findall(r"^  \{([\w,-]+)\}", said := _help(program), re.MULTILINE)), "").split(",")
    texts = [said, *(_help(program, command) for command in commands if command)]
    flags = {flag for text in texts for flag in re.findall(r"^  (?:-\w, )?(--[a-z][\w-]*)", text, re.MULTILINE)}
    takes_config = re.search(r"^  config ", said, re.MULTILINE)
    return [*filter(None, commands), *sorted(flags), *(configs if takes_config else ())]


def _help(program: str, *command: str) -> str:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
        _main(program, [*command, "--help"])
    return said.getvalue()


def run() -> NoReturn:
    """Be the command that pip installs."""
    guard(main)


if __name__ == "__main__":
    run()
