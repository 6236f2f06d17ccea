"""starter_kit/ablation.py: what a run that ends early leaves, and what the script says of it."""

import pytest

from starter_kit import ablation
from utils.cli import STOPPED


def start(monkeypatch, out, *options: str) -> int:
    argv = ["ablation", "--data", "train", "--val", "val", "--out", str(out), *options]
    monkeypatch.setattr("sys.argv", argv)
    return ablation.main()


@pytest.mark.parametrize(("code", "words"), [(STOPPED, "stopped"), (2, "the run failed")])
def test_the_exit_code_is_the_runs(monkeypatch, capsys, tmp_path, code, words):
    monkeypatch.setattr(ablation.main_train, "main", lambda arguments: code)
    assert start(monkeypatch, tmp_path) == code
    assert capsys.readouterr().err == f"ablation.py: backbone alone, seed 0: {words}\n"


def test_a_run_that_never_began_may_get_other_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(ablation.main_train, "main", lambda arguments: 2)
    start(monkeypatch, tmp_path)
    assert start(monkeypatch, tmp_path, "--", "--batch-size", "16") == 2
    (tmp_path / "backbone_alone_0" / "last.pth.tar").touch()  # from here on it is one
    with pytest.raises(ValueError, match="a run with other settings; give another --out"):
        start(monkeypatch, tmp_path, "--", "--batch-size", "8")
