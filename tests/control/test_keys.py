"""Key files: made whole, read strictly, refused where somebody else could have had a hand in them."""

import stat
from pathlib import Path

import pytest
import zmq
from typer.testing import CliRunner

from control.address import BusAddress
from control.errors import KeyFileError
from control.keys import load_keys, make_keys
from control.keys_commands import app, check_keys


@pytest.fixture
def made(tmp_path):
    make_keys(tmp_path / "keys", ["laptop"])
    return tmp_path / "keys"


def refusal(folder: Path) -> str:
    with pytest.raises(KeyFileError) as caught:
        load_keys(folder)
    return str(caught.value)


def test_every_machine_has_a_pair_of_its_own_and_knows_all_others(made):
    rings = {name: load_keys(made / name) for name in ("robot", "encoder", "laptop")}
    publics = {name: ring.public for name, ring in rings.items()}
    assert len(set(publics.values())) == 3
    assert all(ring.known == publics and ring.name == name for name, ring in rings.items())
    assert all(zmq.curve_public(ring.secret) == ring.public for ring in rings.values())


def test_keys_are_closed_to_other_users(made):
    modes = {path.relative_to(made).as_posix(): stat.S_IMODE(path.stat().st_mode) for path in made.rglob("*")}
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert {mode for path, mode in modes.items() if "." not in path} == {0o700}
    assert {mode for path, mode in modes.items() if "." in path} == {0o600}
    assert sorted(path for path in modes if path.startswith("encoder/")) == [
        "encoder/encoder.key",
        "encoder/encoder.key_secret",
        "encoder/laptop.key",
        "encoder/robot.key",
    ]


def test_no_secret_stands_in_what_is_printed_of_keys(made):
    ring = load_keys(made / "robot")
    assert ring.secret.decode() not in repr(ring) + str(ring)


def test_keys_are_never_overwritten(made):
    before = {path: path.read_bytes() for path in made.rglob("*.key*")}
    with pytest.raises(KeyFileError, match=r"keys --out .*keys: .*keys are never overwritten: name a folder that does"):
        make_keys(made)
    assert {path: path.read_bytes() for path in made.rglob("*.key*")} == before
    assert [path.name for path in made.parent.iterdir()] == ["keys"]  # nothing half made is left


def test_a_place_where_nothing_can_be_made_is_named(tmp_path):
    with pytest.raises(KeyFileError, match="nothing can be made in .*nowhere: No such file or directory"):
        make_keys(tmp_path / "nowhere" / "keys")


@pytest.mark.parametrize("name", ["robot", "encoder", "a/b", "..", "", "läptop", "x" * 41])
def test_a_client_needs_a_plain_name_of_its_own(tmp_path, name):
    with pytest.raises(KeyFileError, match="expected a name of letters, digits, - and _ that stands once"):
        make_keys(tmp_path / "keys", [name])
    assert not (tmp_path / "keys").exists()


def test_a_client_named_twice_is_refused(tmp_path):
    with pytest.raises(KeyFileError, match="keys --client 'laptop'"):
        make_keys(tmp_path / "keys", ["laptop", "laptop"])


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660])
def test_a_secret_that_others_can_read_is_refused(made, mode):
    (made / "robot" / "robot.key_secret").chmod(mode)
    got = refusal(made / "robot")
    assert f"robot.key_secret: expected your own with mode 600, got owner {made.stat().st_uid}, mode {mode:o}" in got
    assert got.endswith("so make new keys if they may have; `chmod 600` it")


def test_a_folder_and_a_public_key_that_others_can_change_are_refused(made):
    (made / "robot" / "laptop.key").chmod(0o666)
    assert "laptop.key: expected your own with mode 600, got" in refusal(made / "robot")
    (made / "robot").chmod(0o777)
    assert "robot: expected your own with mode 700, got" in refusal(made / "robot")
    assert "other users can add keys of their own to it; `chmod 700` it" in refusal(made / "robot")


