"""Alerts and dashboard: each rule fires when it should and not otherwise, and both ask for metrics that there are."""

import functools
import json
import re
import unittest
import urllib.request

import grpc
import yaml

import support
import test_clients
import test_docs
from support import of_kind, render, value_sets

ALERTS = support.CHART / "files" / "alerts.yaml"
DASHBOARD = support.CHART / "files" / "dashboard.json"
TESTS = support.CHECKS / "alerts_test.yaml"
PROMTOOL = support.TOOLS / "promtool"
METRICS = yaml.safe_load((support.CHECKS / "metrics.yaml").read_text())


def alerts(text):
    return {rule["alert"]: rule for group in yaml.safe_load(text)["groups"] for rule in group["rules"]}


def rendered_alerts(values):
    [rules] = of_kind(render(values)[0], "PrometheusRule")
    return {rule["alert"]: rule for group in rules["spec"]["groups"] for rule in group["rules"]}


def check_rules(groups):
    """What promtool finds wrong with them."""
    with support.scratch() as folder:
        path = f"{folder}/rules.yaml"
        with open(path, "w", encoding="utf-8") as file:
            yaml.safe_dump({"groups": groups}, file)
        return support.run(PROMTOOL, "check", "rules", "--lint-fatal", path)


class Alerts(unittest.TestCase):
    def test_every_rule_fires_when_it_should_and_not_otherwise(self):
        code, said = support.run(PROMTOOL, "test", "rules", TESTS)
        self.assertEqual(code, 0, said)

    def test_every_rule_has_a_case_that_fires_and_one_that_does_not(self):
        cases = [case for test in yaml.safe_load(TESTS.read_text())["tests"] for case in test["alert_rule_test"]]
        for name in alerts(ALERTS.read_text()):
            fired = {bool(case["exp_alerts"]) for case in cases if case["alertname"] == name}
            self.assertEqual(fired, {True, False}, name)

    def test_rules_of_the_chart_are_valid_for_every_set_of_values(self):
        checked = 0
        for name, values in value_sets().items():
            for one in of_kind(render(values)[0], "PrometheusRule"):
                code, said = check_rules(one["spec"]["groups"])
                self.assertEqual(code, 0, f"{name}: {said}")
                checked += 1
        self.assertGreater(checked, 1)

    def test_the_chart_asks_for_its_own_release_and_changes_nothing_else(self):
        plain = alerts(ALERTS.read_text())
        ours = rendered_alerts({"prometheusRule": {"enabled": True}})
        self.assertEqual(set(ours), set(plain))
        for name, rule in ours.items():
            own = 'job="hooks-hooklane",namespace="web"'
            self.assertEqual(rule["expr"].replace(own, 'job="hooklane"'), plain[name]["expr"].strip())
            self.assertIn(own, rule["expr"])
            for key in ("for", "labels", "annotations"):
                self.assertEqual(rule[key], plain[name][key])

    def test_alerts_differ_as_the_values_say(self):
        ours = rendered_alerts(value_sets()["everything"])
        self.assertNotIn("HooklaneEndpointDisabled", ours)
        backlog = ours["HooklaneBacklogOld"]
        self.assertTrue(backlog["expr"].endswith(" > 900"), backlog["expr"])
        self.assertEqual((backlog["for"], backlog["labels"]), ("10m", {"severity": "page"}))
        self.assertEqual(backlog["annotations"]["runbook_url"], "https://example.com/runbooks/backlog")
        self.assertTrue(ours["HooklaneDeliveriesFail"]["expr"].endswith(" > 0.2"))

    def test_how_many_replicas_there_should_be_follows_from_the_values(self):
        for values, least in [
            ({}, 2),
            ({"together": {"replicas": 5}}, 5),
            ({"together": {"replicas": 5, "autoscaling": {"enabled": True, "minReplicas": 3}}}, 3),
            ({"roles": "apart", "api": {"replicas": 3}, "worker": {"replicas": 4}}, 7),
        ]:
            rule = rendered_alerts({**values, "prometheusRule": {"enabled": True}})["HooklaneReplicaDown"]
            self.assertTrue(rule["expr"].endswith(f" < {least}"), rule["expr"])

    def test_every_expression_ends_in_its_threshold(self):
        for name, rule in alerts(ALERTS.read_text()).items():
            self.assertRegex(rule["expr"].strip(), r"[<>] [0-9.]+$", name)


