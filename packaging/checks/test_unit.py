"""The systemd unit: what systemd itself says of it."""

import configparser
import re
import shutil
import sys
import unittest

import support

UNIT = support.ROOT / "packaging" / "systemd" / "hooklane.service"
# Tenths of systemd's measure of exposure, of 100; what is left is the network, which is the unit's business.
EXPOSURE_MAX = 12


@unittest.skipIf(sys.platform == "darwin", "there is no systemd on macOS")
class Unit(unittest.TestCase):
    def test_systemd_finds_nothing_wrong(self):
        # The program it starts has to be there: any will do.
        with support.scratch() as folder:
            place = f"{folder}/{UNIT.name}"
            text = UNIT.read_text().replace("ExecStart=/usr/local/bin/hooklane ", f"ExecStart={shutil.which('true')} ")
            with open(place, "w", encoding="utf-8") as file:
                file.write(text)
            code, said = support.run("systemd-analyze", "verify", "--man=no", place)
        self.assertEqual((code, said), (0, ""))

    def test_it_is_exposed_to_no_more_than_its_network(self):
        code, said = support.run(
            "systemd-analyze", "security", "--no-pager", "--offline=true", f"--threshold={EXPOSURE_MAX}", UNIT
        )
        self.assertEqual(code, 0, said)

    def test_it_names_settings_and_exit_codes_of_the_program(self):
        known = set().union(*support.settings().values())
        named = set(re.findall(r"\b(HOOKLANE_[A-Z_]+|DATABASE_URL[A-Z_]*)=", UNIT.read_text()))
        self.assertEqual(named, {"DATABASE_URL_FILE", "HOOKLANE_ENCRYPTION_KEYS_FILE"})
        self.assertLessEqual(named, known)
        code, said = support.run(support.PROGRAM, "--help")
        self.assertEqual(code, 0)
        self.assertIn("64  bad usage, setting or input", said)

    def test_a_stop_outlasts_the_drain(self):
        unit = configparser.ConfigParser(strict=False, interpolation=None)
        unit.optionxform = str
        unit.read_string(UNIT.read_text())
        self.assertGreaterEqual(int(unit["Service"]["TimeoutStopSec"]), 30 + 15)
        self.assertEqual(unit["Service"]["KillSignal"], "SIGTERM")


if __name__ == "__main__":
    unittest.main()
