"""The README's code runs, in its order, in one folder."""

import os
import re
import subprocess
import sys

import pytest

from tests.testing_utils import ROOT


README = (ROOT / "README.md").read_text(encoding="utf-8")
NOT_RUN = ("<!-- not run", "make ", "pip install")


def blocks() -> list[tuple[str, str]]:
    found = []
    for match in re.finditer(r"(<!-- not run[^>]*-->\n)?```(python|sh)\n(.*?)```", README, re.S):
        skipped, language, code = match.groups()
        if not skipped and not code.startswith(NOT_RUN):
            found.append((language, code))
    return found


def test_every_code_block_runs(tmp_path):
    python = "\n".join(code for language, code in blocks() if language == "python")
    shell = "\n".join(code for language, code in blocks() if language == "sh")
    assert "ContinualLearning" in python and "FIPTrainer" in python and "hf-fip show" in shell
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment["PATH"] = os.path.dirname(sys.executable) + os.pathsep + os.environ["PATH"]
    (tmp_path / "readme.py").write_text(python)
    for command in ([sys.executable, "readme.py"], ["bash", "-e", "-c", shell]):
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=400)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "digits" / "report.html").stat().st_size > 1e6


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)\)", README))))
def test_every_link_into_the_project_leads_somewhere(link):
    assert (ROOT / link).exists()