class Dashboard(unittest.TestCase):
    def setUp(self):
        self.board = json.loads(DASHBOARD.read_text())
        self.panels = self.board["panels"]

    def test_panels_are_whole_and_beside_each_other(self):
        ids = [panel["id"] for panel in self.panels]
        self.assertEqual(len(ids), len(set(ids)))
        taken = set()
        for panel in self.panels:
            at = panel["gridPos"]
            cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
            self.assertFalse(taken & cells, panel["title"])
            self.assertLessEqual(at["x"] + at["w"], 24)
            taken |= cells
            if panel["type"] != "row":
                self.assertTrue(panel["targets"] and panel["description"], panel["title"])
        self.assertEqual([one["name"] for one in self.board["templating"]["list"]], ["datasource", "namespace", "job"])

    def test_queries_are_ones_that_prometheus_can_read(self):
        queries = {"$__rate_interval": "5m", "$namespace": ".*", "$job": ".*"}
        rules = []
        for number, expr in enumerate(expressions(self.board)):
            for variable, value in queries.items():
                expr = expr.replace(variable, value)
            rules.append({"record": f"query:{number}", "expr": expr})
        self.assertGreater(len(rules), 15)
        code, said = check_rules([{"name": "dashboard", "rules": rules}])
        self.assertEqual(code, 0, said)

    def test_the_chart_carries_it_as_it_is(self):
        objects, _ = render({"grafanaDashboard": {"enabled": True}})
        [board] = [one for one in of_kind(objects, "ConfigMap") if "hooklane.json" in one["data"]]
        self.assertEqual(json.loads(board["data"]["hooklane.json"]), self.board)
        self.assertEqual(board["metadata"]["labels"]["grafana_dashboard"], "1")


class Metrics(unittest.TestCase):
    """Every metric that is asked for is in metrics.yaml, with its labels and their values."""

    def test_every_query_asks_for_metrics_that_there_are(self):
        board = json.loads(DASHBOARD.read_text())
        rules = [rule["expr"] for rule in alerts(ALERTS.read_text()).values()]
        used = set()
        for expr in [*expressions(board), *rules]:
            for name, matchers in re.findall(r"(webhook_[a-z_]+)(?:\{([^}]*)\})?", expr):
                base = re.sub(r"_(bucket|sum|count)$", "", name)
                metric = METRICS.get(name) or METRICS.get(base)
                self.assertIsNotNone(metric, f"{name} in {expr}")
                self.assertEqual(name != base, metric["type"] == "histogram", name)
                used.add(base)
                for label, value in re.findall(r'([a-z_]+)=~?"([^"]*)"', matchers):
                    if label in ("job", "namespace"):
                        continue
                    allowed = metric["labels"].get(label)
                    self.assertIsNotNone(allowed, f"{label} of {name}")
                    self.assertLessEqual(set(value.split("|")), set(allowed), f"{label} of {name}")
        self.assertEqual(used, set(METRICS), "each is to be seen somewhere")

    def test_the_program_serves_every_one_of_them(self):
        text = served()
        code, said = support.run(PROMTOOL, "check", "metrics", stdin=text)
        self.assertEqual((code, said), (0, ""))
        types = dict(re.findall(r"^# TYPE (\S+) (\S+)$", text, flags=re.MULTILINE))
        for name, metric in METRICS.items():
            with self.subTest(metric=name):
                self.assertEqual(types.get(name), metric["type"])
                series = re.findall(rf"^{name}(?:_count)?(?:{{(.*)}})? ", text, flags=re.MULTILINE)
                self.assertTrue(series)
                for labels in series:
                    labels = dict(re.findall(r'([a-z_]+)="([^"]*)"', labels))
                    self.assertEqual(set(labels), set(metric["labels"]))
                    for label, value in labels.items():
                        self.assertTrue(metric["labels"][label] == "any" or value in metric["labels"][label])
        for name in re.findall(r"^# TYPE (\S+) ", text, flags=re.MULTILINE):
            self.assertRegex(text, rf"(?m)^# HELP {name} \S+ \S+")

    def test_the_page_for_operators_tells_of_every_one(self):
        served_ones = set(re.findall(r"^# TYPE (webhook_\S+) ", served(), flags=re.MULTILINE))
        page = (support.ROOT / "docs" / "operate.md").read_text()
        told = set(re.findall(r"^\| `(webhook_[a-z_]+)(?:{[^`]*})?` \|", page, flags=re.MULTILINE))
        # Made by the first call or event.
        self.assertEqual(told, served_ones | {"webhook_events_total"})


@functools.cache
def served():
    """What a replica serves at /metrics once it has been called and has delivered."""
    test_clients.PLACE.mkdir(parents=True, exist_ok=True)
    service = test_clients.Service()
    try:
        with grpc.insecure_channel(service.grpc) as channel:
            test_docs.call(channel, "hooklane.v1.WebhookService/Publish", {"event_type": "order.created", "payload": "e30="})
        with urllib.request.urlopen(f"http://{service.ops}/metrics", timeout=60) as answer:
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4"), answer.headers
            return answer.read().decode()
    finally:
        service.end()


def expressions(board):
    return [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]


if __name__ == "__main__":
    unittest.main()
