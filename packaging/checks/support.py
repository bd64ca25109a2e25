"""What the checks share: where things are, the chart rendered for a set of values, programs run."""

import functools
import json
import pathlib
import subprocess
import tempfile

import helm_python as helm
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
CHART = ROOT / "helm" / "hooklane"
CHECKS = ROOT / "packaging" / "checks"
TOOLS = ROOT / "target" / "tools"
PROGRAM = ROOT / "target" / "debug" / "hooklane"

RELEASE, NAMESPACE = "hooks", "web"


class UniqueKeys(yaml.SafeLoader):
    """Refuses what YAML allows and Kubernetes does not: a key twice."""

    def construct_mapping(self, node, deep=False):
        keys = [self.construct_object(key) for key, _ in node.value]
        twice = {key for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"{twice} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


def value_sets():
    """Every set of values in values/, by name."""
    return {path.stem: yaml.safe_load(path.read_text()) for path in sorted((CHECKS / "values").glob("*.yaml"))}


def render(values, **options):
    """The objects that Helm makes of the chart, hooks included, and the notes."""
    with helm.Chart.load(CHART) as chart:
        files = chart.render(values, name=RELEASE, namespace=NAMESPACE, **options)
    notes = "".join(text for name, text in files.items() if name.endswith("NOTES.txt"))
    texts = [text for name, text in files.items() if not name.endswith("NOTES.txt")]
    objects = [one for text in texts for one in yaml.load_all(text, UniqueKeys) if one]
    return objects, notes


def of_kind(objects, *kinds):
    return [one for one in objects if one["kind"] in kinds]


def name_of(one):
    return f"{one['kind']}/{one['metadata']['name']}"


def is_hook(one):
    return "helm.sh/hook" in one["metadata"].get("annotations", {})


def pod_specs(objects):
    """Every pod that the objects start: its owner, its metadata, its spec."""
    for one in objects:
        if one["kind"] == "Pod":
            yield one, one["metadata"], one["spec"]
        elif one["kind"] in ("Deployment", "Job"):
            template = one["spec"]["template"]
            yield one, template["metadata"], template["spec"]


def settings():
    """Every setting, as the program tells: its key in the file, and its names in the environment."""
    return {one["key"]: names(one) for one in read_settings()}


def names(setting):
    return {setting["variable"], setting["file_variable"]} - {None}


@functools.cache
def read_settings():
    code, said = run(PROGRAM, "settings", "--json")
    assert code == 0, said
    found = [json.loads(line) for line in said.splitlines()]
    assert len(found) > 20, "the settings were found"
    return found


def run(*command, stdin=None, env=None):
    """Runs a program to its end: its exit code and everything it said."""
    done = subprocess.run(
        [str(part) for part in command],
        input=stdin,
        env=env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout


def scratch():
    """A folder that is gone with the context it is used in."""
    return tempfile.TemporaryDirectory(prefix="hooklane-checks-")
