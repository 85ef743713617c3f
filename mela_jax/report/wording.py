"""The names of models, columns and diagnoses, and the templates that use them."""

from collections.abc import Mapping
from typing import Any

import jinja2

from mela_jax.report import words

ROLES = {
    "teacher": "Teacher",
    "student": "Distilled student",
    "baseline": "Undistilled student",
    "model": "Model",
    "other": "Other model",
}
BY = {
    "age": "Age (years)",
    "sex": "Sex",
    "localization": "Body site",
    "dx": "Diagnosis",
    "dx_type": "How the diagnosis was made",
    "source": "Image source",
}
DIAGNOSES = {
    "ak": "actinic keratosis",
    "akiec": "actinic keratosis or Bowen's disease",
    "bcc": "basal cell carcinoma",
    "bkl": "benign keratosis",
    "df": "dermatofibroma",
    "mel": "melanoma",
    "nv": "nevus (mole)",
    "scc": "squamous cell carcinoma",
    "unk": "none of the others",
    "vasc": "vascular lesion",
    "histo": "histopathology-confirmed only",
    "follow_up": "no change in follow-up",
    "consensus": "expert consensus",
    "confocal": "confocal microscopy",
}


def diagnosis_name(code: str) -> str:
    """Return the name of a diagnosis, or what is not known as it stands.

    >>> diagnosis_name("BKL"), diagnosis_name("wart")
    ('benign keratosis', 'wart')
    """
    return DIAGNOSES.get(code.lower(), code)


def told_name(key: str) -> str:
    """Return the name of a column or of a diagnosis in a sentence."""
    return BY[key].lower() if key in BY else diagnosis_name(key)


def model_label(name: str, models: Mapping[str, Mapping[str, Any]]) -> str:
    """Return a model's name for tables and legends, such as "Teacher 2 (resnet50)".

    >>> [model_label(n, {n: {}}) for n in ("student", "teacher_2", "int8_file")]
    ['Distilled student', 'Teacher 2', 'Int8 file']

    Args:
        name: a key of `models`.
        models: all models of the report; "name" is the architecture, if known.
    """
    role, _, number = name.rpartition("_")
    if name in ROLES:
        role = ROLES[name]
    elif role in ROLES and number.isdigit():
        role = f"{ROLES[role]} {number}"
    else:
        role = (name[:1].upper() + name[1:]).replace("_", " ")
    known = models[name].get("name")
    return f"{role} ({known})" if known else role


def find_leader(models: Mapping[str, Any]) -> str:
    """Return the model that the report is about: the student, or else the first."""
    return "student" if "student" in models else next(iter(models))


def find_class_models(models: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return the models that score every diagnosis, the leader first if it does."""
    found = [name for name in models if models[name]["test"]["multiclass"]]
    leader = find_leader(models)
    return sorted(found, key=lambda name: name != leader)


def make_environment() -> jinja2.Environment:
    """Return the templates of this package, with the words of the report as filters.

    Everything is escaped in templates named .html.j2, and nothing in others; a name
    that is not given is an error.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("mela_jax.report"),
        autoescape=jinja2.select_autoescape(["html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        percent=words.percent,
        target=words.target,
        rate=words.rate,
        number=words.number,
        people=words.people,
        of_hundred=words.of_hundred,
        rest=words.rest,
        amount=words.amount,
        p_value=words.p_value,
        dx=diagnosis_name,
        told=told_name,
    )
    return environment
