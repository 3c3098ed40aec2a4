"""Whatever a user types or writes into a configuration: it is understood, or refused in a line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import pytest
import yaml
from cyclopts import CycloptsError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from whiten import cli
from whiten.cli.app import app
from whiten.errors import ConfigError, RunError, WhitenError
from whiten.models.registry import open_teacher
from whiten.models.uri import SCHEMES, TeacherURI, parse_uri, split_uris
from whiten.runs.folder import RunFolder
from whiten.runs.spec import DistillSpec

pytestmark = pytest.mark.slow

FUZZ = settings(
    max_examples=300,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

# Every code point but the halves of surrogate pairs, and of these the ones that stand for bytes of
# a file name that is not text.
CHARACTERS = st.characters(exclude_categories=["Cs"]) | st.integers(0xDC80, 0xDCFF).map(chr)
TEXT = st.text(CHARACTERS, max_size=12)
PIECES = st.sampled_from([*SCHEMES, *":?&=%+/.,# ", "%zz", "%00", "%ff", "..", "size", "pool", "1"])
URIS = st.lists(PIECES | TEXT, max_size=10).map("".join)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
OPTIONS = {field.name: field for field in dataclasses.fields(DistillSpec)}
DEFAULTS = DistillSpec(teachers=["demo:mobilenetv2"]).to_mapping()


def fitting(kind: Any) -> st.SearchStrategy[Any]:
    """Values of the type of an option."""
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is list:
        return st.lists(fitting(get_args(kind)[0]), min_size=1, max_size=3)
    if get_args(kind):
        return st.one_of([fitting(part) for part in get_args(kind)])
    plain = {int: st.integers(1, 9), float: st.floats(0.001, 2), bool: st.booleans(), str: TEXT}
    return plain.get(kind, st.none())


MODELS = st.sampled_from(["demo:mobilenetv2", "timm:resnet18?pretrained=0", "python:a.b:c"])
FITTING = {name: fitting(kind) for name, kind in get_type_hints(DistillSpec).items()} | {
    "teachers": st.lists(MODELS, min_size=1, max_size=3),
    "student": MODELS,
}


def check_one_line(error: BaseException) -> None:
    assert str(error) and "\n" not in str(error)


# --- URIs -----------------------------------------------------------------------------------


@FUZZ
@given(URIS)
def test_a_uri_is_read_or_refused(text: str) -> None:
    try:
        uri = parse_uri(text)
    except ConfigError as error:
        check_one_line(error)
    else:
        assert uri.scheme in SCHEMES
        assert parse_uri(str(uri)) == uri


@FUZZ
@given(
    st.sampled_from([scheme for scheme in SCHEMES if scheme != "fuse"]),
    st.text(CHARACTERS, min_size=1).filter(lambda target: "?" not in target),
    st.dictionaries(TEXT, TEXT, max_size=4),
)
def test_a_uri_that_is_written_is_read_again(
    scheme: str, target: str, options: dict[str, str]
) -> None:
    uri = TeacherURI(scheme, target, tuple(options.items()))
    assert parse_uri(str(uri)) == uri


@FUZZ
@given(st.dictionaries(st.sampled_from(["size", "pool", "on", "sizes"]), TEXT, max_size=3))
def test_options_are_converted_or_refused(options: dict[str, str]) -> None:
    uri = TeacherURI("timm", "x", tuple(options.items()))
    try:
        taken = uri.take(size=(int, 7), pool=(str, "avg"), on=(bool, False))
    except ConfigError:
        return
    assert [type(value) for value in taken.values()] == [int, str, bool]
    assert taken["pool"] == options.get("pool", "avg")


@FUZZ
@given(st.lists(URIS, max_size=4).map(",".join))
def test_a_list_of_uris_is_split_or_refused(text: str) -> None:
    try:
        assert ",".join(split_uris(text)) == text
    except ConfigError as error:
        check_one_line(error)


@settings(FUZZ, max_examples=60)
@given(
    st.sampled_from(["timm", "torchvision", "openclip", "hf", "onnx", "python", "store", "whiten"]),
    TEXT.filter(lambda text: "?" not in text),
    st.dictionaries(
        st.sampled_from(["weights", "output", "fit", "pool"]), TEXT, min_size=1, max_size=2
    ),
)
def test_no_teacher_is_named_so(
    tmp_path: Path, scheme: str, target: str, options: dict[str, str]
) -> None:
    # Nothing that a random text names exists, neither here nor on a hub.
    uri = TeacherURI(scheme, f"{tmp_path}/no{target}", tuple(options.items()))
    with pytest.raises(WhitenError):
        open_teacher(str(uri))


# --- options --------------------------------------------------------------------------------


def build(options: dict[str, Any]) -> DistillSpec | None:
    """The options of a run, None where they are refused as they should be."""
    try:
        return DistillSpec.from_mapping(options)
    except ConfigError as error:
        check_one_line(error)
        return None


@FUZZ
@given(st.dictionaries(st.sampled_from(list(OPTIONS)) | TEXT, VALUES, max_size=4))
def test_options_are_taken_or_refused(options: dict[str, Any]) -> None:
    spec = build({**DEFAULTS, **options})
    if spec is not None:
        assert spec.to_mapping() == {**DEFAULTS, **options}


@FUZZ
@given(st.sampled_from(list(OPTIONS)), VALUES)
def test_a_wrong_type_is_never_taken(name: str, value: Any) -> None:
    if build({**DEFAULTS, name: value}) is not None:
        allowed = str(OPTIONS[name].type)
        kind = type(value).__name__
        assert (
            kind in allowed
            or (kind == "int" and "float" in allowed)
            or (kind == "str" and value in allowed)
            or (value is None and "None" in allowed)
        )


def saved(folder: Path, options: dict[str, Any]) -> RunFolder:
    run = RunFolder(folder)
    run.root.mkdir(exist_ok=True)
    content = {"images": "photos", "version": "0", **options}
    run.config.write_text(yaml.safe_dump(content, sort_keys=False), "utf-8")
    return run


def check_configuration(run: RunFolder) -> None:
    try:
        images, spec = run.read_config()
    except RunError as error:
        check_one_line(error)
    else:
        assert isinstance(images, str)
        assert DistillSpec.from_mapping(spec.to_mapping()) == spec


@FUZZ
@given(st.data())
def test_a_damaged_configuration_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    run = saved(tmp_path / "run", DEFAULTS)
    content = bytearray(run.config.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        start = data.draw(st.integers(0, len(content) - 1))
        end = start + data.draw(st.integers(0, 4))
        content[start:end] = data.draw(st.binary(max_size=4))
    run.config.write_bytes(content)
    check_configuration(run)


@FUZZ
@given(st.binary(max_size=40) | TEXT.map(lambda text: text.encode("utf-8", "surrogateescape")))
def test_any_bytes_are_no_configuration(tmp_path: Path, content: bytes) -> None:
    run = saved(tmp_path / "run", DEFAULTS)
    run.config.write_bytes(content)
    with pytest.raises(RunError, match=r"config\.yaml is damaged") as caught:
        run.read_config()
    check_one_line(caught.value)


@pytest.mark.parametrize(
    "content", ["[" * 5000, "a: &a [*a]", "!!python/object/apply:os.getcwd []", "? {}", "1: 3"]
)
def test_strange_yaml_is_refused(tmp_path: Path, content: str) -> None:
    run = saved(tmp_path / "run", {})
    run.config.write_text(content)
    with pytest.raises(RunError, match=r"config\.yaml is damaged"):
        run.read_config()
    with pytest.raises((ConfigError, CycloptsError)):
        app.parse_args(["distill", "--out", "run", "--config", str(run.config)])


# --- the command line -----------------------------------------------------------------------


@settings(FUZZ, max_examples=100)
@given(options=st.fixed_dictionaries({}, optional=FITTING))
def test_a_configuration_file_says_what_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any]
) -> None:
    """What reaches `distill` from a file is what the file holds, or the file is refused."""
    wanted = build({**DEFAULTS, **options})
    file = tmp_path / "run.yaml"
    file.write_text(yaml.safe_dump({**DEFAULTS, **options}), "utf-8")
    got: list[DistillSpec] = []

    def capture(images: Any, spec: DistillSpec, *_: Any, **__: Any) -> None:
        got.append(spec)
        raise ConfigError("far enough")

    monkeypatch.setattr("whiten.distillation.distill.distill", capture)
    with pytest.raises(SystemExit) as end:
        cli.main(["distill", "photos", "--out", str(tmp_path / "out"), "--config", str(file)])
    assert end.value.code == 2
    if wanted is not None:
        assert got == [wanted]


@FUZZ
@given(arguments=st.lists(st.sampled_from(["--dim", "x", "-", "--", "--json"]) | TEXT, max_size=5))
def test_any_command_ends_in_a_line(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["embed", *arguments, "--out"])  # a value is missing: it never runs
    assert end.value.code == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("whiten: ") and err.count("\n") == 1
