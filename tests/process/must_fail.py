# SPDX-License-Identifier: Apache-2.0
"""A test that must fail: it claims that dilocox accepts a token file with a flipped bit. Meson
expects the failure, and so reports a harness or a CI that lets everything pass. It fails (exit code
1) for this reason only: any other failure exits with 0, which Meson does not expect."""
import sys
import unittest

from harness import Case


class MustFail(Case):
    def test_a_damaged_token_file_is_accepted(self):
        self.prepare_data()
        with open(self.path("data.train.tokens"), "rb") as file:
            content = bytearray(file.read())
        content[-1] ^= 1
        self.write("data.train.tokens", bytes(content))
        self.call("launch", self.config(), "--sites", 1, "--set", "wan.link=mem", code=0)


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=2).result
    reasons = [text for _, text in result.failures]
    failed_as_expected = (len(reasons) == 1 and not result.errors and "AssertionError: 1 != 0" in reasons[0] and
                          "is damaged: its tokens' checksum does not match" in reasons[0])
    sys.exit(1 if failed_as_expected else 0)
