"""The pages: their links lead somewhere, what they name is there, and the calls they show are ones that are answered."""

import json
import re
import unittest

import grpc
import yaml
from google.protobuf import json_format
from google.protobuf.message_factory import GetMessageClass

import support
import test_clients

PAGES = sorted(
    [*support.ROOT.glob("*.md"), *(support.ROOT / "docs").glob("*.md"), *support.CHART.glob("*.md")]
    + [*(support.ROOT / "examples").rglob("*.md")]
)
# Their sentences are checked below; the README has tests of its own in Rust.
OURS = [page for page in PAGES if page.parent != support.ROOT]


def prose(page):
    """The page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def blocks(page):
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page):
    """How a heading is linked to: lower case, spaces as hyphens, all else that is no letter or digit left out."""
    headings = re.findall(r"^#+ (.+)$", prose(page), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


class Pages(unittest.TestCase):
    def test_links_lead_somewhere(self):
        checked = 0
        for page in PAGES:
            for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
                if re.match(r"[a-z]+://", target):
                    continue
                with self.subTest(page=page.name, target=target):
                    path, _, anchor = target.partition("#")
                    place = (page.parent / path).resolve() if path else page
                    self.assertTrue(place.exists())
                    if anchor:
                        self.assertIn(anchor, anchors(place))
                    checked += 1
        self.assertGreater(checked, 40)

    def test_settings_that_are_named_are_ones_of_the_program(self):
        known = support.settings()
        variables = {"HOOKLANE_CONFIG"}.union(*known.values())
        # What no setting is: variables of the tests, of the compose file and of the example clients.
        others = {"HOOKLANE_POSTGRES_BIN", "HOOKLANE_DB_PASSWORD", "HOOKLANE_API_KEY", "HOOKLANE_API_KEY_FILE"}
        others |= {"HOOKLANE_PROTO", "HOOKLANE_SECTION_KEY"}
        sections = {key.split(".")[0] for key in known if "." in key}
        values = yaml.safe_load((support.CHART / "values.yaml").read_text())
        for page in OURS:
            for name in set(re.findall(r"\b(HOOKLANE_[A-Z_]+[A-Z])\b", page.read_text())) - others:
                with self.subTest(page=page.name):
                    self.assertIn(name, variables)
            for key in re.findall(r"`([a-z_]+\.[a-z_]+)(?:: [^`]*| = [^`]*)?`", prose(page)):
                section, name = key.split(".")
                if section in sections and not (isinstance(values.get(section), dict) and name in values[section]):
                    with self.subTest(page=page.name):
                        self.assertIn(key, set(known))

    def test_values_that_are_named_are_ones_of_the_chart(self):
        values = yaml.safe_load((support.CHART / "values.yaml").read_text())
        named = re.findall(r"`([a-z][A-Za-z]+)\.([a-zA-Z]+)(?:: [^`]*)?`", prose(support.CHART / "README.md"))
        checked = 0
        for section, name in named:
            if section in values and section != "settings":
                with self.subTest(value=f"{section}.{name}"):
                    self.assertIn(name, values[section])
                checked += 1
        self.assertGreater(checked, 5)

    def test_commands_that_are_shown_are_ones_of_the_program(self):
        commands = set()
        for page in OURS:
            text = page.read_text()
            commands |= set(re.findall(r"(?:`|^)hooklane ([a-z-]+)\b", text, flags=re.MULTILINE))
            commands |= set(re.findall(r"^cargo run (?:--release )?-- ([a-z]+)", text, flags=re.MULTILINE))
        self.assertGreater(len(commands), 3)
        for command in commands:
            with self.subTest(command=command):
                code, said = support.run(support.PROGRAM, command, "--help")
                self.assertEqual(code, 0, said)

    def test_the_steps_for_the_clients_are_those_that_are_tested(self):
        steps = "\n".join(text for _, text in blocks(support.ROOT / "docs" / "integrate.md"))
        scripts = json.loads((support.ROOT / "examples/clients/typescript/package.json").read_text())["scripts"]
        self.assertEqual(set(re.findall(r"^npm run (\w+)$", steps, re.MULTILINE)), set(scripts) - {"start"})
        self.assertIn("npm start -- http://localhost:50051 http://", steps)
        for name in ("requirements.txt", "generate.sh", "client.py"):
            self.assertIn(name, steps)
            self.assertTrue((support.ROOT / "examples/clients/python" / name).exists())

    def test_tables_that_queries_read_are_in_the_schema(self):
        schema = "".join(path.read_text() for path in (support.ROOT / "migrations").glob("*.sql"))
        named = set()
        for page in OURS:
            for language, text in blocks(page):
                if language == "sql":
                    named |= set(re.findall(r"\bhooklane\.([a-z_]+)", text))
        self.assertTrue(named)
        for name in named:
            self.assertRegex(schema, rf"(?i)create (?:table|view|function) (?:if not exists )?(?:hooklane\.)?{name}\b")


class Calls(unittest.TestCase):
    """Each call that a page shows for grpcurl is made."""

    def test_calls_that_are_shown_are_answered(self):
        test_clients.PLACE.mkdir(parents=True, exist_ok=True)
        service = test_clients.Service()
        self.addCleanup(service.end)
        made = 0
        with grpc.insecure_channel(service.grpc) as channel:
            for page in OURS:
                for _, text in blocks(page):
                    for body, name in re.findall(r"grpcurl [^']*'(\{.*?\})' localhost:50051 (\S+)", text, re.DOTALL):
                        with self.subTest(page=page.name, call=name):
                            call(channel, name, json.loads(body))
                            made += 1
        self.assertGreater(made, 0)


def call(channel, name, fields):
    method = test_clients.contract().FindServiceByName(name.split("/")[0]).FindMethodByName(name.split("/")[1])
    request = json_format.ParseDict(fields, GetMessageClass(method.input_type)())
    unary = channel.unary_unary(
        f"/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return unary(request, timeout=test_clients.PATIENCE_S)


if __name__ == "__main__":
    unittest.main()