def test_what_is_missing_is_named(made, tmp_path):
    assert "nowhere is no folder; make keys with `launch.py keys --out DIR`" in refusal(tmp_path / "nowhere")
    assert "expected one file NAME.key_secret, got none; name one of the folders in it: encoder, laptop, robot" in (
        refusal(made)
    )
    (made / "robot" / "robot.key_secret").unlink()
    assert "expected one file NAME.key_secret, got none; make keys with" in refusal(made / "robot")
    (made / "laptop" / "robot.key").unlink()
    with pytest.raises(KeyFileError, match="holds no robot.key, by which the robot's machine is known; it holds encod"):
        load_keys(made / "laptop").public_of("robot")


def test_two_secrets_in_one_folder_are_refused(made):
    (made / "encoder" / "encoder.key_secret").rename(made / "robot" / "encoder.key_secret")
    assert "expected one file NAME.key_secret, got encoder.key_secret, robot.key_secret" in refusal(made / "robot")


@pytest.mark.parametrize(
    ("name", "keep", "message"),
    [
        ("robot.key_secret", 0, "expected a line public-key; the file is damaged"),
        ("robot.key_secret", -5, "expected secret-key to have 40 characters of Z85, got 37; the file is damaged"),
        ("robot.key_secret", -50, "expected a secret-key and its public-key; the file is damaged"),
        ("laptop.key", -20, "expected public-key to have 40 characters of Z85, got 22; the file is damaged"),
        ("laptop.key", 30, "expected a line public-key; the file is damaged"),
    ],
)
def test_a_truncated_file_is_refused(made, name, keep, message):
    path = made / "robot" / name
    text = path.read_text()
    path.write_text(text[:keep])
    got = refusal(made / "robot")
    assert f"key file {path}: " in got and message in got


def test_what_is_no_key_is_refused(made):
    path = made / "robot" / "laptop.key"
    path.write_text('curve\n    public-key = "' + "\\" * 40 + '"\n')
    assert "expected public-key to have 40 characters of Z85" in refusal(made / "robot")
    path.write_bytes(b"\x00" * 5000)
    assert "expected a text file of a few lines" in refusal(made / "robot")
    path.unlink()
    path.mkdir(mode=0o700)
    assert "expected a text file of a few lines" in refusal(made / "robot")


def test_keys_of_two_runs_do_not_mix(made, tmp_path):
    make_keys(tmp_path / "other")
    (tmp_path / "other" / "robot" / "robot.key_secret").replace(made / "robot" / "robot.key_secret")
    assert "they come from two runs of `launch.py keys`; copy the whole folder again" in refusal(made / "robot")


def test_the_command_says_what_goes_where(tmp_path):
    result = CliRunner().invoke(app, ["--out", str(tmp_path / "keys"), "--client", "laptop", "--client", "tablet"])
    assert result.exit_code == 0, result.output
    text = result.output.replace("\n", " ")
    for name in ("robot", "encoder", "laptop", "tablet"):
        assert load_keys(tmp_path / "keys" / name).name == name
        assert f"{tmp_path}/keys/{name} " in text
    assert f"scp -rp {tmp_path}/keys/encoder USER@HOST:saccade-keys" in text
    again = CliRunner().invoke(app, ["--out", str(tmp_path / "keys")])
    assert isinstance(again.exception, KeyFileError)


def test_check_says_which_keys_are_used(made, tmp_path):
    assert check_keys(BusAddress()) == []
    tcp = BusAddress("tcp://10.0.0.1:5550", keys=str(made / "robot"))
    assert check_keys(tcp) == ["keys of 'robot', which knows encoder, laptop"]
    ipc = BusAddress(keys=str(made / "robot"))
    assert check_keys(ipc)[0].endswith("; not used, since no address of this bus is tcp")
    with pytest.raises(KeyFileError, match="is no folder"):
        check_keys(BusAddress(keys=str(tmp_path / "nowhere")))
