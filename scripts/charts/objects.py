"""What the chart renders, document by document."""
import yaml

RESTRICTED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
CLUSTER_WIDE = ("ClusterRole", "ClusterRoleBinding", "RuntimeClass", "PriorityClass", "CustomResourceDefinition")


class Strict(yaml.SafeLoader):
    """YAML in which a key said twice is a mistake."""

    def construct_mapping(self, node, deep=False):
        keys = [key.value for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"{node.start_mark}: said twice: {', '.join(twice)}")
        return super().construct_mapping(node, deep)


def parse(manifests):
    return [
        document
        for path, text in manifests.items()
        if path.endswith(".yaml")
        for document in yaml.load_all(text, Strict)
        if document
    ]


def name(document):
    return f"{document['kind']} {document['metadata']['name']}"


def pods(documents):
    for document in documents:
        if document["kind"] == "Pod":
            yield document, document["metadata"], document["spec"]
        elif document["kind"] in ("Deployment", "DaemonSet"):
            template = document["spec"]["template"]
            yield document, template["metadata"], template["spec"]


def check(documents, namespace):
    """What is wrong, one line each."""
    there = {(document["kind"], document["metadata"]["name"]) for document in documents}
    if len(there) != len(documents):
        yield "two objects of one kind have one name"
    for document in documents:
        wide = document["kind"] in CLUSTER_WIDE
        if ("namespace" in document["metadata"]) == wide or document["metadata"].get("namespace", namespace) != namespace:
            yield f"{name(document)} is in the wrong namespace"
        if document["metadata"]["labels"].get("app.kubernetes.io/name") != "cloister":
            yield f"{name(document)} has no labels"
        for rule in document.get("rules", []):
            if {"*", "secrets"} & {*rule["apiGroups"], *rule["resources"], *rule["verbs"]}:
                yield f"{name(document)} may do too much: {rule}"
        if document["kind"].endswith("Binding"):
            for kind, wanted in [(document["roleRef"]["kind"], document["roleRef"]["name"])] + [
                ("ServiceAccount", subject["name"]) for subject in document["subjects"]
            ]:
                if (kind, wanted) not in there:
                    yield f"{name(document)}: no {kind} {wanted}"
    for document, metadata, spec in pods(documents):
        yield from pod(document, metadata, spec, there)


def pod(document, metadata, spec, there):
    where = name(document)
    selector = document["spec"].get("selector", {}).get("matchLabels", {})
    if not selector.items() <= metadata["labels"].items():
        yield f"{where}: its selector is not in its pods' labels"
    account = spec.get("serviceAccountName")
    if account and ("ServiceAccount", account) not in there:
        yield f"{where}: no ServiceAccount {account}"
    host = {volume["hostPath"]["path"] for volume in spec.get("volumes", []) if "hostPath" in volume}
    if host & {"/", "/etc", "/var", "/run", "/proc", "/sys", "/dev"} or {"hostPID", "hostIPC"} & spec.keys():
        yield f"{where}: sees too much of its node"
    context = spec.get("securityContext", {})
    if document["kind"] == "Deployment" and (
        host or not context.get("runAsNonRoot") or context.get("seccompProfile") != {"type": "RuntimeDefault"}
    ):
        yield f"{where} is not what Pod Security calls restricted"
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    containers = spec.get("initContainers", []) + spec["containers"]
    mounts = {mount["name"] for container in containers for mount in container.get("volumeMounts", [])}
    if set(volumes) != mounts or len(volumes) != len(mounts):
        yield f"{where}: volumes and mounts differ: {sorted(set(volumes) ^ mounts)}"
    ports = [port["containerPort"] for container in containers for port in container.get("ports", [])]
    if len(ports) != len(set(ports)):
        yield f"{where}: one port twice: {ports}"
    for container in containers:
        limits = container.get("resources", {}).get("limits", {})
        if "memory" not in limits:
            yield f"{where}: container {container['name']} has no limit of memory"
        if document["kind"] == "Deployment" and container["securityContext"] != RESTRICTED:
            yield f"{where}: container {container['name']} is not restricted"
        named = {port["name"] for port in container.get("ports", [])}
        for probe in ("livenessProbe", "readinessProbe"):
            if probe in container and container[probe]["httpGet"]["port"] not in named:
                yield f"{where}: {probe} of {container['name']} asks a port that it has not"
