"""The command that pip installs, and what a shell completes of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from launch import __main__ as command
from senet.errors import UsageError
from tests.helpers import ROOT


def test_every_program_is_a_command(capsys: pytest.CaptureFixture[str]) -> None:
    programs = {file.stem for file in (ROOT / "launch").glob("*.py") if 'if __name__ == "__main__"' in file.read_text()}
    with pytest.raises(SystemExit) as end:
        command.main(["--help"])
    said = capsys.readouterr().out
    assert end.value.code == 0
    assert all(f"\n    {name} " in said for name in programs - {"__main__"})
    with pytest.raises(UsageError, match="invalid choice: 'trian'"):
        command.main(["trian"])
    assert command.main(["variants", "ablations/squeeze"]) == 0
    assert "configs/ablations/squeeze.yaml:max" in capsys.readouterr().out


def test_a_shell_completes_commands_flags_and_configs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["completion"]) == 0
    (tmp_path / "senet").write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = f"source {tmp_path}/senet; COMP_WORDS=(senet {' '.join(words)}); COMP_CWORD={len(words)}"
        ask = ["bash", "-c", f'{line}; _senet; echo "${{COMPREPLY[@]}}"']
        return subprocess.run(ask, capture_output=True, text=True, check=True).stdout.split()

    assert completed("tra") == ["train"]
    assert completed("train", "--ini") == ["--init"]
    assert completed("show", "cifar10/se_resnet2") == ["cifar10/se_resnet20"]
    assert completed("weights", "con") == ["convert"]
    assert completed("weights", "--to") == ["--to"]
