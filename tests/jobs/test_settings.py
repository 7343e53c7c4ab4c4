"""cloud.yaml: what is right is read, what is wrong is told with the file, the setting and what was expected."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artclf.errors import ConfigError
from jobs.settings import CloudSettings, load_cloud_settings, named_place

RIGHT = {
    "bucket": "my-art",
    "region": "us-east-1",
    "account": '"123456789012"',
    "role_arn": "arn:aws:iam::123456789012:role/artclf",
    "image": "123456789012.dkr.ecr.us-east-1.amazonaws.com/artclf@sha256:0",
}


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ARTCLF_CLOUD", raising=False)


def written(path: Path = Path("cloud.yaml"), /, **changed: str | None) -> Path:
    """Writes the right settings, with some changed; None leaves one out."""
    values = {name: value for name, value in {**RIGHT, **changed}.items() if value is not None}
    path.write_text("".join(f"{name}: {value}\n" for name, value in values.items()))
    return path


def refusal() -> str:
    with pytest.raises(ConfigError) as refused:
        load_cloud_settings()
    return str(refused.value)


def test_a_right_file_is_read() -> None:
    written(root="s3://other/art", warm_pool_minutes="15", poll_seconds="30")
    settings = load_cloud_settings()
    assert settings == CloudSettings(
        **{**RIGHT, "account": "123456789012"}, root="s3://other/art", warm_pool_minutes=15, poll_seconds=30
    )
    assert settings.studies == "s3://other/art"


def test_studies_lie_in_the_bucket_where_nothing_else_is_said() -> None:
    written()
    assert load_cloud_settings().studies == "s3://my-art/studies"


def test_the_variable_names_another_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTCLF_CLOUD", str(written(tmp_path / "mine.yaml", bucket="mine")))
    assert load_cloud_settings().bucket == "mine"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("bucket", "My_Art", "the name of a bucket"),
        ("bucket", "s3://my-art", "the name of a bucket"),
        ("bucket", "a", "the name of a bucket"),
        ("bucket", "my..art", "the name of a bucket"),
        ("bucket", "my.-art", "the name of a bucket"),
        ("bucket", "192.168.1.1", "the name of a bucket"),
        ("bucket", "[my-art]", "the name of a bucket"),
        ("region", "us-east", "a region"),
        ("region", "us-east-1a", "a region"),
        ("region", "no", "a region"),
        ("account", "123456789012", "12 digits, in quotes"),
        ("account", "'1234'", "12 digits, in quotes"),
        ("account", '"١٢٣٤٥٦٧٨٩٠١٢"', "12 digits, in quotes"),
        ("role_arn", "artclf", "the ARN of a role"),
        ("role_arn", "arn:aws:iam::123456789012:user/artclf", "the ARN of a role"),
        ("role_arn", "arn:aws:iam::١٢٣٤٥٦٧٨٩٠١٢:role/artclf", "the ARN of a role"),
        ("role_arn", "arn:aws:iam::123456789012:role/" + "x" * 2048, "the ARN of a role"),
        ("image", "artclf image", "an image"),
        ("image", "x" * 256, "an image"),
        ("root", "studies", "s3://BUCKET/PREFIX"),
        ("warm_pool_minutes", "61", "a number from 0 to 60"),
        ("warm_pool_minutes", "true", "a number from 0 to 60"),
        ("poll_seconds", "0", "a number from 1 to 3600"),
        ("poll_seconds", "1.5", "a number from 1 to 3600"),
        ("poll_seconds", "often", "a number from 1 to 3600"),
    ],
)
def test_a_wrong_value_is_told_with_what_was_expected_and_received(name: str, value: str, expected: str) -> None:
    written(**{name: value})
    told = refusal()
    assert told.startswith(f"cloud.yaml: {name}: expected ") and expected in told and "received" in told
    assert len(told) < 250 and "\n" not in told


def test_a_misspelt_setting_gets_its_nearest_name() -> None:
    written(buckett="x")
    assert refusal() == "cloud.yaml: buckett: no such setting. Did you mean bucket?"


@pytest.mark.parametrize("name", ["bucket", "region", "role_arn", "image"])
def test_a_missing_setting_is_named(name: str) -> None:
    written(**{name: None})
    assert f"expected {name} too" in refusal()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("bucket: [", "cloud.yaml:"),
        ("", "expected bucket"),
        ("- bucket\n", "expected bucket"),
        ("bucket: a-b\nbucket: c-d\n", "cloud.yaml:2"),
        ("bucket: !!python/object/apply:os.system ['id']\n", "cloud.yaml:1"),
        ("1: x\n", "1"),
    ],
)
def test_a_file_in_another_form_is_told(text: str, said: str) -> None:
    Path("cloud.yaml").write_text(text)
    assert said in refusal()


def test_a_missing_file_is_told_with_what_it_holds_and_how_to_try_without_an_account() -> None:
    told = refusal()
    assert "cloud.yaml" in told and "bucket, region and role_arn (there is none)" in told and "make rehearse" in told


def test_a_folder_or_bytes_in_its_place_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARTCLF_CLOUD", str(tmp_path))
    assert str(tmp_path) in refusal()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    monkeypatch.setenv("ARTCLF_CLOUD", str(tmp_path / "bytes"))
    assert "bytes" in refusal()


def test_the_image_that_was_pushed_is_used_unless_the_file_names_one() -> None:
    Path(".artclf").mkdir()
    pushed = "123456789012.dkr.ecr.us-east-1.amazonaws.com/artclf@sha256:1"
    Path(".artclf/image.json").write_text(json.dumps({"image": pushed, "tag": "abc-gpu"}))
    written(image=None)
    settings = load_cloud_settings()
    assert (settings.image, settings.image_tag) == (pushed, "abc-gpu")
    written()
    settings = load_cloud_settings()
    assert (settings.image, settings.image_tag) == (RIGHT["image"], "")


def test_an_image_of_another_region_is_refused() -> None:
    written(region="eu-west-1")
    assert "the image is in us-east-1, the jobs would run in eu-west-1, which SageMaker refuses" in refusal()


def test_a_role_of_another_account_is_refused() -> None:
    written(role_arn="arn:aws:iam::999999999999:role/artclf")
    assert "role_arn is of the account 999999999999, account says 123456789012" in refusal()


def test_what_a_push_needs_to_know_is_told_of_a_file_that_is_not_whole_yet() -> None:
    assert named_place() == (None, None)
    written(image=None, role_arn=None, bucket=None)
    assert named_place() == ("us-east-1", "123456789012")
    written(regoin="us-east-1")
    with pytest.raises(ConfigError, match="Did you mean region"):
        named_place()


@pytest.mark.parametrize("record", ["", "[]", "[" * 100_000, '{"image": 7}', '{"image": "a b"}', '{"other": 1}'])
def test_a_damaged_record_of_the_push_is_as_good_as_none(record: str) -> None:
    Path(".artclf").mkdir()
    Path(".artclf/image.json").write_text(record)
    written(image=None)
    assert "expected image too" in refusal()
    written()
    assert load_cloud_settings().image == RIGHT["image"]
