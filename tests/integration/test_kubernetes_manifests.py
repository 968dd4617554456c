"""The manifests in deploy/kubernetes: of known kinds, and true to the files that they repeat."""

import re
import shutil
import subprocess

import kubernetes_validate
import pytest
import yaml

from authsidecar.decision.proxies.headers import IDENTITY, TOKEN_EXPIRES
from authsidecar.demo.proxies import BODIES_MARK, deploy_dir
from tests.support.custom_resources import KEPT, objections
from tests.support.kustomize import Document, render

pytestmark = pytest.mark.any_python

ROOT = deploy_dir() / "kubernetes"
OVERLAYS = sorted(path.parent for path in ROOT.glob("overlays/*/kustomization.yaml"))
ALL = [ROOT / "base", ROOT / "podmonitor", *OVERLAYS]
NEWEST = ("1.35", "1.36", "1.37")
CUSTOM = {path.stem for path in KEPT.glob("*.json")}
each = pytest.mark.parametrize("directory", ALL, ids=lambda path: path.name)


def of_kind(documents: list[Document], kind: str) -> list[Document]:
    return [one for one in documents if one["kind"] == kind]


@each
@pytest.mark.parametrize("version", NEWEST)
def test_every_document_is_valid(directory, version):
    """For Kubernetes itself, strictly: a field that it does not know is a mistake."""
    for one in render(directory):
        if one["kind"] not in CUSTOM:
            assert kubernetes_validate.validate(one, version, strict=True) == version


@each
def test_every_custom_resource_is_valid(directory):
    """For the proxy's or the operator's own definition of it, as strictly."""
    for one in render(directory):
        if one["kind"] in CUSTOM:
            assert objections(one) == []


def test_every_kept_schema_is_used_and_notices_a_misspelled_field():
    """Else the test above would prove nothing."""
    documents = {one["kind"]: one for directory in ALL for one in render(directory)}
    for kind in CUSTOM:
        documents[kind]["spec"]["tagetRefs"] = []
        assert any("'tagetRefs' was unexpected" in said for said in objections(documents[kind]))
    policy = documents["SecurityPolicy"]
    policy["spec"]["extAuth"]["failOpen"] = "no"
    assert "$.spec.extAuth.failOpen: 'no' is not of type 'boolean'" in objections(policy)


def test_a_misspelled_field_is_noticed():
    """Of Kubernetes' own kinds."""
    (deployment,) = of_kind(render(ROOT / "base"), "Deployment")
    deployment["spec"]["template"]["spec"]["securityContex"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, NEWEST[-1], strict=True)


@each
@pytest.mark.skipif(shutil.which("kustomize") is None, reason="kustomize is not installed")
def test_kustomize_renders_the_same(directory):
    """The stand-in is one only as long as it agrees with the real one."""
    done = subprocess.run(
        ["kustomize", "build", str(directory)], capture_output=True, text=True, check=True
    )
    theirs = {name(one): sorted_lists(one) for one in yaml.safe_load_all(done.stdout)}
    assert {name(one): sorted_lists(one) for one in render(directory)} == theirs


def name(document: Document) -> tuple[str, str]:
    return document["kind"], document["metadata"]["name"]


def sorted_lists(value):
    """The same, where the order of what merges by a key does not count."""
    match value:
        case dict():
            return {key: sorted_lists(value[key]) for key in sorted(value)}
        case list():
            return sorted((sorted_lists(one) for one in value), key=repr)
        case _:
            return value


@pytest.mark.parametrize("directory", [ROOT / "base", *OVERLAYS], ids=lambda path: path.name)
def test_pods_hold_nothing_that_they_do_not_need(directory):
    """No token, no root, no capability, no file system to write."""
    for one in of_kind(render(directory), "Deployment"):
        pod = one["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["containers"]:
            assert container["resources"]["requests"]
            assert container["resources"]["limits"]
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }


