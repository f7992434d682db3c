"""The command line: every command, with and without --json, with and without a configuration that works."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from headrace.cli import main

COMMANDS = ["config", "explain", "hooks", "new-plugin", "plugins", "serve", "up", "version", "whoami"]
WITH_CONFIGURATION = [["serve"], ["up"], ["hooks"], ["config", "check"], ["config", "show"], ["explain", "chat"]]
WORKING = """
[server]
anonymous = true
[models.chat]
targets = ["near", "far"]
aliases = ["gpt"]
[backends.near]
provider = "openai"
base_url = "http://127.0.0.1:1"
model = "small"
api_key = "hunter2"
[backends.far]
provider = "openai"
base_url = "http://127.0.0.1:2/v1"
[plugins.openai]
"""
BROKEN = '[server]\nlistne = "x"\n[health]\ninterval = -1\n'
BROKEN_PLUGINS = "[plugins.nowhere]\n[plugins.openai]\ncolour = 1\n"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory, nothing in the environment that names a configuration, and no plugin's commands."""
    monkeypatch.setattr(main, "commands", dict(main.commands))
    for name in ("HEADRACE_CONFIG", "HEADRACE_KEY", "HEADRACE_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def headrace(*arguments: str) -> Result:
    """Run a command in this process. Anything but an orderly exit is an error."""
    result = CliRunner().invoke(main, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def answer(*arguments: str) -> Any:
    result = headrace(*arguments)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def configured(text: str, name: str = "gateway.toml") -> str:
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return name


# --- help ---


def test_help_lists_every_command() -> None:
    listed = re.findall(r"^  ([a-z-]+)  ", headrace("--help").stdout, re.M)
    assert set(COMMANDS) <= set(listed)


@pytest.mark.parametrize(
    "command", [*([each] for each in COMMANDS), *(["config", x] for x in ("check", "show", "schema"))]
)
def test_every_command_explains_itself(command: list[str]) -> None:
    result = headrace(*command, "--help")
    assert result.exit_code == 0
    assert f"Usage: main {' '.join(command)} " in result.stdout


def test_help_says_that_plugins_add_commands_when_there_is_no_configuration() -> None:
    assert "give --config to see them" in headrace("--help").stdout


KEYS = WORKING + "[plugins.keys]\n"


def test_help_lists_the_commands_of_plugins_wherever_the_configuration_is(monkeypatch: pytest.MonkeyPatch) -> None:
    name = configured(KEYS)
    for given in (["--config", name, "--help"], ["--help", "--config", name], [f"--config={name}", "--help"]):
        assert re.search("^  keys  ", headrace(*given).stdout, re.M), given
    monkeypatch.setenv("HEADRACE_CONFIG", name)
    assert re.search("^  keys  ", headrace("--help").stdout, re.M)


def test_help_tells_why_commands_of_plugins_are_missing() -> None:
    said = headrace("--config", configured(BROKEN), "--help").stdout
    assert "gateway.toml has problems: see `headrace config check`" in " ".join(said.split())


def test_a_command_of_a_plugin_that_is_not_switched_on_says_so() -> None:
    result = headrace("--config", configured(WORKING), "keys", "list")
    assert result.exit_code == 2
    assert "gateway.toml does not switch the plugin on: [plugins.keys]" in " ".join(result.stderr.split())


@pytest.mark.parametrize("text", [BROKEN, BROKEN_PLUGINS, "[", None])
def test_help_works_whatever_is_wrong_with_the_configuration(text: str | None) -> None:
    name = configured(text) if text is not None else "nowhere.toml"
    result = headrace("--config", name, "--help")
    assert result.exit_code == 0
    assert "explain" in result.stdout


def test_help_imports_nothing_heavy() -> None:
    code = """if True:
        import sys
        from headrace.cli import main
        main(["--help"], standalone_mode=False)
        print("HEAVY", sorted({"httpx", "aiohttp", "uvicorn", "starlette", "rich"} & set(sys.modules)))"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.endswith("HEAVY []\n")


@pytest.mark.parametrize("given", [[], ["--config", "gateway.toml"]])
def test_an_unknown_command_is_named(given: list[str]) -> None:
    configured(WORKING)
    result = headrace(*given, "explode")
    assert result.exit_code == 2
    assert "explode" in result.stderr


# --- where the configuration comes from ---


@pytest.mark.parametrize(
    "arguments",
    [
        ["--config", "gateway.toml", "config", "show"],
        ["config", "--config", "gateway.toml", "show"],
        ["config", "show", "--config", "gateway.toml"],
        ["config", "show", "--config=gateway.toml"],
        ["config", "show", "-c", "gateway.toml"],
    ],
)
def test_the_configuration_may_be_named_anywhere(arguments: list[str]) -> None:
    configured(WORKING)
    assert answer(*arguments)["server"]["anonymous"] is True


def test_the_configuration_named_on_the_line_wins_over_environment_and_usual_places(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def listens(*arguments: str) -> str:
        return str(answer("config", "show", *arguments)["server"]["listen"])

    configured('[server]\nlisten = "conf:1"', "conf/headrace.toml")
    assert listens() == "conf:1"
    configured('[server]\nlisten = "here:1"', "headrace.toml")
    assert listens() == "here:1"
    configured('[server]\nlisten = "environment:1"', "environment.toml")
    monkeypatch.setenv("HEADRACE_CONFIG", "environment.toml")
    assert listens() == "environment:1"
    configured('[server]\nlisten = "line:1"', "line.toml")
    assert listens("--config", "line.toml") == "line:1"


@pytest.mark.parametrize("command", WITH_CONFIGURATION, ids=" ".join)
def test_a_command_that_needs_a_configuration_says_how_to_name_one(command: list[str]) -> None:
    result = headrace(*command)
    assert result.exit_code == 1
    assert "no configuration found: name it with --config FILE or HEADRACE_CONFIG" in result.stderr


@pytest.mark.parametrize("command", [["plugins", "--json"], ["config", "schema"], ["version", "--json"]], ids=" ".join)
def test_other_commands_work_without_a_configuration(command: list[str]) -> None:
    assert answer(*command)


@pytest.mark.parametrize("command", WITH_CONFIGURATION, ids=" ".join)
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BROKEN, ["[server] listne: is not a known key; did you mean 'listen'?", "[health] interval: Expected"]),
        (BROKEN_PLUGINS, ["'nowhere': is not installed", "[plugins.openai] colour: is not a known key"]),
        ("[server", ["is not valid TOML"]),
        (None, ["cannot be read: No such file or directory"]),
    ],
    ids=["core", "plugins", "syntax", "missing"],
)
def test_a_broken_configuration_stops_every_command_with_every_problem(
    command: list[str], text: str | None, words: list[str]
) -> None:
    if text is not None:
        configured(text)
    result = headrace("--config", "gateway.toml", *command)
    assert result.exit_code == 1
    for each in words:
        assert result.stderr.count(each) == 1
        assert re.search(rf"gateway\.toml: .*{re.escape(each)}", result.stderr)


@pytest.mark.parametrize("command", [["plugins"], ["config", "schema"]], ids=" ".join)
def test_a_file_that_cannot_be_read_stops_the_commands_that_could_do_without(command: list[str]) -> None:
    result = headrace("--config", configured(BROKEN), *command)
    assert result.exit_code == 1
    assert "listne" in result.stderr


# --- commands that look ---


def test_the_version_is_that_of_the_distribution() -> None:
    assert answer("version", "--json")["headrace"] == metadata.version("headrace")
    assert f"headrace {metadata.version('headrace')}\n" in headrace("version").stdout


def test_plugins_are_listed_with_their_states() -> None:
    name = configured("[plugins.nowhere]\n[plugins.openai]\n[plugins.keys]\nenabled = false")
    rows = {row["plugin"]: row for row in answer("plugins", "--json", "--config", name)}
    assert [rows[each]["state"] for each in ("nowhere", "openai", "keys")] == ["broken", "enabled", "parked"]
    assert "is not installed" in rows["nowhere"]["reason"]
    assert rows["openai"]["distribution"] == "headrace-openai"
    text = headrace("plugins", "--config", name).stdout
    assert re.search(r"openai +enabled +headrace-openai", text)


def test_hooks_are_listed_with_who_implements_them() -> None:
    rows = {row["hook"]: row for row in answer("hooks", "--json", "--config", configured(WORKING))}
    assert rows["register_providers"]["plugins"] == ["openai"]
    assert (rows["authenticate"]["kind"], rows["authenticate"]["async"], rows["admit"]["async"]) == (
        "first",
        True,
        False,
    )
    assert re.search(r"register_providers +each +openai", headrace("hooks", "--config", "gateway.toml").stdout)


def test_a_configuration_that_works_is_checked_without_a_word_too_many() -> None:
    configured(WORKING)
    assert answer("config", "check", "gateway.toml", "--json") == {
        "file": "gateway.toml",
        "ok": True,
        "problems": [],
        "warnings": [],
    }
    result = headrace("config", "check", "gateway.toml")
    assert (result.exit_code, result.output) == (0, "gateway.toml: ok\n")


def test_problems_are_told_to_scripts_one_by_one() -> None:
    result = headrace("config", "check", "--json", configured(BROKEN))
    report = json.loads(result.stdout)
    assert (result.exit_code, report["ok"]) == (1, False)
    assert [each["where"] for each in report["problems"]] == [
        "gateway.toml: [server] listne",
        "gateway.toml: [health] interval",
    ]


@pytest.mark.parametrize("listen", ["8080", "nowhere", "127.0.0.1:99999", "127.0.0.1:http"])
def test_an_address_that_cannot_be_one_is_a_problem_of_the_configuration(listen: str) -> None:
    result = headrace("config", "check", configured(f'[server]\nlisten = "{listen}"'))
    assert result.exit_code == 1
    where = r"gateway\.toml: \[server\]:? listen: "
    assert re.search(where + re.escape(f"'{listen}' is neither HOST:PORT nor unix:PATH"), result.stderr)


def test_the_configuration_is_shown_with_defaults_and_without_secrets() -> None:
    result = headrace("config", "show", "--config", configured(WORKING))
    assert "hunter2" not in result.output
    shown = json.loads(result.stdout)
    assert shown["backends"]["near"]["api_key"] == "***"
    assert shown["health"] == {"interval": 10.0, "timeout": 5.0}


def test_the_schema_describes_core_and_the_enabled_plugins() -> None:
    schema = answer("config", "schema", "--config", configured("[plugins.keys]\n[plugins.openai]"))
    root = schema["$defs"]["Config"]
    assert {"server", "models", "plugins"} <= set(root["properties"])
    assert "development_key" in json.dumps(schema)
    assert schema["$defs"]["BackendConfig"]["required"] == ["provider"]


# --- explain ---


def test_a_request_is_explained_with_targets_in_order_delivery_and_reason() -> None:
    report = answer("explain", "gpt", "--json", "--stream", "--config", configured(WORKING))
    assert [(each["name"], each["url"], each["model"]) for each in report["targets"]] == [
        ("near", "http://127.0.0.1:1/v1/chat/completions", "small"),
        ("far", "http://127.0.0.1:2/v1/chat/completions", "gpt"),
    ]
    assert (report["endpoint"], report["stream"], report["policy"]) == ("/v1/chat/completions", True, "in_order")
    assert report["delivery"]["name"] == "inline"
    assert report["delivery"]["reason"]
    assert "error" not in report


def test_the_explanation_says_the_same_in_words() -> None:
    lines = headrace("explain", "chat", "--config", configured(WORKING)).stdout.splitlines()
    told = {line.partition("  ")[0]: line.partition("  ")[2].strip() for line in lines}
    assert told["target 1"] == "near (openai): http://127.0.0.1:1/v1/chat/completions as 'small'"
    assert told["target 2"].startswith("far (openai): ")
    assert told["delivery"].startswith("inline: ")


@pytest.mark.parametrize(
    ("arguments", "anonymous", "status"),
    [(["nowhere"], "true", 404), (["chat", "--key", "sk-wrong"], "false", 401), (["chat"], "false", 401)],
    ids=["unknown model", "wrong key", "no key"],
)
def test_what_the_caller_would_be_refused_with_is_part_of_the_report(
    arguments: list[str], anonymous: str, status: int
) -> None:
    name = configured(WORKING.replace("= true", f"= {anonymous}") + "[plugins.keys]\n")
    result = headrace("explain", "--json", *arguments, "--config", name)
    assert (result.exit_code, json.loads(result.stdout)["error"]["status"]) == (1, status)
    assert f"answer      {status} " in headrace("explain", *arguments, "--config", name).stdout


def test_the_key_to_explain_with_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    name = configured(WORKING.replace("= true", "= false") + "[plugins.keys]\ndevelopment_key = true\n")
    assert headrace("explain", "chat", "--config", name).exit_code == 1
    monkeypatch.setenv("HEADRACE_KEY", Path(".headrace/development.key").read_text("utf-8").strip())
    assert answer("explain", "chat", "--json", "--config", name)["principal"]["id"]


def test_an_unknown_endpoint_is_answered_with_those_there_are() -> None:
    result = headrace("explain", "chat", "--endpoint", "telepathy", "--config", configured(WORKING))
    assert result.exit_code == 1
    assert "There is no endpoint 'telepathy'; there are chat, " in result.stderr
