"""The tutorials of a language model and of privacy: every command as typed, in order, and its Python."""

import re
import runpy
import shlex
from pathlib import Path

import pytest

from support import command

ROOT = Path(__file__).parent.parent


def test_a_small_language_model_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    monkeypatch.chdir(tmp_path)
    page = (ROOT / "docs" / "tutorial-language-model.md").read_text(encoding="utf-8")
    (recipe,) = re.findall(r"```toml\n(.*?)```", page, re.S)
    Path("reviews.toml").write_text(recipe.replace("rounds = 60", "rounds = 45"))
    lines = [line for text in re.findall(r"```sh\n(.*?)```", page, re.S) for line in text.splitlines()]
    assert lines.pop(0) == "pip install '.[llm]'"
    script, *arguments = shlex.split(lines.pop(0))[1:]
    runpy.run_path(str(ROOT / script))["main"](*map(Path, arguments))
    assert [line.split()[1] for line in lines] == ["plan", "run", "show", "verify", "export"]
    for line in lines:
        done = command(*shlex.split(line)[1:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
    capsys.readouterr()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.S)
    exec(compile(code, "tutorial", "exec"), {})  # noqa: S102 - our own documentation
    assert capsys.readouterr().out.strip() == "positive"


def test_what_a_run_gives_away(tmp_path: Path) -> None:
    """The example of the first step runs in tests/test_docs.py."""
    page = (ROOT / "docs" / "tutorial-privacy.md").read_text(encoding="utf-8")
    attack, *lines = [line for text in re.findall(r"```sh\n(.*?)```", page, re.S) for line in text.splitlines()]
    assert attack == "python examples/what_scalars_reveal.py"
    for line in lines:
        said, _, file = line.partition(" > ")
        done = command(*shlex.split(said)[1:], cwd=tmp_path)
        assert done.returncode == 0, (line, done.stderr)
        if file:
            (tmp_path / file).write_text(done.stdout)
    assert "d = 4,810" in done.stdout
    assert re.search(r"up\W+round\W+800 ", done.stdout)
