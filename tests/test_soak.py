"""A very short soak from the command line; and what it calls broken."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from control.messages import Mode
from control.reasons import ENDING
from control.soak import Life, Soak, broken, read_report

ROOT = Path(__file__).parents[1]


def test_a_soak_restarts_the_encoder_and_reports_every_process(tmp_path):
    file = tmp_path / "soak.json"
    words = ["soak", "--minutes", "0.5", "--restart-every", "14", "--settled", "6", "--episode-s", "5"]
    words += ["--set", f"bus.address=ipc://{tmp_path}/b", "--set", "encoder.max_rate_hz=10", "--report", str(file)]
    done = subprocess.run(
        [sys.executable, str(ROOT / "launch.py"), *words], capture_output=True, text=True, timeout=110, check=False
    )
    assert file.exists(), done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert set(found["processes"]) == {"supervisor", "robot", "encoder", "controller", "recorder", "page"}
    assert found["encoder_kills"] >= 1 and found["processes"]["encoder"]["starts"] == found["encoder_kills"] + 1
    assert found["cycles"] > 250 and found["run"]["encoder_restarts"] == found["encoder_kills"]
    assert not set(ENDING) & set(found["stops"]), "the last word of a run is no STOP in it"
    assert found["last_tenth"]["lateness_ms"]["p50"] > 0 and found["first_tenth"]["feature_age_ms"]["p50"] > 0
    assert done.returncode == (1 if found["broken"] else 0)


def soak_of(*lives):
    held = Soak(Path("launch.py"), [], None, settled_s=100.0, restart_every_s=1.0)
    for pid, (name, grows) in enumerate(lives):
        held.lives[pid] = Life(name, pid, 0.0, [(5.0 * k, 100.0 + grows * k, 10 + (grows > 0.4)) for k in range(100)])
    held.cycles = [(100_000_000 * k, 0.1, 50.0, 0) for k in range(1000)]
    return held.result()


def test_a_stop_is_counted_by_its_reason_and_resumed():
    held, sent = Soak(Path("launch.py"), [], None, settled_s=100.0, restart_every_s=1.0), []
    for mode, reason in [
        (Mode.STOP, "not yet a run"),
        (Mode.RUN, ""),
        (Mode.STOP, "joint elbow 0.31 rad from its command"),
        (Mode.STOP, "joint elbow 0.32 rad from its command"),
        *((Mode.STOP, reason) for reason in ENDING),
    ]:
        cycle = SimpleNamespace(
            mode=mode, reason=reason, stamp_ns=0, lateness_ms=0.1, feature_age_ms=9.0, missed_ticks=0
        )
        held._take(cycle, SimpleNamespace(send=sent.append))
    assert held.result()["stops"] == {"joint elbow #.# rad from its command": 1} and sent == ["resume"]


def test_what_grows_is_named_and_what_does_not_is_not():
    assert broken(soak_of(("robot", 0.0), ("page", 0.01)), 0.001, 0.02) == []
    [sentence] = broken(soak_of(("robot", 0.0), ("page", 0.1)), 0.001, 0.02)
    assert sentence.startswith("memory of page went from 102.") and sentence.endswith("MiB, limit 2%")


def test_who_ended_before_the_run_is_named():
    held = soak_of(("robot", 0.0))
    for samples, said in ((60, "recorder ended 200 s before the run"), (10, "recorder did not live long enough")):
        lives = [("robot", 100), ("recorder", samples)]
        soak = Soak(Path("launch.py"), [], None, settled_s=100.0, restart_every_s=1.0)
        for pid, (name, count) in enumerate(lives):
            soak.lives[pid] = Life(name, pid, 0.0, [(5.0 * k, 100.0, 10) for k in range(count)])
        found = soak.result()
        assert any(sentence.startswith(said) for sentence in broken(found, 0.001, 0.02))
        json.dumps(found, allow_nan=False)
    held["run"] = {"recording": {"is_whole": False, "ended": "was killed by SIGKILL", "said": ""}}
    assert broken(held, 0.001, 0.02) == ["the recording ended early (was killed by SIGKILL)"]


def test_a_process_that_was_started_again_is_compared_with_itself_at_the_same_age():
    found = soak_of(("encoder", 0.3), ("encoder", 0.3))
    assert found["processes"]["encoder"]["rss_growth"] == 0.0 and found["processes"]["encoder"]["starts"] == 2


def test_no_folder_of_the_machine_stands_in_a_report(tmp_path):
    file = tmp_path / "run.json"
    assert read_report(file) == {}
    file.write_text(json.dumps({"said": f"{tmp_path}/soak.mcap: 12 s"}))
    assert read_report(file) == {"said": "soak.mcap: 12 s"}


def test_missed_ticks_and_descriptors_are_counted():
    found = soak_of(("robot", 0.0))
    assert found["missed_share"] == 0.0
    found["missed_share"], found["processes"]["robot"]["descriptors"] = 0.01, [10, 12]
    assert broken(found, 0.001, 0.02) == [
        "1.00% of the ticks missed, limit 0.10%",
        "robot holds 12 descriptors, 10 before",
    ]
