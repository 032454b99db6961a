# SPDX-License-Identifier: Apache-2.0
"""The test that is there to fail: it claims that dilocox takes a shard with one bit turned. Meson expects it to fail, so the
day on which a broken run, a broken harness or a broken CI lets everything pass, this one is reported.
It fails (exit code 1) for its own reason only: whatever else goes wrong ends it with 0, which Meson does not expect."""
import sys
import unittest

from harness import Case


class MustFail(Case):
    def test_a_damaged_shard_is_taken(self):
        self.prepare_data()
        with open(self.path("data.train.tokens"), "rb") as shard:
            content = bytearray(shard.read())
        content[-1] ^= 1
        self.write("data.train.tokens", bytes(content))
        self.call("launch", self.config(), "--sites", 1, "--set", "wan.link=mem", code=0)


if __name__ == "__main__":
    result = unittest.main(exit=False, verbosity=2).result
    reasons = [text for _, text in result.failures]
    failed_as_it_should = (len(reasons) == 1 and not result.errors and "AssertionError: 1 != 0" in reasons[0] and
                           "is damaged: its tokens' checksum does not match" in reasons[0])
    sys.exit(1 if failed_as_it_should else 0)
