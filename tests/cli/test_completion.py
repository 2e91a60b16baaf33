"""Shell completion of commands, flags and overrides."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from imsm.cli.main import COMMANDS, main


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_has_commands_and_options(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    for word in (*COMMANDS, "peft=lora", "multirun", "num-fewshot"):
        assert word in script


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes_commands_and_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    main(["completion", "bash"])
    script = capsys.readouterr().out

    def complete(*words: str) -> set[str]:
        setup = f"COMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_imsm imsm {words[-1]}"
        code = f"{script}\n{setup} x; printf '%s\\n' \"${{COMPREPLY[@]}}\""
        done = subprocess.run(["bash", "-c", code], capture_output=True, text=True)
        return {word.strip() for word in done.stdout.splitlines()}

    assert complete("imsm", "pre") == {"predictions"}
    assert complete("imsm", "run", "peft=lor") >= {"peft=lora", "peft=loramoe"}
    assert complete("imsm", "run", "seed=1", "data=gsm") == {"data=gsm8k"}