@pytest.mark.parametrize(
    ("overlay", "namespace"),
    [
        ("traefik", "traefik"),
        ("ingress-nginx", "ingress-nginx"),
        ("ingress-nginx-snippets", "ingress-nginx"),
        ("envoy-gateway", "envoy-gateway-system"),
    ],
)
def test_only_the_proxys_namespace_may_ask(overlay, namespace):
    """And only Prometheus's reaches the management listener."""
    (policy,) = of_kind(render(ROOT / "overlays" / overlay), "NetworkPolicy")
    allowed = {
        rule["ports"][0]["port"]: rule["from"][0]["namespaceSelector"]["matchLabels"]
        for rule in policy["spec"]["ingress"]
    }
    assert allowed == {
        "authz": {"kubernetes.io/metadata.name": namespace},
        "management": {"kubernetes.io/metadata.name": "monitoring"},
    }


@pytest.mark.parametrize("bodies", [False, True])
def test_traefiks_resources_say_what_its_file_says(bodies, tmp_path):
    """One source of truth: deploy/traefik/dynamic.yml, which the end-to-end tests boot."""
    text = (deploy_dir() / "traefik/dynamic.yml").read_text()
    shutil.copytree(ROOT, tmp_path / "kubernetes")
    overlay = tmp_path / "kubernetes/overlays/traefik"
    if bodies:
        text = text.replace(BODIES_MARK, "")
        for file in overlay.glob("*.yaml"):
            file.write_text(file.read_text().replace(BODIES_MARK, ""))
    source = yaml.safe_load(text)["http"]
    for name in ("authsidecar", *(["authsidecar-bodies"] if bodies else [])):
        ask = source["middlewares"][name]["forwardAuth"]
        ask["address"] = "http://authsidecar.authsidecar.svc:4190/authz/traefik"
    rendered = render(overlay)
    assert ("coolify-bodies" in source["routers"]) is bodies
    middlewares = {one["metadata"]["name"]: one["spec"] for one in of_kind(rendered, "Middleware")}
    assert middlewares == source["middlewares"]
    for one in of_kind(rendered, "IngressRoute"):
        router = source["routers"].pop(one["metadata"]["name"])
        (route,) = one["spec"]["routes"]
        assert route["match"] == router["rule"]
        assert route.get("priority") == router.get("priority")
        assert [middleware["name"] for middleware in route["middlewares"]] == router["middlewares"]
    assert source["routers"] == {}


def test_nginxs_snippets_are_lines_of_its_file():
    """But for what the controller's own http block has no place for."""
    (ingress,) = of_kind(render(ROOT / "overlays/ingress-nginx-snippets"), "Ingress")
    snippets = {
        key: value
        for key, value in ingress["metadata"]["annotations"].items()
        if key.endswith("-snippet")
    }
    assert len(snippets) == 2
    source = {
        line.strip()
        for path in (deploy_dir() / "nginx").iterdir()
        for line in path.read_text().splitlines()
    }
    lines = {line.strip() for text in snippets.values() for line in text.splitlines()}
    odd = lines - source - {"default_type application/json;"}
    (exposed,) = odd
    quoted = re.search(r'"(.*)"', exposed)
    assert quoted
    assert f'default "{quoted[1]}";' in source


@pytest.mark.parametrize("overlay", ["ingress-nginx", "envoy-gateway"])
def test_every_identity_header_is_the_sidecars(overlay):
    """A name that is left out would be the client's to set."""
    rendered = render(ROOT / "overlays" / overlay)
    if overlay == "ingress-nginx":
        (ingress,) = of_kind(rendered, "Ingress")
        key = "nginx.ingress.kubernetes.io/auth-response-headers"
        names = ingress["metadata"]["annotations"][key].split(",")
    else:
        (policy,) = of_kind(rendered, "SecurityPolicy")
        names = policy["spec"]["extAuth"]["http"]["headersToBackend"]
    assert set(names) == {*IDENTITY, TOKEN_EXPIRES}
