"""The chart: linted strictly, rendered for every set of values, valid to Kubernetes, and consistent in itself."""

import base64
import json
import tomllib
import unittest

import helm_python as helm
import jsonschema
import kubernetes_validate
import yaml

import support
from support import name_of, of_kind, pod_specs, render, value_sets

# The oldest that Chart.yaml allows, one between, and the newest that there are schemas of.
KUBERNETES = ("1.27", "1.32", kubernetes_validate.latest_version())
# Not Kubernetes' own: what the chart uses of them is described in crds.yaml.
CRDS = yaml.safe_load((support.CHECKS / "crds.yaml").read_text())


class Rendered(unittest.TestCase):
    """One pass over all sets of values."""

    @classmethod
    def setUpClass(cls):
        cls.sets = {name: render(values) for name, values in value_sets().items()}

    def each(self):
        for name, (objects, _) in self.sets.items():
            with self.subTest(values=name):
                yield name, objects

    def test_lint_has_nothing_to_say(self):
        for name, values in value_sets().items():
            with self.subTest(values=name):
                report = helm.lint(support.CHART, values, strict=True, namespace=support.NAMESPACE)
                # An icon is all that is recommended and not there.
                words = [one for one in report["messages"] if one["severity"] > 1 or "icon" not in one["error"]]
                self.assertEqual((words, report["errors"]), ([], []))

    def test_every_object_is_valid_to_kubernetes(self):
        checked = 0
        for name, objects in self.each():
            for one in objects:
                if one["kind"] in CRDS:
                    jsonschema.validate(one, CRDS[one["kind"]])
                    continue
                for version in KUBERNETES:
                    with self.subTest(values=name, object=name_of(one), kubernetes=version):
                        kubernetes_validate.validate(one, version, strict=True)
                        checked += 1
        self.assertGreater(checked, 100)

    def test_names_are_unique_and_in_the_namespace_of_the_release(self):
        for _, objects in self.each():
            names = [name_of(one) for one in objects]
            self.assertEqual(len(names), len(set(names)), names)
            self.assertEqual({one["metadata"]["namespace"] for one in objects}, {support.NAMESPACE})

    def test_every_selector_finds_the_pods_it_is_for(self):
        for _, objects in self.each():
            deployments = {one["metadata"]["name"]: one for one in of_kind(objects, "Deployment")}
            pods = [(owner, meta["labels"]) for owner, meta, _ in pod_specs(objects)]

            def chosen(labels):
                return [name_of(owner) for owner, has in pods if labels.items() <= has.items()]

            for one in deployments.values():
                self.assertEqual(chosen(one["spec"]["selector"]["matchLabels"]), [name_of(one)])
            for one in of_kind(objects, "PodDisruptionBudget"):
                self.assertEqual(chosen(one["spec"]["selector"]["matchLabels"]), [f"Deployment/{one['metadata']['name']}"])
            for one in of_kind(objects, "HorizontalPodAutoscaler"):
                target = deployments[one["spec"]["scaleTargetRef"]["name"]]
                self.assertNotIn("replicas", target["spec"], "two would set it")
            for one in of_kind(objects, "Service"):
                found = chosen(one["spec"]["selector"])
                serving = [name_of(two) for two in deployments.values() if serves(two, one["spec"]["ports"])]
                self.assertEqual((found, bool(found)), (serving, True), name_of(one))
            for one in of_kind(objects, "NetworkPolicy"):
                self.assertEqual(len(chosen(one["spec"]["podSelector"]["matchLabels"])), 1, name_of(one))
            for one in of_kind(objects, "ServiceMonitor"):
                labels = one["spec"]["selector"]["matchLabels"]
                services = [two for two in of_kind(objects, "Service") if labels.items() <= two["metadata"]["labels"].items()]
                ports = {port["name"] for two in services for port in two["spec"]["ports"]}
                self.assertEqual((len(services), ports), (1, {"ops"}))

    def test_every_pod_is_locked_down(self):
        for _, objects in self.each():
            for owner, _, spec in pod_specs(objects):
                pod = spec["securityContext"]
                self.assertTrue(pod["runAsNonRoot"] and pod["runAsUser"] > 0, name_of(owner))
                self.assertEqual(pod["seccompProfile"], {"type": "RuntimeDefault"})
                self.assertIs(spec["automountServiceAccountToken"], False)
                self.assertIs(spec["enableServiceLinks"], False)
                for container in spec["containers"]:
                    context = container["securityContext"]
                    self.assertIs(context["readOnlyRootFilesystem"], True)
                    self.assertIs(context["allowPrivilegeEscalation"], False)
                    self.assertEqual(context["capabilities"], {"drop": ["ALL"]})
                    self.assertIn("memory", container["resources"]["limits"])
                    self.assertIn("cpu", container["resources"]["requests"])

    def test_what_a_pod_mounts_is_there_before_it(self):
        # By others' hand, as each set of values says.
        theirs = {"hooklane-database", "webhooks-db-app", "webhooks-encryption", "hooklane-encryption", "hooklane-tls"}
        for _, objects in self.each():
            for owner, _, spec in pod_specs(objects):
                is_hook = support.is_hook(owner) and owner["kind"] == "Job"
                before = [one for one in objects if support.is_hook(one) == is_hook]
                configs = {one["metadata"]["name"] for one in of_kind(before, "ConfigMap")} | {"authorities"}
                secrets = {one["metadata"]["name"] for one in of_kind(before, "Secret")} | theirs
                accounts = {one["metadata"]["name"] for one in of_kind(before, "ServiceAccount")} | {"default", "webhooks"}
                volumes = {volume["name"] for volume in spec.get("volumes", [])}
                mounted = {mount["name"] for one in spec["containers"] for mount in one.get("volumeMounts", [])}
                self.assertEqual(volumes, mounted, name_of(owner))
                for volume in spec.get("volumes", []):
                    if "configMap" in volume:
                        self.assertIn(volume["configMap"]["name"], configs, name_of(owner))
                    else:
                        self.assertIn(volume["secret"]["secretName"], secrets, name_of(owner))
                self.assertIn(spec.get("serviceAccountName", "default"), accounts, name_of(owner))

    def test_the_url_and_no_other_secret_is_in_a_secret(self):
        for name, objects in self.each():
            url = value_sets()[name].get("database", {}).get("url")
            if not url:
                self.assertEqual(of_kind(objects, "Secret"), [])
                continue
            secrets = of_kind(objects, "Secret")
            self.assertEqual({one["stringData"]["uri"] for one in secrets}, {url})
            others = [one for one in objects if one["kind"] != "Secret"]
            self.assertNotIn(url, json.dumps(others))

    def test_a_pod_outlasts_the_drain(self):
        graces = set()
        for _, objects in self.each():
            for one in of_kind(objects, "Deployment"):
                spec = one["spec"]["template"]["spec"]
                grace = variables(spec)["HOOKLANE_SHUTDOWN_GRACE"]
                # gRPC calls, results and connections have 15 s beyond the grace.
                self.assertGreaterEqual(spec["terminationGracePeriodSeconds"], int(grace.removesuffix("s")) + 15)
                graces.add(spec["terminationGracePeriodSeconds"])
        self.assertEqual(graces, {50, 120})

    def test_roles_are_together_or_apart(self):
        def roles(name):
            objects, _ = self.sets[name]
            return sorted(variables(spec)["HOOKLANE_ROLES"] for one, _, spec in pod_specs(objects) if one["kind"] == "Deployment")

        self.assertEqual(roles("defaults"), ["api,worker"])
        self.assertEqual(roles("apart"), ["api", "worker"])
        self.assertEqual(roles("everything"), ["api", "worker"])

    def test_probes_ask_what_answers(self):
        for name, objects in self.each():
            for one in of_kind(objects, "Deployment"):
                [container] = one["spec"]["template"]["spec"]["containers"]
                ports = {port["name"]: port["containerPort"] for port in container["ports"]}
                for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
                    asked = container[probe]
                    if "grpc" in asked:
                        self.assertEqual((name, asked["grpc"]["port"]), ("headless", ports["grpc"]))
                    else:
                        self.assertIn(asked["httpGet"]["path"], ("/livez", "/readyz"))
                        self.assertEqual(asked["httpGet"]["port"], "ops")
                self.assertEqual("grpc" in ports, one["metadata"]["labels"]["app.kubernetes.io/component"] != "worker")

    def test_the_network_policy_lets_through_what_is_allowed_to_be_dialled(self):
        objects, _ = self.sets["everything"]
        policies = [one for one in of_kind(objects, "NetworkPolicy") if not support.is_hook(one)]
        self.assertEqual(len(policies), 2)
        for one in policies:
            blocks = [peer["ipBlock"] for rule in one["spec"]["egress"] for peer in rule.get("to", []) if "ipBlock" in peer]
            ranges = [block["cidr"] for block in blocks]
            self.assertEqual(ranges, ["0.0.0.0/0", "2000::/3", "10.20.0.0/16", "fd00:1::/64"])
            self.assertIn("169.254.0.0/16", blocks[0]["except"])
        ports = {one["metadata"]["name"]: [port["port"] for rule in one["spec"]["ingress"] for port in rule["ports"]] for one in policies}
        self.assertEqual(ports, {"hooks-hooklane-api": ["grpc", "ops"], "hooks-hooklane-worker": ["ops"]})

    def test_notes_say_where_it_is(self):
        for name, (_, notes) in self.sets.items():
            with self.subTest(values=name):
                self.assertIn(f"helm test {support.RELEASE}", notes)
                self.assertEqual("over TLS" in notes, value_sets()[name].get("tls", {}).get("enabled", False))
        self.assertIn("There is one replica", self.sets["minimal"][1])


