"""deploy/: each file says what the server does, as far as a machine without a cluster can tell."""

import http.server
import json
import re
import runpy
import shlex
import subprocess
import sys
import threading
import tomllib
import types

import pytest
from helpers import ROOT
from starlette.testclient import TestClient

from llama_jax.serve import keys, limits
from llama_jax.serve.http import App
from llama_jax.serve.metrics import Metrics

yaml = pytest.importorskip("yaml", reason="PyYAML is absent, which reads the manifests")
DEPLOY = ROOT / "deploy"
DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
STEPS = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()
DEPLOYMENT = yaml.safe_load((DEPLOY / "kubernetes/deployment.yaml").read_text())
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())


def steps(word):
    return [line.removeprefix(word).strip() for line in STEPS if line.startswith(word + " ")]


def pod():
    return DEPLOYMENT["spec"]["template"]["spec"]


def served(path):
    """Whether the server answers GET at this path, without a key."""
    server = App(None)
    return server.routes[path][0] == "GET"


def test_the_image_has_all_that_the_package_is_built_of_and_no_more_of_the_clone():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    needed = {"pyproject.toml", project["project"]["readme"], *project["project"]["license-files"]}
    needed |= {*wheel["packages"], *(path.split("/")[0] for path in wheel["force-include"])}
    copied = {word for line in steps("COPY") if "--from" not in line for word in line.split()[:-1]}
    assert copied == needed
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    assert ignored[1] == "*"
    assert {line[1:] for line in ignored if line.startswith("!")} == needed
    extras = next(line for line in steps("ARG") if line.startswith("EXTRAS="))
    named = set(re.findall(r"EXTRAS=([\w,]+)", DOCKERFILE)) | {extras.removeprefix("EXTRAS=")}
    for some in named:
        assert set(some.split(",")) <= set(project["project"]["optional-dependencies"])
    python = next(line for line in steps("ARG") if line.startswith("PYTHON="))
    assert f"Programming Language :: Python :: {python[7:]}" in project["project"]["classifiers"]


def test_the_image_runs_as_nobody_in_particular_and_stops_as_the_server_does():
    (user,) = steps("USER")
    assert user == "10001:10001"
    assert steps("STOPSIGNAL") == ["SIGTERM"]
    assert pod()["securityContext"]["runAsUser"] == int(user.split(":")[0])


