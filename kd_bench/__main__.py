"""``python -m kd_bench`` is the command ``kd-bench``."""

import sys

# Python searches the working folder first, where a file named queue.py or random.py would replace the standard
# library's module. The command ``kd-bench`` does not search it at all.
sys.path.append(sys.path.pop(0))

from kd_bench.cli.main import main

if __name__ == "__main__":
    main()
