"""What is wrong with `[plugins.logs]` is said at the start, and nothing has been touched by then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from headrace.errors import ConfigError, PluginError
from headrace.gateway import Gateway
from headrace.settings import parse


def configured(tmp_path: Path, **options: object) -> Gateway:
    return Gateway(parse({"server": {"state_dir": str(tmp_path)}, "plugins": {"logs": options}})).assemble()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"sample": 1.5}, "sample"),
        ({"slow_seconds": 3}, "slow_seconds: has no effect without sample"),
        ({"sample": 0.1, "slow_seconds": 0}, "slow_seconds"),
        ({"fields": ["status"]}, "fields: there is no field 'status'; there are aborted, attempts"),
        ({"drop": ["user"]}, "drop: there is no field 'user'"),
        ({"drop": ["level"]}, "drop: every line has 'level'"),
        ({"fields": ["target"], "drop": ["worker"]}, "give either fields or drop"),
        ({"personal": ["phones"]}, "personal"),
        ({"redact": ["(a+)+$"]}, "redact: '(a+)+$' can take for ever"),
        ({"bodies_file": "x"}, "bodies_file: has no effect without bodies = true"),
        ({"bodies_users": []}, "bodies_users: has no effect without bodies = true"),
        ({"bodies": True, "bodies_files": 2}, "bodies_files: has no effect without bodies_file"),
        ({"bodies": True, "bodies_file": ""}, "bodies_file: is empty"),
        ({"bodies": True, "bodies_file": "x", "bodies_file_bytes": 1}, "bodies_file_bytes"),
        ({"bodies": True, "bodies_file": "x", "max_body_bytes": 10_000_000}, "bodies_file_bytes: one line may take"),
        ({"audit_reads": True}, "audit_reads: has no effect without audit_file"),
        ({"audit_file": " "}, "audit_file: is empty"),
        ({"path": "x", "audit_file": "x"}, "each needs a file of its own"),
    ],
)
def test_a_wrong_option_is_explained_at_the_start(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as raised:
        configured(tmp_path, **options)
    assert words in str(raised.value)
    assert len(raised.value.problems) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("key", ["path", "bodies_file", "audit_file"])
async def test_a_file_that_cannot_be_written_stops_the_start(tmp_path: Path, key: str) -> None:
    (tmp_path / "file").touch()
    options = {key: "file/x", "bodies": key == "bodies_file"}
    with pytest.raises(PluginError, match=rf"{key}: cannot write .*file/x: .*change it or its permissions"):
        async with configured(tmp_path, **options).running():
            pytest.fail("it started")
