import pytest

from benchmarks import input_pipeline


def test_table_has_a_row_for_each_file_and_square(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    words = "input_pipeline --sources=40x30 --sizes=16,32 --images=64"
    monkeypatch.setattr("sys.argv", [*words.split(), "--batch_size=4", "--rounds=1"])
    input_pipeline.main()
    rows = [r for r in capsys.readouterr().out.splitlines() if r.startswith("| 40x30")]
    assert [row.split(" | ")[2] for row in rows] == ["16", "32"]
    assert all(
        float(cell.strip(" |")) > 0 for row in rows for cell in row.split("|")[4:11]
    )


@pytest.mark.parametrize("flag", ["--sources=40", "--sizes=0", "--images=x"])
def test_bad_flag_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flag: str
):
    monkeypatch.setattr("sys.argv", ["input_pipeline", flag])
    with pytest.raises(SystemExit):
        input_pipeline.main()
    assert flag.split("=")[0] in capsys.readouterr().err
