"""Whose a workdir is."""

import json

import pytest

from mela_jax import run_record
from mela_jax.config import default
from mela_jax.data.records import Record
from mela_jax.errors import UserError

RECORDS = [Record("a", "mole", 1, "a.jpg"), Record("b", "other mole", 0, "b.jpg")]


def test_a_field_that_is_newer_than_the_run_is_no_difference(tmp_path):
    config = default()
    run_record.claim(tmp_path, config, RECORDS)
    path = tmp_path / "config.json"
    recorded = json.loads(path.read_text())
    del recorded["config"]["profile_steps"], recorded["config"]["distill"]["average"]
    path.write_text(json.dumps(recorded))
    before = path.read_bytes()
    run_record.claim(tmp_path, config, RECORDS)
    assert path.read_bytes() == before
    config.distill.average = "logits"
    with pytest.raises(UserError, match="distill.average: 'probabilities' -> 'logits'"):
        run_record.claim(tmp_path, config, RECORDS)


def test_another_configuration_or_other_data_are_refused(tmp_path):
    config = default()
    run_record.claim(tmp_path, config, RECORDS)
    with pytest.raises(UserError, match="data.lesions: 2 -> 1"):
        run_record.claim(tmp_path, config, RECORDS[:1])
    config.student.epochs = 3
    with pytest.raises(UserError, match="config.student.epochs: 30 -> 3"):
        run_record.claim(tmp_path, config, RECORDS)


@pytest.mark.parametrize("torn", ["", '{"config": {', "{}"])
def test_a_damaged_record_is_refused_and_left_as_it_is(tmp_path, torn):
    (tmp_path / "config.json").write_text(torn)
    with pytest.raises(UserError, match="config.json: is damaged .* --workdir"):
        run_record.claim(tmp_path, default(), RECORDS)
    assert (tmp_path / "config.json").read_text() == torn
