import re
from pathlib import Path

import pytest

from control.budgets import budgets
from control.config import load_config
from control.errors import ConfigError

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = """\
version: 1
robot:
  name: tabletop
encoder:
  policy: policy
freshness: {slow_after_ms: 500, hold_after_ms: 1000, stop_after_ms: 5000}
"""


@pytest.fixture
def write(tmp_path):
    def write(text):
        path = tmp_path / "robot.yaml"
        path.write_text(text)
        return path

    return write


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "configs").glob("*.yaml")))
def test_every_shipped_config_is_valid(name):
    assert load_config(ROOT / "configs" / name).version == 1


def test_a_policy_path_is_relative_to_its_config(write):
    path = write(MINIMAL)
    assert load_config(path).encoder.policy == str(path.parent / "policy")


def test_a_key_folder_is_relative_to_its_config_and_opens_the_network(write):
    path = write(MINIMAL + "bus: {address: tcp://10.0.0.1:5550, keys: keys/robot}\n")
    bus = load_config(path).bus.build()
    assert bus.keys == str(path.parent / "keys" / "robot")
    assert bus.endpoint("robot") == "tcp://10.0.0.1:5550"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("  name: tabletop", "  nmae: tabletop"), "robot.yaml:3: unknown key 'robot.nmae'; did you mean 'name'?"),
        (("  policy: policy\n", ""), "robot.yaml"),
        (("version: 1", "version: 2"), "robot.yaml:1: version: should be 1, got 2"),
        (("  name: tabletop", "  name: 5"), "robot.yaml:3: robot.name: should be a valid string, got 5"),
        (
            ("  name: tabletop", "  name: tabletop\n  name: other"),
            "robot.yaml:4: key 'robot.name' stands twice; remove one",
        ),
        (("1000", ".nan"), "robot.yaml:6: freshness.hold_after_ms: should be a finite number, got nan"),
        (("1000", '"1000"'), "robot.yaml:6: freshness.hold_after_ms: should be a valid number, got '1000'"),
        (("1000", "400"), "robot.yaml:6: freshness: freshness: expected 0 < slow_after_ms < hold_after_ms"),
        (("version: 1", "version: [1"), "robot.yaml:2: not valid YAML"),
        (("version: 1", "control: {rate_hz: 101}\nversion: 1"), "control.rate_hz: should be less than or equal to 100"),
        (("version: 1", "bus: {address: tcp://10.0.0.1:5550}\nversion: 1"), "is open to the network"),
        (
            ("  name: tabletop", "  name: tabletop\n  state_hz: 4"),
            "control.state_max_age_ms 200 must be over the time between two states (250 ms)",
        ),
        (
            ("  name: tabletop", "  name: tabletop\n  watchdog_ms: 90"),
            "robot.watchdog_ms 90 must be over one control period (100 ms)",
        ),
        (
            ("  name: tabletop", "  name: tabletop\n  camera_hz: 1"),
            "must be over one control period (100 ms) plus the time between two views (1000 ms)",
        ),
        (
            ("  policy: policy", "  policy: policy\n  max_rate_hz: 1"),
            "must be over one control period (100 ms) plus the time between two views (1000 ms)",
        ),
        (
            ("  policy: policy", "  policy: policy\n  reuse_views: [front]\n  reuse_max_age_ms: 900"),
            "must be over one control period (100 ms) plus the time between two views (940 ms)",
        ),
        (
            ("  policy: policy", "  policy: policy\n  precision: int4"),
            "encoder.precision: should be 'fp32', 'bf16', 'int8",
        ),
        (("  policy: policy", "  policy: policy\n  cuda_graph: true"), "cuda_graph needs device cuda, got cpu"),
        (("  policy: policy", "  policy: policy\n  image_size: [224]"), "image_size is [height, width], got [224]"),
        (("  policy: policy", "  policy: policy\n  image_size: [224, 230]"), "should be a multiple of 28, got 230"),
        (
            ("  policy: policy", "  policy: policy\n  precision: bf16\n  smoothing: x.safetensors"),
            "encoder.smoothing is for precision int8 or fp8, got bf16",
        ),
    ],
)
def test_a_wrong_config_names_file_line_key_expected_and_got(write, change, message):
    assert change[0] in MINIMAL
    with pytest.raises(ConfigError) as caught:
        load_config(write(MINIMAL.replace(*change)))
    assert message in str(caught.value)


