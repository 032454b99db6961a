# SPDX-License-Identifier: Apache-2.0
"""A run in one process for ThreadSanitizer: the mem link, and the ref kernels."""
from harness import Case, main, summary


class Threads(Case):
    def test_a_run_of_threads(self):
        self.prepare_data()
        config = self.config(train={"tokens": 4096, "backend": "ref"}, wan={"link": "mem"})
        self.call("launch", config, "--sites", 2, "--run-dir", self.path("run"))  # a race would make it exit with 66
        self.assertEqual(summary(self.path("run"))["status"], "done")


if __name__ == "__main__":
    main()
