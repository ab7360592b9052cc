"""``python -m kd_bench`` is the command ``kd-bench``."""

from kd_bench.cli.main import main

if __name__ == "__main__":
    main()