def test_a_smoothing_file_is_relative_to_its_config(write):
    path = write(MINIMAL)
    config = load_config(path, ["encoder.precision=int8", "encoder.smoothing=smooth.safetensors"])
    assert config.encoder.smoothing == str(path.parent / "smooth.safetensors")


def test_all_faults_are_told_at_once(write):
    with pytest.raises(ConfigError) as caught:
        load_config(write(MINIMAL + "contrl: {}\nbus: {adress: x}\n"))
    assert len(str(caught.value).splitlines()) == 2


def test_set_goes_the_same_strict_way(write):
    path = write(MINIMAL)
    assert load_config(path, ["control.rate_hz=20", "robot.options.seed=3"]).control.rate_hz == 20
    with pytest.raises(ConfigError, match="--set control.rate=20: unknown key 'control.rate'; did you mean 'rate_hz'"):
        load_config(path, ["control.rate=20"])
    with pytest.raises(ConfigError, match="--set control: expected KEY.KEY=VALUE"):
        load_config(path, ["control"])
    with pytest.raises(ConfigError, match="'version' is a value, not a section"):
        load_config(path, ["version.x=1"])


def test_a_missing_file_says_where_configs_are(tmp_path):
    with pytest.raises(ConfigError, match="does not exist; the shipped ones are in configs/"):
        load_config(tmp_path / "none.yaml")


def test_a_workspace_is_given_as_pairs(write):
    config = load_config(write(MINIMAL + "safety: {workspace: {waist: [-1, 1]}}\n"))
    assert config.loop_settings().workspace == {"waist": (-1, 1)}


@pytest.mark.parametrize(("key", "said"), [("state_hz", "state_hz 120 and camera_hz 25"), ("camera_hz", "120")])
def test_a_rate_that_the_robot_host_cannot_keep_is_refused(write, key, said):
    with pytest.raises(ConfigError, match=rf"robot: .*{said} .*must be at most host_hz 100: .*; raise host_hz"):
        load_config(write(MINIMAL), [f"robot.{key}=120"])
    both = ["robot.host_hz=120", f"robot.{key}=120"]
    assert getattr(load_config(write(MINIMAL), both).robot, key) == 120.0


def test_the_loop_knows_the_robot_hosts_watchdog(write):
    assert load_config(write(MINIMAL), ["robot.watchdog_ms=250"]).loop_settings().watchdog_ns == 250_000_000


def test_the_budgets_follow_from_the_config(write):
    lines = "\n".join(budgets(load_config(write(MINIMAL))))
    assert "feature age when healthy: 2 x encode + 140 ms at most" in lines
    assert "encode may take 180 ms for full speed, 430 ms to run at all" in lines


@pytest.mark.parametrize("key", ["robot.camera_hz", "encoder.max_rate_hz"])
def test_an_encoder_that_seldom_has_a_view_is_not_taken_for_hung(write, key):
    wide = ["freshness.hold_after_ms=11000", "freshness.stop_after_ms=60000"]
    assert load_config(write(MINIMAL)).encoder_hung_s == 3.0
    assert load_config(write(MINIMAL), [*wide, f"{key}=0.1"]).encoder_hung_s == 20.0


def test_the_config_that_compiles_gives_its_encoder_time_to_do_so_in_mid_run():
    config = load_config(ROOT / "configs" / "qwen2.5-vl-3b.yaml")
    assert config.encoder.compile != "eager" and config.encoder_hung_s == 60.0


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("version: 1\x00", "not valid YAML: unacceptable character"),
        ("version: 2001-99-99", "not valid YAML: month must be in 1..12"),
        ("a: &a [*a]", "nested too deep: does an alias stand for itself?"),
        ("a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n"
         "d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]", "expected at most 10,000 values"),
        ("[" * 5000, "nested too deep"),
        ("# " + "x" * 1_000_000, "expected at most 1,000,000 characters, got 1,000,002"),
    ],
)  # fmt: skip
def test_what_makes_a_yaml_parser_stumble_is_refused(tmp_path, text, said):
    file = tmp_path / "odd.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(said)):
        load_config(file)