class Settings(unittest.TestCase):
    """What the chart sets is what the program knows."""

    def test_every_name_is_a_setting_of_the_program(self):
        known = support.settings()
        variables_known = {"HOOKLANE_CONFIG"}.union(*known.values())
        seen = set()
        for name, values in value_sets().items():
            for owner, _, spec in pod_specs(render(values)[0]):
                ours = {one for one in variables(spec) if one.startswith(("HOOKLANE_", "DATABASE_"))}
                with self.subTest(values=name, pod=name_of(owner)):
                    self.assertLessEqual(ours, variables_known)
                seen |= ours
        self.assertGreater(len(seen), 6)
        helpers = (support.CHART / "templates" / "_helpers.tpl").read_text()
        own = helpers[helpers.index('define "hooklane.ownSettings"') :]
        own = yaml.safe_load(own[own.index("\n") : own.index("{{- end")])
        self.assertLessEqual(set(own), set(known))

    def test_settings_arrive_as_they_are_given(self):
        for name, values in value_sets().items():
            objects, _ = render(values)
            given = {**yaml.safe_load((support.CHART / "values.yaml").read_text())["settings"], **values.get("settings", {})}
            files = [one["data"]["hooklane.toml"] for one in of_kind(objects, "ConfigMap") if "hooklane.toml" in one["data"]]
            self.assertGreaterEqual(len(files), 1)
            for text in files:
                with self.subTest(values=name):
                    self.assertEqual(flat(tomllib.loads(text)), given)

    def test_the_program_takes_the_settings(self):
        """Each pod's command as the chart starts it, but with nobody at the database's port: all else is in order then."""
        started = set()
        for name, values in value_sets().items():
            objects, _ = render(values)
            for owner, _, spec in pod_specs(objects):
                [container] = spec["containers"]
                command, env = container["args"][0], variables(spec)
                if command not in STARTED:
                    continue
                started.add(command)
                with self.subTest(values=name, pod=name_of(owner)), support.scratch() as folder:
                    env = mounted(objects, spec, folder)
                    code, said = support.run(support.PROGRAM, *container["args"], env=env)
                    self.assertEqual(code, 69, said)
        self.assertEqual(started, set(STARTED))


