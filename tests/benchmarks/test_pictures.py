from pathlib import Path

from PIL import Image

from benchmarks.pictures import NUM_DIFFERENT, write_data_set
from mela_jax.data.user_csv import read_user_csv


def test_data_set_reads_as_files_of_their_own_past_the_different_ones(tmp_path: Path):
    count = NUM_DIFFERENT + 3
    write_data_set(tmp_path, count=count, width=20, height=15)
    records = read_user_csv(tmp_path)
    assert len(records) == count
    assert sum(r.label for r in records) == -(-count // 4)
    first, repeated = Path(records[0].path), Path(records[NUM_DIFFERENT].path)
    assert repeated.read_bytes() == first.read_bytes()
    assert first.read_bytes() != Path(records[1].path).read_bytes()
    with Image.open(first) as picture:
        assert (picture.format, picture.size) == ("JPEG", (20, 15))