def test_the_images_command_is_one_that_llama_jax_knows():
    """A model that is not there is all that is wrong with it."""
    (entry,) = (json.loads(line) for line in steps("ENTRYPOINT"))
    assert entry[0] == "llama-jax"
    command = [word.replace("8000", "0") for word in entry[1:]]  # which may be taken here
    done = subprocess.run(
        [sys.executable, "-m", "llama_jax", *command, "/no/such/model"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1  # and 2 where an option is unknown
    assert "/no/such/model" in done.stderr
    (port,) = steps("EXPOSE")
    assert entry[entry.index("--port") + 1] == port
    assert pod()["containers"][0]["ports"] == [{"name": "http", "containerPort": int(port)}]


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_health_checks_say_what_the_server_says(status, code):
    asked = []

    class Answers(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    (image,) = (line[line.index("[") :] for line in STEPS if "CMD [" in line and "urllib" in line)
    commands = json.loads(image), COMPOSE["services"]["serve"]["healthcheck"]["test"][1:]
    with http.server.HTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for program, *arguments in commands:
            assert program == "python"
            here = [one.replace(":8000/", f":{server.server_port}/") for one in arguments]
            assert here != arguments
            done = subprocess.run([sys.executable, *here], capture_output=True, check=False)
            assert done.returncode == code, done.stderr
        server.shutdown()
    assert asked == ["/health", "/ready"]
    assert all(map(served, asked))


def test_compose_starts_the_image_for_this_machine_and_lets_it_end():
    serve = COMPOSE["services"]["serve"]
    assert (DEPLOY / serve["build"]["context"] / serve["build"]["dockerfile"]).is_file()
    assert all(port.startswith("127.0.0.1:") for port in serve["ports"])
    assert int(serve["stop_grace_period"].removesuffix("s")) > limits.DRAIN_SECONDS
    assert keys.VARIABLE in serve["environment"]
    mounted = {volume.split(":")[0] for volume in serve["volumes"]}
    assert "programs:/cache" in serve["volumes"]
    assert mounted - {"../checkpoints"} == set(COMPOSE["volumes"])
    scraped = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"][0]
    assert scraped["static_configs"] == [{"targets": ["serve:8000"]}]
    assert scraped["metrics_path"] in App(None).routes


def test_names_of_the_manifests_agree():
    service = yaml.safe_load((DEPLOY / "kubernetes/service.yaml").read_text())
    monitor = yaml.safe_load((DEPLOY / "kubernetes/pod_monitor.yaml").read_text())
    labels = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]
    assert DEPLOYMENT["spec"]["selector"]["matchLabels"] == labels
    assert service["spec"]["selector"] == labels
    assert monitor["spec"]["selector"]["matchLabels"] == labels
    (port,) = pod()["containers"][0]["ports"]
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert service["spec"]["ports"][0]["targetPort"] == endpoint["port"] == port["name"]
    assert endpoint["path"] in App(None).routes
    listed = yaml.safe_load((DEPLOY / "kubernetes/kustomization.yaml").read_text())["resources"]
    assert sorted([*listed, "kustomization.yaml", "pod_monitor.yaml"]) == sorted(
        path.name for path in (DEPLOY / "kubernetes").iterdir()
    )
    mounted = {mount["name"] for mount in pod()["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod()["volumes"]}


def test_keys_of_the_manifests_are_where_the_server_reads_them(monkeypatch):
    """Kubernetes puts earlier variables into later ones; the secret's comment makes both keys."""
    written = {}
    for one in pod()["containers"][0]["env"]:
        secret = one.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
        found = f"the-{secret}" if secret else one["value"]
        for name, value in written.items():
            found = found.replace(f"$({name})", value)
        written[one["name"]] = found
    monkeypatch.setenv(keys.VARIABLE, written[keys.VARIABLE])
    assert keys.read_keys(None) == (b"the-clients", b"the-scrape")
    comment = (DEPLOY / "kubernetes/kustomization.yaml").read_text()
    assert "llama-jax-keys --from-literal=clients=KEY --from-literal=scrape=KEY" in comment
    monitor = yaml.safe_load((DEPLOY / "kubernetes/pod_monitor.yaml").read_text())
    authorization = monitor["spec"]["podMetricsEndpoints"][0]["authorization"]
    assert authorization["credentials"] == {"name": "llama-jax-keys", "key": "scrape"}


@pytest.mark.parametrize("file", ["kubernetes/deployment.yaml", "kserve.yaml"])
def test_pods_are_asked_what_they_answer_and_have_time_to_start_and_to_end(file):
    manifest = yaml.safe_load((DEPLOY / file).read_text())["spec"]
    spec = manifest["predictor"] if "predictor" in manifest else manifest["template"]["spec"]
    (container,) = spec["containers"]
    probe = {name: container[f"{name}Probe"] for name in ("startup", "readiness", "liveness")}
    assert {name: one["httpGet"]["path"] for name, one in probe.items()} == {
        "startup": "/ready",
        "readiness": "/ready",
        "liveness": "/health",
    }
    assert all(served(one["httpGet"]["path"]) for one in probe.values())
    assert probe["startup"]["periodSeconds"] * probe["startup"]["failureThreshold"] == 600
    before = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
    assert spec["terminationGracePeriodSeconds"] >= before + limits.DRAIN_SECONDS + 10
    assert keys.VARIABLE in [one["name"] for one in container["env"]]


def test_nginx_lets_tokens_through_as_they_come_and_calls_the_server_by_a_name_it_answers_to():
    text = (DEPLOY / "nginx.conf").read_text()
    said = dict(re.findall(r"^\s*(\w+) (.+);", text, flags=re.MULTILINE))
    assert said["proxy_buffering"] == said["proxy_ignore_client_abort"] == "off"
    assert int(said["client_max_body_size"].removesuffix("m")) << 20 == limits.MAX_BODY_BYTES
    assert int(said["keepalive_timeout"].split("s")[0]) < limits.KEEP_ALIVE_SECONDS
    assert int(said["proxy_read_timeout"].removesuffix("s")) > limits.PING_SECONDS
    (host,) = re.findall(r"proxy_set_header Host (\S+);", text)
    keys.check_host(host)
    assert f"server {re.search(r'127[.0-9]+:8000', text)[0]};" in text


def test_litellm_calls_the_protocol_at_its_path():
    routed = yaml.safe_load((DEPLOY / "litellm.yaml").read_text())["model_list"]
    assert len({one["model_name"] for one in routed}) == 1
    for one in routed:
        assert one["litellm_params"]["model"].startswith("openai/")
        assert one["litellm_params"]["api_base"].endswith("/v1")


def metrics_text():
    """What Prometheus finds at /metrics, a sample at least of each kind."""
    stats = types.SimpleNamespace(
        running=1,
        waiting=0,
        pages=8,
        used_pages=2,
        prompt_tokens=3,
        cached_tokens=1,
        new_tokens=4,
        preemptions=0,
        nan_rows=0,
    )
    engine = types.SimpleNamespace(stats=lambda: stats, heartbeat=0.1, ready=True)
    metrics = Metrics()
    labelled = metrics.answers, metrics.refused, metrics.gone, metrics.cut, metrics.finished
    for counter in labelled:
        counter.add(*counter.labels)
    return metrics.text(engine)


def sample_names():
    """Each name there, and its labels."""
    lines = [line for line in metrics_text().splitlines() if not line.startswith("#")]
    return {line.split("{")[0].split(" ")[0]: set(re.findall(r"(\w+)=", line)) for line in lines}


def test_the_dashboard_asks_for_what_is_measured_and_leaves_nothing_out():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    samples, asked = sample_names(), set()
    shown = [panel for panel in board["panels"] if panel["type"] != "row"]
    for target in (target for panel in shown for target in panel["targets"]):
        names = set(re.findall(r"\bllama_jax_\w+", target["expr"]))
        assert names <= set(samples), target["expr"]
        asked |= names
        (labels,) = {frozenset(samples[name]) for name in names}
        by = set(re.findall(r"by \((\w+)\)", target["expr"]))
        named = set(re.findall(r"{{(\w+)}}", target["legendFormat"]))
        assert by <= labels
        assert named <= by | {"instance"}
    of_histograms = {name for name in samples if name.endswith(("_sum", "_count"))}
    assert asked == set(samples) - of_histograms


def test_the_guide_maps_our_names_to_vllms():
    """A line for each metric; what its help names is in its line."""
    guide = (ROOT / "docs/guides/serving.md").read_text()
    rows = dict(re.findall(r"^\| `(llama_jax_\w+)[{`].*?\| \w+ \|(.*)\|$", guide, re.MULTILINE))
    helped = re.findall(r"# HELP (\S+) (.*)", metrics_text())
    assert set(rows) == {name for name, _ in helped}
    for name, text in helped:
        named = re.search(r"vllm:\w+", text)
        assert (named[0] in rows[name]) if named else not rows[name].strip()


def test_the_dashboards_panels_stand_beside_one_another():
    board = json.loads((DEPLOY / "grafana.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = set()
    for panel in board["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert at["x"] + at["w"] <= 24
        assert not cells & taken
        taken |= cells


def test_ray_serve_is_given_the_servers_application(monkeypatch):
    """Ray is stood in for by what hands back what it is given."""
    given = {}
    ray = types.ModuleType("ray")
    ray.serve = types.SimpleNamespace(
        ingress=lambda build: lambda: build,
        deployment=lambda build, **settings: types.SimpleNamespace(
            bind=lambda: given.update(settings, build=build) or "bound"
        ),
    )
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setenv(keys.VARIABLE, "mine")
    module = runpy.run_path(str(DEPLOY / "ray_serve.py"))
    assert module["app"] == "bound"
    engine = types.SimpleNamespace(ready=True, failure=None, heartbeat=0.0, tokenizer=None)
    build = given["build"]
    monkeypatch.setitem(build.__globals__, "llama_jax", types.SimpleNamespace(load=lambda _: 1))
    monkeypatch.setitem(build.__globals__, "for_few_rows", lambda params: params + 1)
    monkeypatch.setitem(build.__globals__, "Engine", {2: engine}.__getitem__)
    client = TestClient(build(), base_url="http://any.host")
    assert client.get("/ready").json() == {"status": "ready"}
    assert client.get("/v1/models").status_code == 401
    own = {"authorization": "Bearer mine"}
    engine.config = types.SimpleNamespace(max_seq_len=9, vocab_size=3)
    assert client.get("/v1/models", headers=own).json()["data"][0]["id"] == "stories"
    assert client.get("/v1/models", headers=own).json()["data"][0]["chat"] is False
    assert given["graceful_shutdown_timeout_s"] == limits.DRAIN_SECONDS


def test_shell_lines_of_comments_name_files_that_are_there():
    for file in DEPLOY.rglob("*"):
        if file.is_file() and file.suffix != ".json":
            for line in file.read_text().splitlines():
                for word in (
                    shlex.split(line.lstrip("# ").replace("'", "")) if "deploy/" in line else []
                ):
                    if word.startswith("deploy/"):
                        assert (ROOT / word).exists(), f"{file}: {word}"