class Refused(unittest.TestCase):
    """Values that are wrong are told before anything is installed."""

    def test_bad_values_are_refused_by_name(self):
        cases = yaml.safe_load((support.CHECKS / "refused.yaml").read_text())
        for case in cases:
            with self.subTest(values=case["values"]):
                with self.assertRaises(helm.HelmError) as refusal:
                    with helm.Chart.load(support.CHART) as chart:
                        chart.validate_schema(chart.merge_values(case["values"]))
                        chart.render(case["values"], name=support.RELEASE, namespace=support.NAMESPACE)
                self.assertIn(case["says"], str(refusal.exception))

    def test_every_value_is_described_once_more_in_the_schema(self):
        values = yaml.safe_load((support.CHART / "values.yaml").read_text())
        schema = json.loads((support.CHART / "values.schema.json").read_text())
        self.assertEqual(set(schema["properties"]) - {"global"}, set(values))
        self.assertIs(schema["additionalProperties"], False)
        for key, described in schema["properties"].items():
            described = schema["definitions"][described["$ref"].split("/")[-1]] if "$ref" in described else described
            if "properties" in described:
                with self.subTest(value=key):
                    self.assertEqual(set(described["properties"]), set(values[key]))


# The commands that read the settings.
STARTED = ("migrate", "serve")


def serves(deployment, ports):
    [container] = deployment["spec"]["template"]["spec"]["containers"]
    return all(port["targetPort"] in {own["name"] for own in container["ports"]} for port in ports)


def variables(spec):
    return {one["name"]: one.get("value") for container in spec["containers"] for one in container.get("env", [])}


def flat(table, prefix=""):
    """`{"log": {"format": …}}` as `{"log.format": …}`."""
    found = {}
    for key, value in table.items():
        found.update(flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return found


def mounted(objects, spec, folder):
    """The environment of a pod, with the files it names below `folder`."""
    env = {name: value for name, value in variables(spec).items() if value is not None}
    configs = {one["metadata"]["name"]: one["data"] for one in of_kind(objects, "ConfigMap")}
    [settings] = [volume["configMap"]["name"] for volume in spec["volumes"] if volume["name"] == "settings"]
    contents = {
        "HOOKLANE_CONFIG": configs[settings]["hooklane.toml"],
        "DATABASE_URL_FILE": "postgres://u@127.0.0.1:1/x",
        "HOOKLANE_ENCRYPTION_KEYS_FILE": "k1:" + base64.b64encode(bytes(32)).decode(),
    }
    for name, content in contents.items():
        if name not in env:
            continue
        path = f"{folder}/{name}"
        with open(path, "w", encoding="utf-8") as file:
            file.write(content)
        env[name] = path
    return env


if __name__ == "__main__":
    unittest.main()
