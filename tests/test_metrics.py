"""A real Prometheus reads the metrics of a gateway with two workers: what it adds up is what was asked, to the last
one, whatever becomes of workers and configurations in between."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

HELLO = [{"role": "user", "content": "hi"}]
EVERY_PLUGIN = """
[plugins.queue]
max_concurrency = 100
[plugins.cache]
[plugins.breaker]
failures = 1000
error_rate = 0
single_target = true
[plugins.health]
interval = 0.5
[plugins.prefix]
[plugins.ratelimit]
[plugins.budget]
prices.fake = {{ input = 1.0, output = 2.0 }}
prices.raw = {{ input = 1.0, output = 2.0 }}
prices.kept = {{ input = 1.0, output = 2.0 }}
[[plugins.budget.limits]]
per = ["model"]
cost_per_day = 100.0
"""
PROMETHEUS = """
global: {{ scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 1s }}
rule_files: ["{alerts}"]
scrape_configs:
  - job_name: headrace
    static_configs: [{{ targets: ["127.0.0.1:{port}"] }}]
"""


@pytest.fixture(scope="module")
def programs() -> dict[str, str]:
    found = {name: shutil.which(name) or "" for name in ("prometheus", "promtool")}
    if not all(found.values()):
        pytest.skip("Prometheus is not installed (Debian: apt install prometheus)")
    return found


class Prometheus:
    """A running Prometheus."""

    def __init__(self, port: int) -> None:
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}/api/v1", timeout=30)

    def ask(self, expression: str) -> list[Any]:
        answer = self.client.get("/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        return list(answer.json()["data"]["result"])

    def by(self, label: str, expression: str) -> dict[str, int]:
        """The values of an expression by one label, zeros left out."""
        found = {each["metric"].get(label, ""): float(each["value"][1]) for each in self.ask(expression)}
        return {name: round(value) for name, value in found.items() if value}


@contextlib.contextmanager
def prometheus(folder: Path, program: str, port: int, metrics: int, alerts: Path, kit: Any) -> Iterator[Prometheus]:
    (folder / "prometheus.yml").write_text(PROMETHEUS.format(port=metrics, alerts=alerts))
    options = {"config.file": "prometheus.yml", "storage.tsdb.path": "tsdb", "web.listen-address": f"127.0.0.1:{port}"}
    command = [program, *(f"--{name}={value}" for name, value in options.items())]
    with (folder / "prometheus.log").open("w") as log, subprocess.Popen(command, cwd=folder, stderr=log) as child:
        running = Prometheus(port)
        try:
            kit.until(lambda: is_up(running), "Prometheus's first scrape", 60)
            yield running
        finally:
            running.client.close()
            child.terminate()
            child.wait(30)


def is_up(running: Prometheus) -> bool:
    with contextlib.suppress(httpx.TransportError, json.JSONDecodeError):  # 503 while it starts
        return bool(running.client.get("/query", params={"query": "up == 1"}).json()["data"]["result"])
    return False


class Asking:
    """Asks the gateway in every way, and keeps count."""

    def __init__(self, stack: Any, kit: Any, keys: list[str], metrics: int) -> None:
        self.stack, self.kit, self.keys, self.metrics = stack, kit, keys, metrics
        self.sent: Counter[str] = Counter()
        """Requests by their status."""

    def ask(self, model: str = "fake", key: str = "", **fields: Any) -> int:
        answer = self.stack.route("nginx").post({"model": model, "messages": HELLO, **fields}, key=key)
        self.sent[str(answer.status)] += 1
        return int(answer.status)

    def a_round(self) -> None:
        """Some of everything that is answered, by every worker."""
        for key in self.keys:
            for model in ("fake", "kept"):
                self.ask(model, key)
                self.ask(model, key, stream=True)
        assert self.ask("no-such-model") == 404

    def leave(self) -> None:
        """Ask, and leave before the answer."""
        self.stack.raw.tell(b"", "hold")
        with self.stack.route("nginx").connect() as connection:
            connection.sendall(self.stack.route("nginx").request({"model": "raw", "messages": HELLO}))
            self.kit.until(lambda: self.stack.raw.requests, "the backend's being asked")
        self.stack.reset()
        self.sent["499"] += 1

    def scrape(self) -> str:
        answer = httpx.get(f"http://127.0.0.1:{self.metrics}/metrics")
        assert answer.status_code == 200, answer.text
        return answer.text


@pytest.fixture(scope="module")
def asking(own_stack: Any, kit: Any) -> Iterator[Asking]:
    metrics = kit.free_port()
    plugins = f'{EVERY_PLUGIN}[plugins.metrics]\nlisten = "127.0.0.1:{metrics}"\n'.replace("{{", "{").replace("}}", "}")
    kept = 'kept = { targets = ["fake"], delivery = "inline" }'
    with own_stack(server="workers = 2", models=kept, plugins=plugins) as stack:
        keys = [stack.key, *(stack.make_key() for _ in range(4))]
        yield Asking(stack, kit, keys, metrics)


@pytest.fixture(scope="module")
def watched(asking: Asking, programs: dict[str, str], kit: Any) -> Iterator[Prometheus]:
    """A Prometheus that has seen all of it: requests, failures, a killed worker, a reload."""
    alerts = kit.repository / "conf" / "deploy" / "prometheus" / "alerts.yml"
    folder = asking.stack.folder
    with prometheus(folder, programs["prometheus"], kit.free_port(), asking.metrics, alerts, kit) as running:
        story(asking, running, kit)
        yield running


def story(asking: Asking, running: Prometheus, kit: Any) -> None:
    stack = asking.stack
    asking.a_round()
    limited = stack.make_key("--limit", "requests_per_minute=2")
    assert [asking.ask(key=limited) for _ in range(4)] == [200, 200, 429, 429]
    asking.leave()
    settled(asking, running, kit)
    refused = "sum by (unit) (headrace_ratelimit_refused_total) == 2"
    kit.until(lambda: running.ask(refused), refused)  # workers ask their plugins once a second
    kill(stack, kit, 1)
    asking.a_round()
    settled(asking, running, kit)
    kill(stack, kit, 0)
    reload(stack)
    asking.a_round()
    stack.fake.status = 500
    assert asking.ask() == 502
    stack.fake.status = 200
    reload(stack)
    asking.a_round()
    settled(asking, running, kit)


def settled(asking: Asking, running: Prometheus, kit: Any) -> None:
    """All that was asked is over, and Prometheus has seen it."""
    total = asking.sent.total()
    kit.until(lambda: sum(running.by("", "sum(headrace_requests_total)").values()) >= total, f"{total} requests")


def kill(stack: Any, kit: Any, worker: int) -> None:
    """End a worker by force, and wait until another one stands in its place and answers."""
    told = stack.state / "run" / f"reload-{worker}.json"
    pid = json.loads(told.read_text())["pid"]
    os.kill(pid, signal.SIGKILL)

    def is_back() -> bool:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return bool(json.loads(told.read_text())["pid"] != pid)
        return False

    kit.until(is_back, f"the return of worker {worker}")


def reload(stack: Any) -> None:
    command = [sys.executable, "-m", "headrace", "--config", str(stack.folder / "headrace.toml"), "reload"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_what_is_added_up_is_what_was_asked(watched: Prometheus, asking: Asking) -> None:
    assert watched.by("status", "sum by (status) (headrace_requests_total)") == dict(asking.sent)


def test_prometheus_never_saw_a_counter_go_back(watched: Prometheus) -> None:
    names = "headrace_requests_total|headrace_request_duration_seconds_count|headrace_attempts_total"
    assert watched.ask(f'resets({{__name__=~"{names}"}}[1h]) > 0') == []


def test_both_deliveries_are_counted(watched: Prometheus) -> None:
    assert set(watched.by("delivery", "sum by (delivery) (headrace_requests_total)")) == {"inline", "offload"}


def test_a_histogram_counts_as_many_as_there_were(watched: Prometheus, asking: Asking) -> None:
    assert watched.by("", "sum(headrace_request_duration_seconds_count)") == {"": asking.sent.total()}


def test_tokens_are_added_up_over_both_deliveries(watched: Prometheus) -> None:
    """A whole answer has one token, a stream three; `fake` and `kept` were asked the same."""
    found = watched.by("model", 'sum by (model) (headrace_completion_tokens_total{model=~"fake|kept"})')
    assert found["fake"] == found["kept"] + 2  # those of the key with a limit


def test_both_workers_are_there_again(watched: Prometheus, kit: Any) -> None:
    kit.until(lambda: watched.by("", "headrace_workers") == {"": 2}, "both workers")
    assert set(watched.by("worker", "process_start_time_seconds")) == {"0", "1"}


def test_what_a_limit_refused_is_counted(watched: Prometheus) -> None:
    assert watched.by("code", "sum by (code) (headrace_limits_rejected_total)") == {"rate_limit_exceeded": 2}


def test_hooks_are_measured(watched: Prometheus, asking: Asking) -> None:
    calls = watched.by("plugin", 'sum by (plugin) (headrace_hook_calls_total{hook="on_complete"})')
    assert calls["metrics"] == asking.sent.total()
    assert watched.by("plugin", "sum by (plugin) (headrace_hook_errors_total)") == {}


@pytest.mark.parametrize(
    ("expression", "found"),
    [
        ("sum by (class) (headrace_queue_served_total) > 40", {"default"}),
        ('sum by (target) (headrace_breaker_state{state="closed"}) == 2', {"fake", "raw"}),
        ("min by (target) (headrace_health_check_seconds) > 0", {"fake", "raw"}),
        ("sum by (unit) (headrace_ratelimit_refused_total) == 2", {"requests"}),
        ('sum by (model, currency) (headrace_cost_total{model!="raw"}) > 0', {"fake", "kept"}),
        ("max by (rule, budget) (headrace_budget_used_ratio) > 0", {"model"}),
        ("min by (nothing) (headrace_certificate_expiry_timestamp_seconds - time()) > 86400", {""}),
    ],
)
def test_other_plugins_offer_their_numbers(watched: Prometheus, kit: Any, expression: str, found: set[str]) -> None:
    def seen() -> bool:
        first = re.match(r"\w+ by \((\w+)", expression)
        return first is not None and {each["metric"].get(first[1], "") for each in watched.ask(expression)} == found

    kit.until(seen, expression)


def test_the_condition_of_each_backend_is_known_to_both_workers(watched: Prometheus, kit: Any) -> None:
    expression = 'sum by (target) (headrace_target_condition{condition="up"})'
    kit.until(lambda: watched.by("target", expression) == {"fake": 2, "raw": 2}, "the backends' being up")


def test_nothing_is_left_of_processes_that_ended(watched: Prometheus, asking: Asking) -> None:
    asking.scrape()
    files = list((asking.stack.state / "run" / "metrics").glob("*.rows"))
    assert len(files) == 2
    assert sum(file.stat().st_size for file in files) < 1_000_000


def test_prometheus_finds_no_fault_with_a_scrape(asking: Asking, programs: dict[str, str]) -> None:
    asking.a_round()
    command = [programs["promtool"], "check", "metrics"]
    done = subprocess.run(command, input=asking.scrape(), capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_a_key_for_metrics_reads_them_through_nginx_and_no_other_key_does(asking: Asking) -> None:
    config = str(asking.stack.folder / "headrace.toml")
    command = [
        sys.executable,
        "-m",
        "headrace",
        "--config",
        config,
        "keys",
        "create",
        "prometheus",
        "--role",
        "metrics",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    key = next(word for word in done.stdout.split() if word.startswith("hr-"))
    with asking.stack.route("nginx").client(key) as client:
        asking.kit.until(lambda: client.get("/metrics").status_code == 200, "the key's being known")
        assert "headrace_build_info" in client.get("/metrics").text
    with asking.stack.route("nginx").client(asking.keys[1]) as client:
        assert client.get("/metrics").status_code == 403


# --- what operators load ------------------------------------------------------------------------------------------


def dashboard(kit: Any) -> list[str]:
    """Every expression of the dashboard, as Grafana would send it."""
    text = (kit.repository / "conf" / "deploy" / "grafana" / "headrace.json").read_text()
    found = [target["expr"] for panel in json.loads(text)["panels"] for target in panel.get("targets", ())]
    return [each.replace("$__rate_interval", "1m").replace("$model", ".*") for each in found]


def alerts(kit: Any) -> list[str]:
    text = (kit.repository / "conf" / "deploy" / "prometheus" / "alerts.yml").read_text()
    blocks = re.findall(r"expr: (?:\|\n((?:          .*\n)+)|(.*)\n)", text)
    return [block or line for block, line in blocks]


def named(expressions: list[str]) -> set[str]:
    """The names of metrics in expressions, those of histograms without their endings."""
    found = {
        name for each in expressions for name in re.findall(r"\b(?:headrace|gen_ai|process)_[a-z0-9_]+", _bare(each))
    }
    return {re.sub(r"_(bucket|count|sum)$", "", name) for name in found}


def _bare(expression: str) -> str:
    """Without labels: `by (…)`, `on (…)` and what stands in braces or quotes."""
    text = re.sub(r"\b(by|on|ignoring|group_left|without) ?\([^)]*\)", "", expression)
    return re.sub(r"\{[^}]*\}", "", text)


def documented(kit: Any) -> dict[str, str]:
    """Every metric of docs/metrics.md, and which plugin brings it."""
    rows = re.findall(
        r"^\| `([a-z0-9_]+)`[^|]*\|[^|]*\|[^|]*\| ([a-z]+) \|", (kit.repository / "docs/metrics.md").read_text(), re.M
    )
    return dict(rows)


def shown(scrape: str) -> set[str]:
    """Every name that a scrape describes."""
    return set(re.findall(r"^# TYPE (\S+) ", scrape, re.M))


def test_every_expression_is_one_that_prometheus_understands(watched: Prometheus, kit: Any) -> None:
    for expression in (*dashboard(kit), *alerts(kit)):
        watched.ask(expression)


def test_expressions_name_only_metrics_that_there_are(asking: Asking, kit: Any) -> None:
    later = {name for name, plugin in documented(kit).items() if plugin == "gpu"}
    assert named([*dashboard(kit), *alerts(kit)]) - shown(asking.scrape()) - later == set()


def test_every_metric_is_documented_and_every_documented_one_is_there(asking: Asking, kit: Any) -> None:
    later = {name for name, plugin in documented(kit).items() if plugin == "gpu"}
    found = {name for name in shown(asking.scrape()) if not name.startswith("process_")}
    assert found == set(documented(kit)) - later


def test_the_alerts_that_fire_are_those_of_what_happened(watched: Prometheus) -> None:
    answer = watched.client.get("/rules").json()["data"]["groups"][0]["rules"]
    assert {each["health"] for each in answer} <= {"ok", "unknown"}
    assert [each["lastError"] for each in answer if each.get("lastError")] == []


@pytest.mark.parametrize("command", ["check config prometheus.yml", "test rules alerts.test.yml"])
def test_promtool_accepts_what_operators_load(programs: dict[str, str], kit: Any, command: str) -> None:
    folder = kit.repository / "conf" / "deploy" / "prometheus"
    done = subprocess.run([programs["promtool"], *command.split()], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
